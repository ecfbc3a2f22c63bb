"""A gate that is cut short goes on behind the batches that it has sampled."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade.pipeline import Cascade
from cascade.stage import Stage
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.finetunes import add_subject, subject_folder
from cascade_export.bundle.write import export_bundle
from cascade_export.parity.kept import Kept, Values
from cascade_export.settings import ExportOptions, Gate

ONE_BY_ONE = Gate(device="cpu", prompts=("a dog", "a cat"), batch_size=1)
BATCHES = 2  # of either stage, and each is sampled by eager and by the engine


class Counter:
    """Counts the batches that stages sample, and interrupts one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stages: list[str] = []
        self.last = 1000
        sample = Stage.sample

        def counted(stage: Stage, *arguments: Any, **options: Any) -> torch.Tensor:
            if len(self.stages) == self.last:
                raise KeyboardInterrupt
            self.stages.append(stage.config.name)
            return sample(stage, *arguments, **options)

        monkeypatch.setattr(Stage, "sample", counted)

    def interrupt(self, after: int, work: Callable[[], object]) -> None:
        """Interrupt work behind so many batches, and forget them."""
        self.last = after
        with pytest.raises(KeyboardInterrupt):
            work()
        self.last = 1000
        self.stages.clear()


@pytest.mark.usefixtures("traced")
def test_an_export_that_is_interrupted_in_the_gate_repeats_no_batch(
    bundle: Bundle, tiny_cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade, output = Cascade.load(tiny_cascade), tmp_path / "bundle"
    counter = Counter(monkeypatch)

    def work() -> Bundle:
        return export_bundle(cascade, output, ExportOptions(gate=ONE_BY_ONE))

    counter.interrupt(5, work)  # both of the base, and eager's first of the other stage
    assert len([*(output / "report/compared").iterdir()]) == BATCHES
    told: list[tuple[str, int, int]] = []
    made = export_bundle(
        cascade, output, ExportOptions(gate=ONE_BY_ONE), lambda *step: told.append(step)
    )
    assert counter.stages == ["sr32"] * 2 * BATCHES
    assert ("prove base16", BATCHES, BATCHES) in told
    assert not (output / "report/compared").exists()
    assert made.manifest.proof is not None
    whole = export_bundle(cascade, tmp_path / "whole", ExportOptions(gate=ONE_BY_ONE))
    assert made.manifest.proof == whole.manifest.proof


@pytest.mark.slow
def test_a_subject_that_is_interrupted_in_the_gate_repeats_no_batch(
    my_bundle: Bundle, tuned_cascade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuned, counter = Cascade.load(tuned_cascade), Counter(monkeypatch)

    def work(name: str = "other-dog") -> object:
        return add_subject(my_bundle, tuned, name, ONE_BY_ONE)

    counter.interrupt(7, work)
    assert "other-dog" not in my_bundle.subjects()
    work()
    assert counter.stages == ["sr32"] * 2  # all but the last batch were there
    assert not (subject_folder(my_bundle, "other-dog") / "report/compared").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_batches_of_other_prompts_are_not_taken(
    bundle: Bundle, tiny_cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade, output = Cascade.load(tiny_cascade), tmp_path / "bundle"
    counter = Counter(monkeypatch)
    other = ONE_BY_ONE.model_copy(update={"prompts": ("a red backpack", "")})
    counter.interrupt(5, lambda: export_bundle(cascade, output, ExportOptions(gate=other)))
    export_bundle(cascade, output, ExportOptions(gate=ONE_BY_ONE))
    assert counter.stages == ["base16"] * 2 * BATCHES + ["sr32"] * 2 * BATCHES


def test_a_batch_is_of_all_that_it_follows_from(tmp_path: Path) -> None:
    made: list[None] = []

    def obtain(origin: str, settings: str, value: float) -> Values:
        def make() -> Values:
            made.append(None)
            return {"images": torch.full((1,), value)}

        kept = Kept(tmp_path, {"base": origin})
        return kept.obtain("base", [settings], [torch.tensor([value])], make)

    for asked in (("a", "b", 1.0), ("other", "b", 1.0), ("a", "other", 1.0), ("a", "b", 2.0)):
        before = len(made)
        first = obtain(*asked)
        assert len(made) == before + 1
        assert torch.equal(obtain(*asked)["images"], first["images"])
        assert len(made) == before + 1
    for file in tmp_path.iterdir():  # damaged: made again, and never taken as it is
        file.write_bytes(file.read_bytes()[:-2])
    assert obtain("a", "b", 1.0)["images"].tolist() == [1.0]
    assert len(made) == 5


@pytest.mark.slow
def test_an_export_that_is_killed_in_the_gate_repeats_no_batch(
    tiny_cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "bundle"
    command = [sys.executable, "-m", "cascade", "export", "--device", "cpu"]
    command += ["--cascade", str(tiny_cascade), "--output", str(output)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.Popen(command, env=os.environ | threads, stdout=subprocess.DEVNULL)
    compared = output / "report/compared"
    while child.poll() is None and not [*compared.glob("*.safetensors")]:
        time.sleep(0.001)
    child.kill()
    assert child.wait() != 0
    there = len([*compared.glob("*.safetensors")])
    counter = Counter(monkeypatch)
    made = export_bundle(Cascade.load(tiny_cascade), output, ExportOptions(gate=Gate(device="cpu")))
    assert there >= 1
    assert len(counter.stages) == 2 * (2 * BATCHES - there)
    assert Bundle.open(output).manifest == made.manifest
