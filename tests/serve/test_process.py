"""A real server, called as people call it: the official client, signals, folders that change."""

import base64
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from PIL import Image

from cascade.cli.console import Status
from cascade.config.engine import BundleOptions
from cascade.pipeline import Cascade

pytestmark = pytest.mark.dist

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
LONG = 200  # steps of a picture that is still drawn when the next thing happens
WAIT = 120.0  # seconds in which even a busy machine has done it


class Server:
    """A process of `cascade serve`."""

    def __init__(self, folder: Path, words: Sequence[object]) -> None:
        self.log = folder / f"server-{time.monotonic_ns()}.log"
        command = [sys.executable, "-m", "cascade", "serve", *map(str, words)]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=ONE_THREAD
            )
        self.url = self._until(lambda: re.search(r"^Serving .* at (http://\S+)$", self.told, re.M))

    @property
    def told(self) -> str:
        """What it has printed."""
        return self.log.read_text()

    @property
    def client(self) -> openai.OpenAI:
        """The official client."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def models(self) -> list[str]:
        """Return the names of its models."""
        return [model.id for model in self.client.models.list()]

    def memory(self) -> int:
        """Return the bytes that it holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.findall(r"VmRSS:\s*(\d+)", status)[0])

    def ready(self) -> "Server":
        """Wait until it says that it is."""
        until(lambda: httpx.get(f"{self.url}/ready").status_code == 200)
        return self

    def draw(self, model: str, seed: int, prompt: str = "a dog", **more: Any) -> np.ndarray:
        """Return the pixels of one picture."""
        drawn = self.client.images.generate(
            model=model, prompt=prompt, extra_body={"seed": seed, **more}
        )
        assert drawn.data
        return pixels(drawn.data[0].b64_json)

    def begun(self, model: str, seed: int) -> Iterator[Any]:
        """Ask for a picture that takes long, and return its events once the first is there."""
        events = iter(
            self.client.images.generate(
                model=model,
                prompt="a dog",
                stream=True,
                partial_images=3,
                extra_body={"seed": seed, "num_inference_steps": LONG},
            )
        )
        assert next(events).type == "image_generation.partial_image"
        return events

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, and return the status that it ends with."""
        self.process.send_signal(number)
        return self.process.wait(WAIT)

    def _until(self, found: Callable[[], re.Match[str] | None]) -> str:
        until(lambda: found() or self.process.poll() is not None)
        match = found()
        assert match, self.told
        return match.group(1)


def until(done: Callable[[], object]) -> None:
    """Wait for something to be so."""
    late = time.monotonic() + WAIT
    while not done():
        assert time.monotonic() < late
        time.sleep(0.05)


def pixels(told: str | None) -> np.ndarray:
    """Return the picture of an answer, H W 3."""
    assert told
    with Image.open(io.BytesIO(base64.b64decode(told))) as picture:
        return np.array(picture)


Start = Callable[..., Server]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start servers, which end with the test."""
    begun: list[Server] = []

    def started(*words: object) -> Server:
        begun.append(Server(tmp_path, ("--port", 0, *words)))
        return begun[-1]

    yield started
    for server in begun:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def _sampled(folder: Path, words: Sequence[object], seed: int) -> np.ndarray:
    """Return what `cascade sample` draws of a dog."""
    asked = ("--prompt", "a dog", "--seed", seed, "--num-images", 1, "--output", folder)
    command = [sys.executable, "-m", "cascade", "sample", *map(str, (*words, *asked))]
    subprocess.run(command, check=True, capture_output=True, env=ONE_THREAD)
    (path,) = folder.glob("sr32/*.png")
    with Image.open(path) as picture:
        return np.array(picture)


def test_a_seed_is_the_picture_that_sample_draws_also_to_the_example(
    start: Start, tiny_cascade: Path, repository: Path, tmp_path: Path
) -> None:
    server = start("--cascade", f"my-dog={tiny_cascade}", "--device", "cpu")
    assert httpx.get(f"{server.url}/health").status_code == 200
    server.ready()
    assert server.models() == ["my-dog"]
    theirs = _sampled(tmp_path / "drawn", ("--cascade", tiny_cascade, "--device", "cpu"), 5)
    assert np.array_equal(server.draw("my-dog", 5), theirs)
    assert not np.array_equal(server.draw("my-dog", 6), theirs)
    example = (sys.executable, repository / "examples" / "serve_client.py", server.url, "a dog")
    subprocess.run([*map(str, example), str(tmp_path / "out")], check=True, capture_output=True)
    made = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert made.keys() == {"0.png", "1.png", "preview-0.png", "preview-1.png", "streamed.png"}
    assert made["0.png"] == made["streamed.png"]
    assert len(set(made.values())) == 4
    assert server.end() == 0


@pytest.mark.slow
def test_a_signal_lets_what_was_asked_end_and_takes_nothing_new(
    start: Start, tiny_cascade: Path
) -> None:
    server = start("--cascade", f"tiny={tiny_cascade}").ready()
    alone = server.draw("tiny", 3, num_inference_steps=LONG)
    events = server.begun("tiny", 3)
    server.process.terminate()
    until(lambda: "Ending" in server.told)
    with pytest.raises(openai.InternalServerError) as refused:
        server.draw("tiny", 4)
    assert refused.value.status_code == 503
    assert httpx.get(f"{server.url}/ready").status_code == 503
    *_, last = events
    assert last.type == "image_generation.completed"
    assert np.array_equal(pixels(last.b64_json), alone)
    assert server.process.wait(WAIT) == 0


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once(start: Start, tiny_cascade: Path) -> None:
    server = start("--cascade", f"tiny={tiny_cascade}", "--drain", 1000.0).ready()
    events = server.begun("tiny", 3)
    server.process.send_signal(signal.SIGINT)
    until(lambda: "Ending" in server.told)
    assert server.end(signal.SIGINT) == -signal.SIGINT
    with pytest.raises((openai.APIConnectionError, httpx.TransportError)):
        list(events)


@pytest.mark.slow
def test_what_is_not_drawn_in_time_is_cancelled_and_told(start: Start, tiny_cascade: Path) -> None:
    server = start("--cascade", f"tiny={tiny_cascade}", "--drain", 0.1).ready()
    events = server.begun("tiny", 3)
    assert server.end() == Status.TIME_IS_UP
    with pytest.raises(openai.APIError, match="cancelled"):
        list(events)


@pytest.mark.slow
def test_a_server_that_was_killed_starts_again(start: Start, tiny_cascade: Path) -> None:
    server = start("--cascade", f"tiny={tiny_cascade}").ready()
    before = server.draw("tiny", 1)
    server.begun("tiny", 3)
    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    port = server.url.rpartition(":")[2]
    again = start("--cascade", f"tiny={tiny_cascade}", "--port", port).ready()
    assert again.url == server.url
    assert np.array_equal(again.draw("tiny", 1), before)


@dataclass(frozen=True)
class Pets:
    """A bundle and what is drawn from it without a server, one picture at a time."""

    folder: Path

    def alone(self, model: str, seed: int) -> np.ndarray:
        """Return the pixels of a picture of a dog."""
        subject = model.partition(":")[2] or None
        engines = BundleOptions(subject=subject, threads=1)
        drawn = Cascade.load(self.folder, engines=engines).sample("a dog", seeds=[seed])
        return np.array(drawn.images[0])

    def add(self, name: str, source: Path, seed: int) -> None:
        """Add a fine-tune: the cascade with a base whose every weight has moved."""
        from cascade_export.bundle.bundle import Bundle
        from cascade_export.bundle.finetunes import add_subject

        cascade = Cascade.load(source)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in cascade.stages[0].network.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        add_subject(Bundle.open(self.folder), cascade, name, gate())


def gate() -> Any:
    """Return the least that an export compares."""
    from cascade_export.settings import Gate

    return Gate(device="cpu", prompts=("a dog",), steps=2)


@pytest.fixture(scope="module")
def exported(tiny_cascade: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny cascade as a bundle for ONNX Runtime, with the fine-tune `cat`."""
    pytest.importorskip("onnxscript")
    from cascade_export.bundle.write import export_bundle
    from cascade_export.settings import ExportOptions

    folder = tmp_path_factory.mktemp("pets") / "bundle"
    export_bundle(Cascade.load(tiny_cascade), folder, ExportOptions(gate=gate()))
    Pets(folder).add("cat", tiny_cascade, 1)
    return folder


@pytest.fixture
def pets(exported: Path, tmp_path: Path) -> Pets:
    """A copy of the bundle to change."""
    return Pets(shutil.copytree(exported, tmp_path / "bundle"))


@pytest.mark.slow
def test_of_many_clients_everyone_gets_the_picture_that_is_drawn_alone(
    start: Start, pets: Pets
) -> None:
    server = start("--bundle", f"pets={pets.folder}", "--threads", 1, "--calls", 2).ready()
    asked = [(model, seed) for seed in range(12) for model in ("pets", "pets:cat")]
    with ThreadPoolExecutor(8) as clients:
        drawn = list(clients.map(lambda one: server.draw(*one), asked))
    for one, picture in zip(asked, drawn, strict=True):
        assert np.array_equal(picture, pets.alone(*one)), one
    assert not np.array_equal(drawn[0], drawn[1])
    assert server.end() == 0


@pytest.mark.slow
def test_subjects_come_change_and_go_while_others_are_drawn(
    start: Start, pets: Pets, tiny_cascade: Path, tmp_path: Path
) -> None:
    server = start("--bundle", f"pets={pets.folder}", "--threads", 1, "--reload", 0.2).ready()
    ended, drawn = threading.Event(), []

    def draw_on() -> None:
        while not ended.is_set():
            drawn.append(server.draw("pets", 1))

    with ThreadPoolExecutor() as pool:
        others = pool.submit(draw_on)
        pets.add("dog", tiny_cascade, 2)
        until(lambda: "pets:dog" in server.models())
        first = server.draw("pets:dog", 1)
        assert np.array_equal(first, pets.alone("pets:dog", 1))
        copy = Pets(shutil.copytree(pets.folder, tmp_path / "copy"))
        own = Path("subjects", "dog")
        shutil.rmtree(copy.folder / own)
        copy.add("dog", tiny_cascade, 3)
        (pets.folder / own).rename(tmp_path / "old")
        (copy.folder / own).rename(pets.folder / own)
        until(lambda: not np.array_equal(server.draw("pets:dog", 1), first))
        assert np.array_equal(server.draw("pets:dog", 1), pets.alone("pets:dog", 1))
        shutil.rmtree(pets.folder / own)
        until(lambda: "pets:dog" not in server.models())
        with pytest.raises(openai.NotFoundError):
            server.draw("pets:dog", 1)
        ended.set()
        others.result(WAIT)
    alone = pets.alone("pets", 1)
    assert len(drawn) > 5
    assert all(np.array_equal(picture, alone) for picture in drawn)
    assert server.end() == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_requests(start: Start, tiny_cascade: Path) -> None:
    server = start("--cascade", f"tiny={tiny_cascade}").ready()
    with ThreadPoolExecutor(4) as clients:
        list(clients.map(lambda seed: server.draw("tiny", seed), range(50)))
        before = server.memory()
        list(clients.map(lambda seed: server.draw("tiny", seed), range(300)))
    # If each left no more than what it has drawn, 16 and 32 pixels wide, in float32.
    assert server.memory() - before < 300 * 4 * 3 * (16**2 + 32**2)
    figures = httpx.get(f"{server.url}/metrics").text
    assert re.findall(r"^cascade_pictures_\w+\{.*\} (?!0\.0)", figures, re.M) == []
