"""A cascade folder as a library: what is read, what it takes, when it has changed."""

import os
import shutil
from pathlib import Path

import pytest
import torch

from cascade.config.sample import SampleOptions
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade.serve.folder import CascadeFolder
from cascade.serve.library import Library
from cascade.serve.models import Models


@pytest.fixture
def folder(tiny_cascade: Path, tmp_path: Path) -> Path:
    """A copy of the small cascade."""
    return Path(shutil.copytree(tiny_cascade, tmp_path / "cascade"))


def test_a_folder_is_opened_once_until_it_is_closed(folder: Path) -> None:
    library: Library = CascadeFolder(folder, "cpu")
    assert library.names() == [""]
    assert not library.exact
    assert [config.name for config in library.configs("")] == ["base16", "sr32"]
    assert library.manifest("").name == "tiny"
    opened = library.open("")
    assert library.open("") is opened
    library.close("")
    library.close("")
    assert library.open("") is not opened
    drawn = opened.sample("a dog", [3]).tensor  # who holds it goes on
    assert torch.equal(drawn, Cascade.load(folder).sample("a dog", [3]).tensor)


def test_it_says_what_its_weights_take(folder: Path) -> None:
    library = CascadeFolder(folder, "cpu", encoder_mode="float32")
    size = library.weight_bytes("")
    opened = library.open("")
    modules = [stage.network for stage in opened.stages]
    values = [value.numel() for one in modules for value in one.state_dict().values()]
    encoder = sum(file.stat().st_size for file in (folder / "text").glob("*.safetensors"))
    assert library.weight_bytes("") == 0
    # The encoder's file has a header, and is in half precision.
    assert 0 <= size - 4 * sum(values) <= 2 * encoder
    library.close("")
    assert library.weight_bytes("") == size
    layerwise = CascadeFolder(folder, "cpu", encoder_mode="layerwise")
    assert layerwise.weight_bytes("") == 4 * sum(values)


def test_its_revision_changes_with_what_is_on_disk(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(folder)
    library = CascadeFolder(link, "cpu")
    first = library.revision("")
    assert library.revision("") == first
    weights = folder / "sr32" / "model.safetensors"
    os.utime(weights, ns=(1, 1))
    second = library.revision("")
    assert second != first
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    link.unlink()
    link.symlink_to(other)
    assert library.revision("") not in (first, second)


def test_a_changed_folder_is_drawn_from_without_a_new_start(folder: Path) -> None:
    models = Models({"tiny": CascadeFolder(folder, "cpu")})
    old = models.acquire("tiny")
    assert old is not None
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folder / "sr32" / name, folder / "sr32" / f"{name}.new")
    file = folder / "sr32" / "config.json"
    file.write_text(
        file.read_text().replace('"steps":2', '"steps":7').replace('"steps": 2', '"steps": 7')
    )
    models.refresh()
    request = models.request("tiny", "a dog", [0], SampleOptions())
    assert request.settings[1].sampler.steps == 7
    new = models.acquire("tiny")
    assert new is not None
    assert [one.cascade.configs[1].sampler.steps for one in (old, new)] == [2, 7]
    file.write_text("{")
    models.refresh()  # it is damaged: what was opened is drawn from
    assert models.acquire("tiny") is new
    shutil.rmtree(folder)
    assert models.names() == []
    models.refresh()
    models.release(old)


def test_what_is_no_cascade_is_refused_at_the_start(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no cascade"):
        CascadeFolder(tmp_path / "nothing", "cpu")
    with pytest.raises(UserError, match="no device"):
        CascadeFolder("mini", "abacus")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no cascade"):
        CascadeFolder(tmp_path / "empty", "cpu")
