"""The score of a tiny cascade in a made-up world, with a judge of random weights."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from typer.testing import CliRunner

from cascade.data.images import resize
from cascade.errors import UserError
from cascade.evaluate import stored
from cascade.evaluate.judge import Judge
from cascade.evaluate.judge_config import JudgeConfig
from cascade.evaluate.judge_network import JudgeNetwork


class FakeInception:
    """Features of width 3: the mean colour."""

    name = "mean colour"

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


@pytest.fixture
def score(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script beside its neighbours, with networks that need no packages."""
    folder = repository / "tools" / "mini"
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(folder))
    script = importlib.import_module("score")
    monkeypatch.setattr(importlib.import_module("score_base"), "InceptionFID", FakeInception)
    enlargement = importlib.import_module("score_enlargement")
    monkeypatch.setattr(enlargement, "EfficientNetLite0", FakeInception)
    yield script
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(folder):
            del sys.modules[name]


@pytest.fixture
def made(score: ModuleType, tmp_path: Path) -> Path:
    """A folder with sprites, a judge, held-out pictures of 16 pixels and a subject."""
    _sprites(tmp_path / "sprites")
    world = importlib.import_module("world").World.open(tmp_path / "sprites")
    coded = importlib.import_module("prepare").coded
    pictures = [world.picture(index, "held out") for index in range(12)]
    images = [np.asarray(resize(picture.image, 16, "box")) for picture in pictures]
    held = tmp_path / "held16"
    held.mkdir()
    np.save(held / "images.npy", np.stack(images).transpose(0, 3, 1, 2))
    vocabulary = world.vocabulary()
    np.save(held / "labels.npy", [coded(picture.labels, vocabulary) for picture in pictures])
    (held / "dataset.json").write_text(json.dumps({"vocabulary": vocabulary}))
    lines = [json.dumps(picture.captions) for picture in pictures]
    (held / "captions.jsonl").write_text("\n".join(lines) + "\n")
    attributes = importlib.import_module("judge_pictures").Labelled.open(held).attributes()
    config = JudgeConfig(attributes=attributes, widths=(8, 8, 8, 8))
    torch.manual_seed(0)
    network = JudgeNetwork(config.widths, list(config.counts.values()), normalised=True)
    Judge(config, network.eval()).save(tmp_path / "judge")
    return tmp_path


def _sprites(folder: Path) -> None:
    """A ball, which can be of any colour, and a dog that can wear something."""
    folder.mkdir()
    entries = []
    for concept, head in (("ball", None), ("dog", [0.5, 0.1, 0.4, 0.2])):
        image = Image.new("RGBA", (64, 64))
        ImageDraw.Draw(image).ellipse((4, 4, 60, 60), fill=(200, 40, 40, 255))
        image.save(folder / f"{concept}.png")
        place = head and dict(zip(("x", "top", "width", "eyes"), head, strict=True))
        entries.append(
            {
                "concept": concept,
                "style": "flat",
                "file": f"{concept}.png",
                "head": place,
                "colourable": head is None,
            }
        )
    names = ("crown", "scarf", "sunglasses", "top hat")
    index = {
        "concepts": {"ball": ["toy"], "dog": ["animal"]},
        "sprites": entries,
        "accessories": {name: {"flat": "ball.png"} for name in names},
    }
    (folder / "index.json").write_text(json.dumps(index))


def _run(score: ModuleType, *arguments: object) -> None:
    """Run the command as a shell would; what it raises is raised here."""
    result = CliRunner().invoke(score.app, [*map(str, arguments), "--device", "cpu"])
    if result.exception is not None:
        raise result.exception


def _base(cascade: Path, made: Path, output: str) -> list[object]:
    words = ["--sprites", made / "sprites", "--judge", made / "judge", "--held", made / "held16"]
    return ["base", cascade, *words, "--output", made / output, "--work", made / "work"]


def _record(path: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def test_a_bases_figures_stand_beside_those_of_true_pictures(
    score: ModuleType, tiny_cascade: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["score_base"], "SHEET_ROWS", 2)
    arguments = [*_base(tiny_cascade, made, "of.base"), "--images", 5, "--guidance", 1]
    with pytest.raises(score.OutOfTimeError, match="0 of 5 pictures, held out are done"):
        _run(score, *arguments, "--minutes", 0)
    _run(score, *arguments)
    record = _record(made / "of.base.json")
    assert record["sampler"]["guidance"] == 1
    assert set(record["judged"]) == {"held out", "training", "true pictures"}
    assert record["judged"]["held out"]["of"]["scene"] == 5
    assert record["judged"]["true pictures"]["of"]["concept"] == 12
    assert set(record["judged"]["true pictures"]["by_value"]["concept"]) <= {"ball", "dog"}
    # Five of twelve true pictures are compared with five others of them.
    assert record["fid"]["pictures"] == 5
    assert 0 < record["fid"]["true"] < record["fid"]["drawn"]
    table = (made / "of.base.md").read_text()
    assert "base16, dpmpp_2m 3, guidance 1" in table
    assert "| drawn, held out |" in table
    with Image.open(made / "of.base.jpg") as sheet:
        assert 2 * 128 < sheet.height < 3 * 128
    monkeypatch.setattr(stored, "sample_stage", None)  # a second time nothing is drawn
    _run(score, *arguments)
    assert _record(made / "of.base.json")["judged"] == record["judged"]


def test_super_resolution_is_compared_with_bicubic_at_two_sizes(
    score: ModuleType, tiny_cascade: Path, made: Path, photos: Path
) -> None:
    pytest.importorskip("skimage", reason="extra 'evaluate' not installed")
    (made / "subjects" / "dog").mkdir(parents=True)
    table = made / "subjects" / "prompts_and_classes.txt"
    table.write_text("subject_name,class\ndog,dog\ncat,cat\n")
    Image.open(photos / "0.png").save(made / "subjects" / "dog" / "00.png")
    given = ["--subjects", made / "subjects", "--output", made / "large", "--work", made / "work"]
    _run(score, "enlargement", tiny_cascade, *given)
    found = _record(made / "large.json")["enlarged"]
    assert [(one["low"], one["high"], one["photos"]) for one in found] == [(16, 32, 1), (32, 64, 1)]
    # The network is of random weights: anything that was made with care is nearer to the photo.
    assert all(one["bicubic"]["psnr"] > one["stage"]["psnr"] for one in found)
    assert len(list(made.glob("large*.jpg"))) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--stage", "sr32"], "'sr32' enlarges pictures; score it with the command"),
        (["--stage", "sr64"], "no stage 'sr64'; it has base16, sr32"),
        (["--images", "13"], "There are 12 true pictures; draw no more"),
        (["--judge", "{made}/none"], "There is no judge in"),
        (["--sprites", "{made}/none"], "make the sprites with"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(
    score: ModuleType, tiny_cascade: Path, made: Path, change: list[str], message: str
) -> None:
    words = [word.format(made=made) for word in change]
    arguments = [*_base(tiny_cascade, made, "base"), "--images", 4, *words]
    with pytest.raises(UserError, match=message):
        _run(score, *arguments)
    assert not (made / "work").exists()
