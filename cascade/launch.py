"""Processes: what `torchrun` tells those that it starts; that others end with who started them."""

import multiprocessing
import os
import threading
from dataclasses import dataclass
from multiprocessing import connection
from typing import Final, Self

from cascade.errors import UserError

NEEDED: Final = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What each of several processes is told beside `WORLD_SIZE`."""


@dataclass(frozen=True)
class Launch:
    """This process's number among those of a run, and among those on its machine.

    Attributes:
        torchrun: the identity of the `torchrun` that started it; None where another program did.
        restarts: how often that has started its processes anew.
        keeps_store: whether it keeps one store for all its starts, and starts may follow.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    torchrun: str | None = None
    restarts: int = 0
    keeps_store: bool = False

    @classmethod
    def read(cls) -> Self:
        """Read the environment; a process that was started alone is the only one."""
        torchrun = os.environ.get("TORCHELASTIC_RUN_ID")
        restarts = _number("TORCHELASTIC_RESTART_COUNT") if torchrun else 0
        alone = cls(torchrun=torchrun, restarts=restarts)
        if "WORLD_SIZE" not in os.environ:
            return alone
        world = _number("WORLD_SIZE")
        if world == 1:
            return alone
        missing = [name for name in NEEDED if name not in os.environ]
        if missing:
            raise UserError(
                f"WORLD_SIZE is {world} but {missing[0]} is not set; start with torchrun, or unset "
                "WORLD_SIZE."
            )
        rank = _number("RANK")
        if rank >= world:
            raise UserError(
                f"RANK is {rank} and WORLD_SIZE is {world}; start with torchrun, or unset both."
            )
        local, local_world = _number("LOCAL_RANK"), _number("LOCAL_WORLD_SIZE")
        stores = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        keeps = stores and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
        return cls(rank, world, local, local_world, torchrun, restarts, keeps)

    @property
    def is_main(self) -> bool:
        """Whether this is the process that reports and writes what exists once."""
        return self.rank == 0


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    least = 1 if name.endswith("WORLD_SIZE") else 0
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise UserError(
            f"{name} is '{text}', no number of processes; start with torchrun, or unset it."
        )
    return int(text)


def cores() -> int:
    """Return how many of the machine's cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """Let a process that `multiprocessing` started end when the one that started it is killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "another started it"

    def leave() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=leave, daemon=True).start()
