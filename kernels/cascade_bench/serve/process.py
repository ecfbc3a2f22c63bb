"""Servers in processes of their own, on free ports of the loopback."""

import hashlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx2

from cascade.errors import UserError
from cascade.files import read_text
from cascade_bench.data_processes import family, processor_seconds, resident

HOST: Final = "127.0.0.1"

_START: Final = 600.0  # seconds until a server is ready: engines are built, rows are warmed up
_LOOK: Final = 0.1  # seconds between two looks
_MEMORY: Final = 1.0  # the same, at its memory


@dataclass(frozen=True)
class Program:
    """How a server is started.

    Attributes:
        name: for people.
        words: of its command behind `python -m`, for a port.
        threads: of its arithmetic.
        keys: by which clients are known; the last one may read the server's counters.
    """

    name: str
    words: Callable[[int], Sequence[str]]
    threads: int
    keys: Sequence[str]


@dataclass
class Server:
    """A running server."""

    name: str
    url: str
    keys: Sequence[str]
    process: subprocess.Popen[bytes]
    log: Path
    port: int = field(default=0)

    def await_ready(self) -> float:
        """Wait until it says that it is ready; return the seconds.

        Raises:
            UserError: it ended, or takes too long.
        """
        start = time.monotonic()
        while time.monotonic() - start < _START:
            if self.process.poll() is not None:
                raise UserError(
                    f"The server '{self.name}' has ended with status {self.process.returncode}: "
                    f"{self.last_words()}"
                )
            try:
                if httpx2.get(f"{self.url}/ready", trust_env=False).is_success:
                    return time.monotonic() - start
            except httpx2.TransportError:  # it does not listen yet
                pass
            time.sleep(_LOOK)
        raise UserError(f"The server '{self.name}' is not ready after {_START:.0f} s.")

    def last_words(self) -> str:
        """Return the last line that it has written."""
        lines = read_text(self.log).strip().splitlines()
        return lines[-1] if lines else "it wrote nothing."

    def memory(self) -> int:
        """Return the bytes that its processes hold."""
        return resident(family(self.process.pid))

    def processor(self) -> float:
        """Return the seconds that its processes have taken of the processors."""
        return processor_seconds(family(self.process.pid))

    def terminate(self, patience: float) -> int:
        """Ask it to end and wait; return its exit status.

        Raises:
            UserError: it does not end.
        """
        self.process.terminate()
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise UserError(
                f"The server '{self.name}' has not ended {patience:.0f} s after SIGTERM."
            ) from None


@contextmanager
def ended_by_signal() -> Iterator[None]:
    """Let SIGTERM raise `SystemExit`, so that no server outlives whoever started it."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def serving(program: Program, folder: Path, port: int | None = None) -> Iterator[Server]:
    """Start a server and wait until it is ready; it is killed at the end, if it still runs.

    Args:
        folder: gets what it writes.
        port: where it listens; a free one by default.
    """
    port = port or free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": str(program.threads)}
    log = folder / f"{program.name}-{port}.log"
    command = [sys.executable, "-m", *program.words(port)]
    with log.open("ab") as written:
        process = subprocess.Popen(
            command, env=environment, stdout=written, stderr=subprocess.STDOUT
        )
    server = Server(program.name, f"http://{HOST}:{port}", program.keys, process, log, port)
    try:
        server.await_ready()
        yield server
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    """Return a port at which nobody listens now."""
    with closing(socket.socket()) as taken:
        taken.bind((HOST, 0))
        return int(taken.getsockname()[1])


def write_keys(number: int, path: Path) -> list[str]:
    """Write a file of keys for so many clients and, as the last, one who reads the counters."""
    keys = [secrets.token_urlsafe(16) for _ in range(number + 1)]
    entries: list[str] = []
    for place, key in enumerate(keys):
        digest = hashlib.sha256(key.encode()).hexdigest()
        admin = "true" if place == number else "false"
        entries.append(f'[[keys]]\nname = "client-{place}"\nsha256 = "{digest}"\nadmin = {admin}\n')
    path.touch(mode=0o600)
    path.write_text("\n".join(entries), encoding="utf-8")
    return keys


class MemoryWatch:
    """Notes the memory of a server over time, from a thread."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._start = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.series: list[tuple[float, int]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.series.append((time.monotonic() - self._start, self._server.memory()))
            if self._ended.wait(_MEMORY):
                return
