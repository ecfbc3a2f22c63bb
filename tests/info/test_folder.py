"""What a folder says of itself, and whether it is whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from typer.testing import CliRunner

from cascade.cli.app import app
from cascade.config.folders import CascadeManifest
from cascade.config.stage import SubjectConfig
from cascade.errors import UserError
from cascade.info.folder import describe
from cascade.stage import Stage


def shown(path: Path) -> str:
    console = Console(width=150, record=True, markup=False, emoji=False, quiet=True)
    with console.capture() as text:
        console.quiet = False
        console.print(describe(str(path)).table())
    return text.get()


def test_what_each_stage_is(tiny_cascade: Path) -> None:
    text = shown(tiny_cascade)
    for part in ("tiny", "base16", "sr32", "16 x 16", "32 x 32", "0.26 M", "0.14 M"):
        assert part in text
    assert "dpmpp_2m, 3 steps, guidance 3" in text
    assert "time 0 to time 1" in text
    assert "at low resolution" in text
    assert text.count("icence") == 1
    assert "Licence: not stated" in text
    assert "Subject" not in text
    found = describe(str(tiny_cascade))
    files = [path for path in tiny_cascade.rglob("*/*") if path.is_file()]
    assert found.disk == sum(path.stat().st_size for path in files)
    assert found.faults == ()


def test_the_subjects_and_the_licence_as_written(tiny_cascade: Path, tmp_path: Path) -> None:
    base = Stage.load(tiny_cascade / "base16")
    subjects = tuple(SubjectConfig(identifier=name, class_noun="dog") for name in ("[v]", "sec"))
    changes = {"subjects": subjects, "licence": "[research] only"}
    base.with_network(base.network, base.config.model_copy(update=changes)).save(tmp_path / "base")
    manifest = CascadeManifest(name="[mine]", stages=("base",), licence="[all] rights")
    (tmp_path / "cascade.json").write_text(manifest.model_dump_json())
    text = shown(tmp_path)
    for part in ("a [v] dog", "a sec dog", "[research] only", "[mine]", "Licence: [all] rights"):
        assert part in text
    assert "none at" in text  # the text encoder
    assert describe(str(tmp_path)).faults == ()


def reorder(folder: Path) -> None:
    write(folder / "cascade.json", stages=["sr32", "base16"])


def write(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def widen(folder: Path) -> None:
    path = folder / "base16" / "config.json"
    unet: dict[str, Any] = json.loads(path.read_text())["unet"]
    write(path, unet=unet | {"channels": [32, 64]})


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "order": (reorder, "put the stages of cascade.json in order"),
    "two names": (
        lambda folder: (
            shutil.copytree(folder / "base16", folder / "again"),
            write(folder / "cascade.json", stages=["base16", "again"]),
        ),
        "two stages are called 'base16'",
    ),
    "size": (
        lambda folder: write(folder / "base16" / "config.json", size=17),
        "must be a multiple",
    ),
    "width": (widen, "do not fit their config.json"),
    "weights": (lambda folder: (folder / "sr32" / "model.safetensors").unlink(), "is missing"),
    "half": (
        lambda folder: (folder / "sr32" / "model.safetensors").write_bytes(b"12345678"),
        "is damaged",
    ),
    "stage": (lambda folder: shutil.rmtree(folder / "sr32"), "sr32/config.json is missing"),
    "encoder's weights": (
        lambda folder: save_file({"a": torch.ones(1)}, folder / "text" / "model.safetensors"),
        "lacks",
    ),
    "encoder": (lambda folder: (folder / "text" / "model.safetensors").unlink(), "no model.safet"),
}


@pytest.mark.parametrize(("spoil", "fault"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["table", "json"])
def test_what_is_not_whole_is_shown_and_said(
    tiny_cascade: Path,
    tmp_path: Path,
    spoil: Callable[[Path], object],
    fault: str,
    flags: list[str],
) -> None:
    folder = Path(shutil.copytree(tiny_cascade, tmp_path / "mine"))
    spoil(folder)
    done = CliRunner().invoke(app, ["info", str(folder), *flags])
    assert isinstance(done.exception, UserError)
    assert fault in str(done.exception)
    assert "is not whole" in str(done.exception)
    assert "tiny" in done.stdout
    if flags:
        assert fault in " ".join(json.loads(done.stdout)["faults"])


def test_a_settings_file_is_told_what_to_add(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["info", str(tmp_path / "x.toml")])
    assert "add --memory" in str(done.exception)
