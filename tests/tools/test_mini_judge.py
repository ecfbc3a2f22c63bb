"""The judge's training on a made-up dataset whose places a mean colour tells."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from typer import Typer
from typer.testing import CliRunner

from cascade.errors import UserError
from cascade.evaluate.judge import Judge

VOCABULARY = {
    "accessory": ["crown", "scarf"],
    "colour": ["red", "blue"],
    "concept": ["dog", "cat"],
    "scene": ["beach", "snow", "blue background"],
    "style": ["3d", "photo"],
}
TINTS = np.array([[200, 120, 40], [90, 200, 90], [40, 60, 200]])  # of the three scenes


@pytest.fixture
def tools(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts beside their neighbours."""
    folder = repository / "tools" / "mini"
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(folder))
    yield
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(folder):
            del sys.modules[name]


@pytest.fixture
def script(tools: None) -> ModuleType:
    """`judge.py` as a module."""
    return importlib.import_module("judge")


def _dataset(folder: Path, count: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.integers(0, n, count) for n in (2, 2, 3, 2, 2)], 1).astype(np.int16)
    labels[::4, 3:] = -1
    noise = rng.integers(-40, 40, (count, 3, 64, 64))
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", (TINTS[labels[:, 2]][:, :, None, None] + noise).astype(np.uint8))
    np.save(folder / "labels.npy", labels)
    (folder / "captions.jsonl").write_text('["a dog"]\n' * count)
    (folder / "dataset.json").write_text(json.dumps({"vocabulary": VOCABULARY}))
    return folder


def _run(script: ModuleType, *arguments: object) -> None:
    """Run the command as a shell would; what it raises is raised here."""
    app = Typer()
    app.command()(script.main)
    result = CliRunner().invoke(app, [*map(str, arguments), "--device", "cpu"])
    if result.exception is not None:
        raise result.exception


@pytest.mark.slow
def test_a_judge_learns_what_is_easy(script: ModuleType, tmp_path: Path) -> None:
    data, held = (_dataset(tmp_path / str(seed), 200, seed) for seed in (0, 1))
    settings = ["--held", held, "--minutes", 0.05, "--batch-size", 16]
    _run(script, data, *settings, "--output", tmp_path / "judge")
    record = json.loads((tmp_path / "judge" / "accuracy.json").read_text())
    assert record["accuracy"]["not trained on"]["pictures"] == 4
    # Three scenes of one colour each: chance is a third, and 66 of 200 have a deviation of 7.
    assert record["accuracy"]["held out"]["scene"] > 0.6
    assert record["training"]["pictures"] == 196
    judge = Judge.load(tmp_path / "judge")
    assert judge.config.attributes["scene"].answers == ("beach", "snow", "blue background")
    assert judge.config.attributes["colour"].answers == ("red", "blue", "its own")
    said = "a photo of a blue cat wearing a crown on a blue background"
    assert judge.stated(said) == {
        "concept": "cat",
        "style": "photo",
        "scene": "blue background",
        "colour": "blue",
        "accessory": "crown",
    }


def test_variations_keep_a_picture(tools: None) -> None:
    pictures = importlib.import_module("judge_pictures")
    ramp = torch.arange(64, dtype=torch.uint8)[None, None, None, :].expand(32, 3, 64, 64)
    varied = pictures.varied(ramp, torch.Generator().manual_seed(0))
    assert varied.shape == ramp.shape
    assert varied.abs().max() <= 1
    rising = varied[:, :, :, 48:].mean((1, 2, 3)) > varied[:, :, :, :16].mean((1, 2, 3))
    assert 4 < int(rising.sum()) < 28  # about half of 32 are mirrored
    again = pictures.varied(ramp, torch.Generator().manual_seed(0))
    assert torch.equal(varied, again)


def test_rows_without_an_answer_weigh_nothing(tools: None) -> None:
    loss = importlib.import_module("judge_training").answers_loss
    torch.manual_seed(0)
    logits = torch.randn(3, 5, requires_grad=True)
    targets = torch.tensor([[0, 2], [1, -1], [-1, -1]])
    loss(logits, targets, [2, 3]).backward()
    assert logits.grad is not None
    assert torch.equal(
        logits.grad != 0, torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [False] * 5])
    )
    nothing = loss(logits, torch.full((3, 2), -1), [2, 3])
    assert nothing.item() == 0


@pytest.mark.parametrize("lost", ["labels.npy", "vocabulary", "rows"])
def test_a_dataset_that_tells_nothing_is_refused(
    script: ModuleType, tmp_path: Path, lost: str
) -> None:
    data = _dataset(tmp_path / "data", 8, 0)
    if lost == "labels.npy":
        (data / "labels.npy").unlink()
    elif lost == "vocabulary":
        (data / "dataset.json").write_text("{}")
    else:
        np.save(data / "labels.npy", np.zeros((7, 5), dtype=np.int16))
    with pytest.raises(UserError, match=r"does not (tell what|belong to)"):
        _run(script, data, "--output", tmp_path / "judge")
