"""The score of a tiny cascade against photos whose classes a fake classifier tells by colour."""

import importlib
import json
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from cascade.data.images import resize
from cascade.errors import UserError
from cascade.evaluate import stored

COLOURS = {
    "n02085620": ("Chihuahua", "dog", (255, 0, 0)),
    "n02094433": ("Yorkshire terrier", "dog", (0, 255, 0)),
    "n02123045": ("tabby", "cat", (0, 0, 255)),
}
SCRIPTS = ("score", "score_base", "score_enlargement", "scoring", "packs", "captions", "boxes")


class FakeInception:
    """Features of width 3: the mean colour."""

    name = "mean colour"

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class FakeClassifier(FakeInception):
    """Calls a red picture a Chihuahua, a green one a Yorkshire terrier, a blue one a tabby."""

    name = "colours"

    def logits(self, features: Tensor) -> Tensor:
        return torch.cat([features, torch.zeros(len(features), 997)], 1)


@pytest.fixture
def score(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script beside its neighbours, with networks that need no packages."""
    monkeypatch.syspath_prepend(str(repository / "tools" / "pretrain"))
    script = importlib.import_module("score")
    base = importlib.import_module("score_base")
    monkeypatch.setattr(base, "InceptionFID", FakeInception)
    monkeypatch.setattr(base, "EfficientNetLite0", FakeClassifier)
    monkeypatch.setattr(base, "imagenet_columns", lambda wnids: torch.arange(len(wnids)))
    enlargement = importlib.import_module("score_enlargement")
    monkeypatch.setattr(enlargement, "EfficientNetLite0", FakeClassifier)
    yield script
    for name in SCRIPTS:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A data folder: the class table, twelve validation photos of plain colours, a subject."""
    shared = tmp_path_factory.mktemp("shared")
    packs, subjects = shared / "data" / "packs", shared / "data" / "subjects"
    packs.mkdir(parents=True)
    table = ["wnid\tname\tsynonyms\tdreambooth_class"]
    table += [f"{wnid}\t{name}\t{name}\t{noun}" for wnid, (name, noun, _) in COLOURS.items()]
    (packs / "tiny_imagenet_classes.tsv").write_text("\n".join(table) + "\n")
    labels = [0, 1, 2, 2, 1, 0, 0, 1, 2, 0, 1, 2]
    scans = [_jpeg([colour for _, _, colour in COLOURS.values()][label]) for label in labels]
    (packs / "tiny64_val.bin").write_bytes(b"".join(scans))
    np.savez(
        packs / "tiny64_val.idx.npz",
        offsets=np.cumsum([0, *map(len, scans)]),
        label=np.array(labels, dtype=np.uint8),
        box=np.zeros((12, 4), dtype=np.uint8),
        gray=np.zeros(12, dtype=bool),
        wnids=np.array(list(COLOURS)),
        header_rgb=np.zeros(0, dtype=np.uint8),  # the scans are whole files here
        header_gray=np.zeros(0, dtype=np.uint8),
    )
    (subjects / "dog").mkdir(parents=True)
    (subjects / "prompts_and_classes.txt").write_text("subject_name,class\ndog,dog\ncat,cat\n")
    Image.open(photos / "0.png").save(subjects / "dog" / "00.png")
    return shared


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """Datasets of 16 and 32 pixels."""
    folder = tmp_path_factory.mktemp("datasets")
    for side in (16, 32):
        images = [np.asarray(resize(Image.open(p), side, "box")) for p in sorted(photos.iterdir())]
        (folder / str(side)).mkdir()
        np.save(folder / str(side) / "images.npy", np.stack(images * 2).transpose(0, 3, 1, 2))
        (folder / str(side) / "captions.jsonl").write_text('["a dog"]\n' * 8)
        card = {"classes": list(COLOURS)[:2], "sha256": {"images.npy": f"{side}"}}
        (folder / str(side) / "dataset.json").write_text(json.dumps(card))
    return folder


def _jpeg(colour: tuple[int, int, int]) -> bytes:
    file = BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, format="JPEG")
    return file.getvalue()


def _run(score: ModuleType, shared: Path, *arguments: object) -> None:
    """Run the command as a shell would; what it raises is raised here."""
    app = typer.Typer()
    app.command()(score.main)
    words = [str(word) for word in (*arguments, "--shared", shared, "--device", "cpu")]
    result = CliRunner().invoke(app, words)
    if result.exception is not None:
        raise result.exception


def _record(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.json")
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def _base(tiny_cascade: Path, datasets: Path, output: Path) -> list[object]:
    reference = ["--reference", datasets / "16", "--real", datasets / "16"]
    return [tiny_cascade, *reference, "--output", output, "--batch-size", 2]


def test_a_bases_figures_and_what_they_are_compared_with(
    score: ModuleType, tiny_cascade: Path, shared: Path, datasets: Path, tmp_path: Path
) -> None:
    arguments = _base(tiny_cascade, datasets, tmp_path)
    _run(score, shared, *arguments, "--images", 7, "--classes", datasets / "16", "--guidance", 1)
    record = _record(tmp_path)
    assert record["classes"] == list(COLOURS)[:2]
    assert record["caption"] == "a photo of a Chihuahua"
    assert record["sampler"]["guidance"] == 1
    to_reference, to_photos = record["fid"]["to"]
    assert (to_reference["to"], to_reference["photos"]) == ("16", 8)
    # Seven of the reference's own eight pictures are nearer to it than what was drawn.
    assert 0 < to_reference["training_pictures"] < to_reference["pictures"]
    assert to_photos["photos"] == 7
    found = record["class accuracy"]
    assert (found["candidates"], found["photos"]) == (3, 7)
    # Labels, columns and photos belong together: the colours are told without a mistake.
    assert found["of"]["photos"] == {"top_1": 1.0, "top_5": 1.0, "coarse": 1.0}
    assert found["of"]["chance"]["top_1"] == pytest.approx(1 / 3)
    assert found["of"]["chance"]["coarse"] == pytest.approx(2 / 3)
    (sheet,) = tmp_path.glob("*.png")
    with Image.open(sheet) as image:
        assert image.height > 2 * 128
    (table,) = tmp_path.glob("*.md")
    assert "| base16 | dpmpp_2m 3 | 1 | 7 |" in table.read_text()


def test_out_of_time_it_goes_on_with_the_same_command(
    score: ModuleType,
    tiny_cascade: Path,
    shared: Path,
    datasets: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = [*_base(tiny_cascade, datasets, tmp_path / "parts"), "--images", 5]
    with pytest.raises(score.OutOfTimeError, match="0 of 5 pictures are done"):
        _run(score, shared, *arguments, "--minutes", 0)
    _run(score, shared, *arguments)
    _run(score, shared, *_base(tiny_cascade, datasets, tmp_path / "whole"), "--images", 5)
    parts, whole = _record(tmp_path / "parts"), _record(tmp_path / "whole")
    assert parts["fid"] == whole["fid"]
    assert parts["class accuracy"] == whole["class accuracy"]
    monkeypatch.setattr(stored, "sample_stage", None)  # a third time nothing is drawn
    _run(score, shared, *arguments)


def test_super_resolution_is_compared_with_bicubic_at_two_sizes(
    score: ModuleType, tiny_cascade: Path, shared: Path, datasets: Path, tmp_path: Path
) -> None:
    pytest.importorskip("skimage", reason="extra 'evaluate' not installed")
    given = ["--super-resolution", tiny_cascade, "--photos", datasets / "32"]
    _run(score, shared, *given, "--enlargements", 3, "--output", tmp_path)
    found = _record(tmp_path)["enlarged"]
    sizes = [(one["source"], one["low"], one["high"], one["photos"]) for one in found]
    subjects = "DreamBooth's subjects"
    assert sizes == [("32", 16, 32, 3), (subjects, 16, 32, 1), (subjects, 32, 64, 1)]
    # The network is of random weights: anything that was made with care is nearer to the photo.
    assert all(one["bicubic"]["psnr"] > one["stage"]["psnr"] for one in found)
    assert len(list(tmp_path.glob("*.png"))) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--photos", "x"], "Give both --super-resolution"),
        (["--stage", "sr32"], "'sr32' enlarges pictures; give it with --super-resolution"),
        (["--stage", "sr64"], "no stage 'sr64'; it has base16, sr32"),
        (["--reference", "{datasets}/32"], "32 pixels wide but stage 'base16' makes 16"),
        (["--images", "9"], "has 8 pictures; draw no more"),
        (["--classes", "{datasets}/none"], "There is no"),
        (["--super-resolution", "{cascade}/base16", "--photos", "{datasets}/32"], "is a base"),
        (["--super-resolution", "{cascade}", "--photos", "{datasets}/16"], "'sr32' makes 32"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(
    score: ModuleType,
    tiny_cascade: Path,
    shared: Path,
    datasets: Path,
    tmp_path: Path,
    change: list[str],
    message: str,
) -> None:
    words = [word.format(datasets=datasets, cascade=tiny_cascade) for word in change]
    arguments = [*_base(tiny_cascade, datasets, tmp_path), "--images", 4, *words]
    with pytest.raises(UserError, match=message):
        _run(score, shared, *arguments)
    assert not list(tmp_path.rglob("*.npy"))
