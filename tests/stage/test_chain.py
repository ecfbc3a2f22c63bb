"""A cascade's stages must follow on each other, and read its text encoder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cascade.config.base import merged
from cascade.config.folders import MANIFEST
from cascade.errors import UserError
from cascade.pipeline import Cascade


@pytest.mark.parametrize(
    ("stages", "changes", "message"),
    [
        (["sr32", "base16"], {}, "enlarges 16 px but it is the first"),
        (["base16", "again"], {}, "two stages are called 'base16'"),
        (["base16", "again"], {"name": "again"}, "makes pictures from nothing but the one before"),
        (["again"], {"unet": {"text_width": 64}}, "text of width 64 but the encoder's is 128"),
    ],
)
def test_stages_that_do_not_follow_on_each_other_are_named(
    tiny_cascade: Path, tmp_path: Path, stages: list[str], changes: dict[str, Any], message: str
) -> None:
    folder = Path(shutil.copytree(tiny_cascade, tmp_path / "cascade"))
    again = Path(shutil.copytree(folder / "base16", folder / "again")) / "config.json"
    again.write_text(json.dumps(merged(json.loads(again.read_text()), changes)))
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | {"stages": stages}))
    with pytest.raises(UserError, match=message):
        Cascade.load(folder)
