"""Mistakes: one clear sentence, exit status 2, no traceback, nothing begun and nothing left."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from cascade.config.folders import read_stage_config
from cascade.config.train import TrainConfig
from cascade.errors import UserError
from cascade.training.resources import require_disk

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "mini-base64.toml"
Command = Callable[..., Any]
Refusal = Callable[..., str]


class Usage(NamedTuple):
    """What `shutil.disk_usage` returns."""

    total: int
    used: int
    free: int


def listing(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def refused(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run a command that must be refused at once; return its one sentence."""

    def work(*_: object, **__: object) -> None:
        raise AssertionError("work was begun")

    for place in ("dreambooth.personalise.train", "dreambooth.concepts.make_pictures"):
        monkeypatch.setattr(f"cascade.{place}", work)
    monkeypatch.setattr("cascade.training.pretrain.train", work)
    monkeypatch.setattr("cascade.sampling.sample_stage", work)

    def run(*arguments: object) -> str:
        before = listing(tmp_path)
        done = command(*arguments)
        assert done.status == 2
        assert "Traceback" not in done.err
        *_, last = done.err.strip().splitlines()  # transformers' progress bar may come first
        assert last.startswith("Error: ")
        sentence = last.removeprefix("Error: ")
        assert sentence.endswith(".")
        assert listing(tmp_path) == before
        return str(sentence)

    return run


@pytest.fixture
def dreambooth(refused: Refusal, tiny_cascade: Path, photos: Path, tmp_path: Path) -> Refusal:
    """`cascade dreambooth` on the small cascade, with some flags replaced; must be refused."""

    def run(**changes: object) -> str:
        flags: dict[str, object] = {
            "cascade": tiny_cascade,
            "instance_data_dir": photos,
            "class_noun": "dog",
            "output_dir": tmp_path / "new",
            "masks": "none",
        } | changes
        arguments = [part for name, value in flags.items() for part in (f"--{name}", value)]
        sentence = refused("dreambooth", *arguments)
        assert not (tmp_path / "new").exists()
        return sentence

    return run


@pytest.fixture
def mine(tiny_cascade: Path, tmp_path: Path) -> Path:
    """A copy of the small cascade, to be damaged."""
    return shutil.copytree(tiny_cascade, tmp_path / "mine")


def fill(folder: Path, **files: Image.Image | bytes) -> Path:
    folder.mkdir()
    for name, content in files.items():
        path = folder / name.replace("_", ".")
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content.save(path)
    return folder


def photo(width: int = 64, height: int = 64) -> Image.Image:
    return Image.new("RGB", (width, height), "red")


def test_photo_folders(dreambooth: Refusal, tmp_path: Path, photos: Path) -> None:
    def told(folder: Path) -> str:
        return dreambooth(instance_data_dir=folder)

    gone = told(tmp_path / "[gone]")
    assert f"There is no folder {tmp_path / '[gone]'};" in gone
    assert "holds no pictures;" in told(fill(tmp_path / "empty"))
    only_text = fill(tmp_path / "text", notes_txt=b"the dog", clip_mov=b"\0")
    assert "(it holds clip.mov, notes.txt)" in told(only_text)
    corrupt = fill(tmp_path / "corrupt", a_png=photo(), b_png=b"no picture")
    assert "b.png cannot be read as a picture" in told(corrupt)
    small = fill(tmp_path / "small", a_png=photo(), b_png=photo(31, 64), c_png=photo(8, 8))
    assert "stage of 32 pixels: b.png (31x64), c.png (8x8);" in told(small)
    assert "There is no folder" in told(photos / "0.png")


def test_smaller_photos_will_do_for_the_base_alone(dreambooth: Refusal, tmp_path: Path) -> None:
    folder = fill(tmp_path / "small", a_png=photo(20, 20))
    assert "stage of 32 pixels" in dreambooth(instance_data_dir=folder)
    # The stage that is tuned counts: this goes on to the next mistake.
    told = dreambooth(instance_data_dir=folder, stages="base16", class_noun=" ")
    assert "class noun is empty" in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"class_noun": ""}, "The class noun is empty; give"),
        ({"identifier": ""}, "The identifier is empty; take one"),
        ({"identifier": "xqzwvkjxqzwvkj"}, "is split into"),
        ({"identifier": "犬"}, "characters the vocabulary does not know"),
        ({"instance_prompt": "a photo of a dog"}, "does not name the subject"),
        ({"instance_prompt": "a {idenifier} dog"}, "placeholder that is not known"),
        ({"class_prompt": "a {"}, "placeholder that is not known"),
        ({"class_variations": "a red {dog}"}, "placeholder that is not known"),
        ({"stages": "sr64"}, "no stage 'sr64'; it has base16, sr32"),
        ({"stages": "base16,"}, "no stage ''"),
        ({"ema_decay": 1}, "ema_decay"),
        ({"cascade": "no/such"}, "There is no cascade at no/such"),
    ],
)
def test_flags_that_cannot_work(
    dreambooth: Refusal, flags: dict[str, object], message: str
) -> None:
    assert message in dreambooth(**flags)


def test_an_identifier_that_the_cleaning_destroys(dreambooth: Refusal, mine: Path) -> None:
    path = mine / "base16" / "config.json"
    values = json.loads(path.read_text())
    values["text"]["cleaning"] = "deepfloyd"
    path.write_text(json.dumps(values))
    told = dreambooth(cascade=mine, identifier="xyz123")
    assert "deletes or mangles the identifier 'xyz123'" in told
    assert "becomes 'a dog'" in told


FILES = (
    "cascade.json",
    "base16/config.json",
    "base16/model.safetensors",
    "sr32/config.json",
    "sr32/model.safetensors",
    "text/config.json",
    "text/model.safetensors",
    "text/spiece.model",
)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
@pytest.mark.parametrize("name", FILES)
def test_a_cascade_that_is_not_whole(
    dreambooth: Refusal, refused: Refusal, mine: Path, tmp_path: Path, name: str, damage: str
) -> None:
    path = mine / name
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    pictures = ("--prompt", "a dog", "--output", tmp_path / "out")
    for told in (
        dreambooth(cascade=mine),
        refused("sample", "--cascade", mine, *pictures),
    ):
        # transformers tells no more of a damaged file than its folder.
        assert path.name in told or str(path.parent) in told
    assert not (tmp_path / "out").exists()
    if not name.startswith("text"):
        assert path.name in refused("info", mine)


def test_a_damaged_super_resolution_stage_is_found_though_only_the_base_is_tuned(
    dreambooth: Refusal, mine: Path
) -> None:
    (mine / "sr32" / "model.safetensors").write_bytes(b"torn")
    assert "sr32/model.safetensors is damaged" in dreambooth(cascade=mine, stages="base16")


def test_output_folders(dreambooth: Refusal, tmp_path: Path) -> None:
    other = fill(tmp_path / "other", thesis_txt=b"mine")
    assert "is not empty and holds no run" in dreambooth(output_dir=other)
    (tmp_path / "file").write_text("mine")
    told = dreambooth(output_dir=tmp_path / "file")
    assert f"Nothing can be written into {tmp_path / 'file'} (File exists)" in told
    run = tmp_path / "run"
    (run / "runs" / "base16" / "checkpoints" / "step-1").mkdir(parents=True)
    (run / ".lock").touch()
    (run / "run.json").write_text('{"class_noun": "cat"}')
    told = dreambooth(output_dir=run)
    assert 'class_noun is "cat" there and "dog" now' in told
    (run / "run.json").write_text("{")
    assert "run.json is not whole JSON" in dreambooth(output_dir=run)


def test_a_full_disk(dreambooth: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**40, 1000))
    told = dreambooth(output_dir=tmp_path / "new")
    assert "but 0.0 MiB are free" in told
    assert str(tmp_path / "new") in told


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        *(
            ((f"--{flag}", value), f"Invalid value for '--{flag}': It is empty")
            for flag in ("cascade", "last-stage", "bundle", "embeddings", "subject")
            for value in ("", " ")
        ),
        (("--output", ""), "Invalid value for '--output' / '--output-dir' / '-o': It is empty"),
        (("--num-images", 10**8), "--num-images (num_images): must be less"),
        (("--batch-size", 10**6), "--batch-size (batch_size): must be less"),
        (("--size", 16384), "--size (size): must be less"),
        (("--size", 100), "makes pictures of 16, 32, 64, 128 pixels"),
        (("--timesteps", "fast28"), "there is no list 'fast28'"),
        (("--guidance", "nan"), "--guidance (guidance): must be a finite"),
        (("--guidance", "inf"), "--guidance (guidance): must be a finite"),
        (("--negative-prompt", "a cat", "--guidance", 1), "a negative prompt does nothing"),
        (("--last-stage", "sr64"), "no stage 'sr64'"),
        (("--lora", "sr64=x"), "There is no LoRA file sr64=x; give FILE for stage 'base16'"),
        (("--lora-scale", 2), "lora_scale belongs to lora"),
        *(
            (("--device", device), f"There is no device '{device}'")
            for device in ("meta", "graphics", "cuda:99")
        ),
        (("--output", "/dev/null/pictures"), "Nothing can be written into /dev/null/pictures"),
    ],
)
def test_what_cannot_be_drawn_is_told_before_weights_are_loaded(
    command: Command,
    tiny_cascade: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[object, ...],
    message: str,
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("cascade.pipeline.Opened.load", load)
    monkeypatch.chdir(tmp_path)
    done = command("sample", "--cascade", tiny_cascade, "--prompt", "a dog", *flags)
    assert done.status == 2
    assert message in " ".join(done.err.split())
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset of two pictures of 64 pixels."""
    folder = fill(tmp_path / "data", captions_jsonl=b'["a dog"]\n["a cat"]\n')
    np.save(folder / "images.npy", np.zeros((2, 3, 64, 64), dtype=np.uint8))
    return folder


def test_training(
    refused: Refusal,
    dataset: Path,
    tiny_cascade: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = tmp_path / "run"

    def told(**changes: object) -> str:
        settings = {"data.folder": dataset, "output": output, "text_encoder": tiny_cascade / "text"}
        given = (settings | changes).items()
        flags = [part for name, value in given for part in ("--set", f"{name}={value}")]
        sentence = refused("train", CONFIG, *flags)
        assert not output.exists()
        return sentence

    assert "did you mean 'steps'?" in told(**{"train.stepz": 3})
    assert "has no images.npy" in told(**{"data.folder": tmp_path / "gone"})
    assert "no text encoder folder" in told(text_encoder=tmp_path / "gone")
    assert "set unet.text_width to 128" in told(**{"stage.unet.text_width": 64})
    assert "stage 'base64' makes 128" in told(**{"stage.size": 128})
    assert "another shape than [stage.unet]" in told(initial_weights=tiny_cascade / "base16")
    assert "config.json is missing" in told(initial_weights=tmp_path / "gone")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 2**40, 1000))
    assert "MiB are free" in told()
    gone = tmp_path / "gone.toml"
    assert f"There is no configuration file {gone};" in refused("train", gone)


def test_what_an_earlier_start_left_counts_as_room(
    tiny_cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [(read_stage_config(tiny_cascade / "base16"), TrainConfig(steps=1, batch_size=1))]
    weights = 4 * 255_859  # bytes of this network
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, 9 * weights))
    with pytest.raises(UserError, match="The run needs about"):
        require_disk(tmp_path, runs)
    (tmp_path / "checkpoint").write_bytes(bytes(weights))
    require_disk(tmp_path, runs)


def test_a_console_shows_the_sentence_alone(tmp_path: Path) -> None:
    path = tmp_path / "[stage.unet]"
    done = subprocess.run(
        [sys.executable, "-m", "cascade", "train", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"Error: There is no configuration file {path}; check the path.\n"


def test_files_that_are_no_pictures_are_skipped_and_said(
    command: Command, tiny_cascade: Path, tmp_path: Path
) -> None:
    folder = fill(tmp_path / "mixed", a_png=photo(), notes_txt=b"the dog", clip_mov=b"\0")
    places = ("--instance_data_dir", folder, "--output_dir", tmp_path / "new", "--masks", "none")
    said = ("--instance_prompt", "a [toy] {identifier} {class_noun}", "--dry-run")
    done = command("dreambooth", "--cascade", tiny_cascade, *places, "--class_noun", "dog", *said)
    assert done.status == 0
    assert "Skipped, no pictures: clip.mov, notes.txt" in done.out
    assert "1 photos of 'a [toy] " in done.out  # brackets are no markup
    assert "tuning base16, sr32." in done.out
