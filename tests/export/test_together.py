"""Several threads and processes draw from one bundle at once; one at a time writes into it."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade.config.engine import BundleOptions, EngineOptions
from cascade.config.sample import SampleOptions
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.finetunes import add_subject
from cascade_export.bundle.library import BundleLibrary
from cascade_export.bundle.lock import LOCK, require_free, writing
from cascade_export.bundle.write import export_bundle
from cascade_export.settings import ExportOptions, Gate

Command = Callable[..., Any]

# Of one size: only an engine that says so answers alike in batches of several sizes.
ASKED = {"a dog": [1, 2], "a sec dog on the beach": [3, 4], "": [5, 6]}
OPTIONS = SampleOptions(steps=4)

DRAW = """
import hashlib, json, sys
import torch
torch.set_num_threads(1)
from cascade.config.engine import EngineOptions
from cascade_export.bundle.bundle import Bundle
folder, engine, prompt, *seeds = sys.argv[1:]
options = EngineOptions(threads=1, spinning=False) if engine == "onnxruntime" else EngineOptions()
cascade = Bundle.open(folder).cascade(engine=engine, options=options)
print("ready", flush=True)
sys.stdin.readline()
drawn = cascade.sample(prompt, [int(seed) for seed in seeds], steps=4)
print(json.dumps({name: hashlib.sha256(images.numpy().tobytes()).hexdigest()
                  for name, images in drawn.stages.items()}))
"""

HOLD = """
import sys
from pathlib import Path
from cascade_export.bundle.lock import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(params=["onnxruntime", "torch"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of engine that is always there."""
    chosen: str = request.param
    return chosen


def settings(kind: str) -> EngineOptions:
    return EngineOptions(threads=1, spinning=False) if kind == "onnxruntime" else EngineOptions()


def drawn_at_once(cascades: dict[str, Cascade]) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Draw every prompt twice, each in a thread of its own, all at the same time."""
    found: dict[str, list[dict[str, torch.Tensor]]] = {}
    start = threading.Barrier(len(cascades))

    def draw(prompt: str, cascade: Cascade) -> None:
        start.wait(60)
        found[prompt] = [
            dict(cascade.sample(prompt, ASKED[prompt], options=OPTIONS).stages) for _ in range(2)
        ]

    threads = [threading.Thread(target=draw, args=each) for each in cascades.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    return found


@pytest.mark.parametrize("roomy", [True, False])
def test_threads_draw_what_each_draws_alone(bundle: Bundle, kind: str, roomy: bool) -> None:
    # With room for one stage the others' weights leave in the middle of a picture.
    limit = None if roomy else max(files.weights.stat().st_size for files in bundle.files())
    cascade = bundle.cascade(engine=kind, options=settings(kind), max_memory=limit)
    alone = {
        prompt: cascade.sample(prompt, seeds, options=OPTIONS) for prompt, seeds in ASKED.items()
    }
    found = drawn_at_once(dict.fromkeys(ASKED, cascade))
    assert found.keys() == ASKED.keys()
    for prompt, pictures in found.items():
        for stages in pictures:
            for name, images in alone[prompt].stages.items():
                assert torch.equal(stages[name], images), (prompt, name)


def test_threads_draw_several_subjects_that_share_engines(bundle: Bundle) -> None:
    library = BundleLibrary(bundle.folder, "cpu", BundleOptions(threads=1, spinning=False))
    own, tuned = library.open(""), library.open("sec-dog")
    cascades = dict(zip(ASKED, (own, tuned, own), strict=True))
    alone = {
        prompt: each.sample(prompt, ASKED[prompt], options=OPTIONS)
        for prompt, each in cascades.items()
    }
    for prompt, pictures in drawn_at_once(cascades).items():
        for stages in pictures:
            for name, images in alone[prompt].stages.items():
                assert torch.equal(stages[name], images), (prompt, name)


@pytest.mark.slow
@pytest.mark.dist
def test_processes_draw_what_each_draws_alone(bundle: Bundle, kind: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cascade = bundle.cascade(engine=kind, options=settings(kind))
        alone = {
            prompt: cascade.sample(prompt, seeds, options=OPTIONS)
            for prompt, seeds in ASKED.items()
        }
    finally:
        torch.set_num_threads(threads)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", DRAW, str(bundle.folder), kind, prompt, *map(str, seeds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for prompt, seeds in ASKED.items()
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("draw\n")
        process.stdin.flush()
    for process, prompt in zip(processes, ASKED, strict=True):
        told, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        assert json.loads(told) == {
            name: hashlib.sha256(images.numpy().tobytes()).hexdigest()
            for name, images in alone[prompt].stages.items()
        }


@pytest.mark.dist
def test_what_another_process_is_writing_is_refused_before_any_work(
    command: Command,
    my_bundle: Bundle,
    tiny_cascade: Path,
    tuned_cascade: Path,
    tmp_path: Path,
) -> None:
    draft, told = tmp_path / "draft", r"Another export is writing into .*; start this one again"
    cascade, gate = Cascade.load(tiny_cascade), Gate(device="cpu")
    for folder, write, flags in (
        (
            my_bundle.folder,
            lambda: add_subject(my_bundle, cascade, "again", gate),
            ("--cascade", tuned_cascade, "--into", my_bundle.folder, "--subject", "again"),
        ),
        (
            draft,
            lambda: export_bundle(cascade, draft, ExportOptions(gate=gate)),
            ("--cascade", tiny_cascade, "-o", draft),
        ),
    ):
        with subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            before = sorted(folder.rglob("*"))
            with pytest.raises(UserError, match=told):
                write()
            shown = command("export", *flags)
            assert shown.status == 2
            assert "Another export is writing into" in shown.err
            assert sorted(folder.rglob("*")) == before
            process.kill()  # a lock ends with its process
        require_free(folder)
    assert my_bundle.subjects() == ["sec-dog"]
    Bundle.open(my_bundle.folder)


def test_a_lock_is_one_thread_s_and_says_when_it_cannot_be_made(tmp_path: Path) -> None:
    refused: list[UserError] = []

    def other() -> None:
        try:
            with writing(tmp_path):
                pass
        except UserError as error:
            refused.append(error)

    with writing(tmp_path):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(60)
    assert len(refused) == 1
    with writing(tmp_path):  # it may be held again
        assert (tmp_path / LOCK).exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be written \(.*\); choose another folder"):
        writing(tmp_path / "file" / "bundle").__enter__()
