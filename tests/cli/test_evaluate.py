"""`cascade evaluate`, of a tiny cascade: what is kept, what goes on, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cascade.config.folders import read_stage_config
from cascade.config.stage import SubjectConfig
from cascade.evaluate import scoring, stored
from cascade.evaluate.judge import FOLDER, Judge
from cascade.evaluate.judge_config import Attribute, JudgeConfig
from cascade.evaluate.judge_network import JudgeNetwork
from cascade.evaluate.stage import METRICS, Shown

Command = Callable[..., Any]


class MeanColour:
    """Features of width 3."""

    name = "mean colour"

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


@pytest.fixture(autouse=True)
def _no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("InceptionFID", "EfficientNetLite0"):
        monkeypatch.setattr(scoring, name, MeanColour)


@pytest.fixture
def judged(tiny_cascade: Path, tmp_path: Path) -> Path:
    """A cascade with a judge of random weights."""
    folder = shutil.copytree(tiny_cascade, tmp_path / "judged")
    words = {"ball": ("ball",), "dog": ("dog",)}
    config = JudgeConfig(attributes={"concept": Attribute(words=words)}, widths=(8, 8, 8, 8))
    torch.manual_seed(0)
    Judge(config, JudgeNetwork(config.widths, [2]).eval()).save(folder / FOLDER)
    return folder


@pytest.fixture
def tuned(tiny_cascade: Path, tmp_path: Path) -> Path:
    """A cascade that knows a subject."""
    folder = shutil.copytree(tiny_cascade, tmp_path / "tuned")
    config = read_stage_config(folder / "base16")
    subject = SubjectConfig(identifier="xyz", class_noun="dog")
    text = config.model_copy(update={"subjects": (subject,)}).model_dump_json()
    (folder / "base16" / "config.json").write_text(text)
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Twelve pictures of 16 pixels: balls and dogs."""
    folder = tmp_path / "held16"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3, 16, 16), dtype=np.uint8)
    np.save(folder / "images.npy", pixels)
    captions = [[f"a {noun}", "other words"] for noun in ("ball", "dog") * 6]
    (folder / "captions.jsonl").write_text("".join(f"{json.dumps(c)}\n" for c in captions))
    return folder


def _record(folder: Path, name: str) -> dict[str, Any]:
    (path,) = (p for p in (folder / f"{name}.json", folder / f"{name}.trial.json") if p.is_file())
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def test_a_base_stands_beside_other_true_pictures(
    command: Command, judged: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stops(*_: object, **__: object) -> Tensor:
        raise KeyboardInterrupt

    def brightness(shown: Shown) -> float:
        """How bright they are."""
        return float(shown.images.mean())

    # A new metric is one function and one entry.
    monkeypatch.setitem(METRICS, "brightness", brightness)  # type: ignore[arg-type]
    flags = ("--dataset", dataset, "--images", 5, "--guidance", 1, "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(stored, "sample_stage", stops)
        stopped = command("evaluate", "stage", judged, *flags)
    assert stopped.status == 130
    assert "the same command goes on" in stopped.err
    done = command("evaluate", "stage", judged, *flags)
    assert done.status == 0
    assert "| other true pictures |" in done.out
    assert " brightness |" in done.out
    assert "brightness: How bright they are." in done.out
    figures = _record(tmp_path / "out", "base16")["figures"]
    assert figures["sampler"]["guidance"] == 1
    scores = figures["scores"]
    assert list(scores) == ["base16", "other true pictures"]
    assert 0 < scores["other true pictures"]["FID"] < scores["base16"]["FID"]
    assert scores["base16"]["concept, %"] in (0, 20, 40, 60, 80, 100)
    assert scores["base16"]["PSNR, dB"] is None
    assert 0 < scores["base16"]["brightness"] < 255
    with Image.open(tmp_path / "out" / "base16.jpg") as sheet:
        assert sheet.height > 128
    monkeypatch.setattr(stored, "sample_stage", None)  # a second time nothing is drawn
    again = command("evaluate", "stage", judged, *flags)
    assert again.status == 0
    assert _record(tmp_path / "out", "base16")["figures"] == figures
    assert command("evaluate", "stage", judged, *flags, "--no-fid").status == 0
    assert _record(tmp_path / "out", "base16")["figures"]["scores"]["base16"]["FID"] is None


def test_super_resolution_stands_beside_bicubic_at_any_size(
    command: Command, tiny_cascade: Path, photos: Path, tmp_path: Path
) -> None:
    pytest.importorskip("skimage", reason="extra 'evaluate' not installed")
    for side in (32, 64):
        folder = tmp_path / str(side)
        flags = ("--photos", photos, "--side", side, "--images", 2, "--output", folder)
        assert command("evaluate", "stage", tiny_cascade, "--stage", "sr32", *flags).status == 0
        scores = _record(folder, "sr32")["figures"]["scores"]
        # The network is of random weights: anything made with care is nearer to the photo.
        assert scores["bicubic"]["PSNR, dB"] > scores["sr32"]["PSNR, dB"]
        assert scores["bicubic"]["FID"] is None


def test_cascades_are_scored_beside_the_one_before(
    command: Command, tuned: Path, tiny_cascade: Path, photos: Path, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="extra 'evaluate' not installed")
    few = ("--images", 2, "--elsewhere", 0, "--masks", "none", "--output", tmp_path / "out")
    flags = ("--photos", photos, "--held-out", photos / "3.png", "--before", tiny_cascade, *few)
    done = command("evaluate", "subject", tuned, *flags)
    assert done.status == 0, done.err
    figures = _record(tmp_path / "out", "subject")["figures"]
    assert figures["identifier"] == "xyz"
    assert list(figures["scores"]) == ["base16", "sr32"]
    assert list(figures["scores"]["base16"]) == ["before", "tuned"]
    # The weights are the same; of the subject's prompt it enlarges otherwise.
    assert figures["scores"]["sr32"]["tuned"]["prior drift"] == pytest.approx(0, abs=1e-6)
    assert "before" in (tmp_path / "out" / "subject.html").read_text()
    assert {path.name for path in (tmp_path / "out").glob("*.jpg")} == {
        "photos.jpg", "subject.jpg", "class.jpg", "enlarged-sr32.jpg"
    }  # fmt: skip
    record = next((tmp_path / "out").glob("subject*.json"))
    both = command("evaluate", "mean", record, record)
    assert "Means over 2 records" in both.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stage", "{tiny}"], "one of --dataset and --photos"),
        (["stage", "{tiny}", "--photos", "{photos}"], "compared with captioned pictures"),
        (["stage", "{tiny}", "--dataset", "{data}", "--stage", "sr64"], "no stage 'sr64'"),
        (["stage", "{tiny}", "--dataset", "{data}", "--stage", "sr32"], "16 pixels wide but stage"),
        (["stage", "{tiny}", "--dataset", "{data}", "--sampler", "none"], "none"),
        (
            ["stage", "{tiny}", "--stage", "sr32", "--photos", "{photos}", "--side", "31"],
            "multiple of 2",
        ),
        (["subject", "{tiny}", "--photos", "{photos}", "--masks", "none"], "tuned on no subject"),
        (["subject", "{tuned}", "{tuned}", "--photos", "{photos}", "--masks", "none"], "'tuned'"),
        (["mean", "{photos}/0.png"], "holds no results"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(
    command: Command,
    tiny_cascade: Path,
    tuned: Path,
    dataset: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    message: str,
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("cascade.stage.Stage.load", never)
    places = {"tiny": tiny_cascade, "tuned": tuned, "data": dataset, "photos": photos}
    monkeypatch.chdir(tmp_path)
    done = command("evaluate", *(word.format(**places) for word in words))
    assert done.status == 2
    assert message in done.err
    assert not (tmp_path / "runs").exists()
