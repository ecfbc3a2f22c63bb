"""A cascade's stages must follow on each other, and read its text encoder."""

import json
import shutil
from pathlib import Path

import pytest

from cascade.config.folders import MANIFEST
from cascade.errors import UserError
from cascade.pipeline import Cascade


@pytest.fixture
def cascade(tiny_cascade: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_cascade, tmp_path / "cascade"))


def test_stages_in_the_wrong_order_are_named(cascade: Path) -> None:
    manifest = json.loads((cascade / MANIFEST).read_text())
    manifest["stages"].reverse()
    (cascade / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="enlarges 16 px but it is the first"):
        Cascade.load(cascade)


def test_two_bases_are_refused(cascade: Path) -> None:
    manifest = json.loads((cascade / MANIFEST).read_text())
    base = manifest["stages"][0]
    manifest["stages"] = [base, "again"]
    shutil.copytree(cascade / base, cascade / "again")
    config = json.loads((cascade / "again" / "config.json").read_text())
    (cascade / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=f"two stages are called '{base}'"):
        Cascade.load(cascade)
    (cascade / "again" / "config.json").write_text(json.dumps(config | {"name": "again"}))
    with pytest.raises(UserError, match="makes pictures from nothing but the one before"):
        Cascade.load(cascade)


def test_a_foreign_text_encoder_is_named(cascade: Path) -> None:
    base = cascade / json.loads((cascade / MANIFEST).read_text())["stages"][0] / "config.json"
    config = json.loads(base.read_text())
    config["unet"]["text_width"] = 64
    base.write_text(json.dumps(config))
    with pytest.raises(UserError, match="text of width 64 but the encoder's is 128"):
        Cascade.load(cascade)
