"""Weight files: found by the rules of diffusers, written tensor by tensor."""

import json
import math
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from cascade.config.folders import cascade_folder, read_manifest
from cascade.errors import UserError
from cascade.files import read_index
from cascade.formats.deepfloyd import read_pipelines
from cascade.formats.export import export_cascade
from cascade.formats.importing import import_cascade
from cascade.formats.weights import Weights, find_weights, require_output, write_weights
from cascade.tensors import Header
from cascade.text.files import EncoderFiles

NAME = "diffusion_pytorch_model"
TENSORS = {
    "b.weight": torch.arange(12.0).reshape(3, 4),
    "a.weight": torch.randn(5, generator=torch.Generator().manual_seed(0)),
    "a.half": torch.ones(3, dtype=torch.float16),
    "é": torch.zeros(2, 0, 3),
}


def headers(tensors: dict[str, torch.Tensor]) -> dict[str, Header]:
    return {name: Header(value.dtype, tuple(value.shape)) for name, value in tensors.items()}


def test_the_file_is_safetensors_own_to_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.safetensors"
    write_weights(path, headers(TENSORS), TENSORS.__getitem__, {"config": '{"a": "b"}'})
    assert path.read_bytes() == save(TENSORS, metadata={"config": '{"a": "b"}'})
    assert [file.name for file in path.parent.iterdir()] == ["x.safetensors"]
    again = load_file(path)
    assert all(torch.equal(again[name], value) for name, value in TENSORS.items())


def test_views_are_written_as_what_they_show(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    view = {"v": torch.arange(12.0).reshape(3, 4).T[1:]}
    write_weights(path, headers(view), view.__getitem__, {})
    assert torch.equal(load_file(path)["v"], view["v"])


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    wrong = {"a": Header(torch.float32, (3,))}
    with pytest.raises(ValueError, match="'a' is"):
        write_weights(tmp_path / "x.safetensors", wrong, lambda _: torch.zeros(4), {})
    assert not any(tmp_path.iterdir())


def test_only_one_tensor_is_asked_for_at_a_time(tmp_path: Path) -> None:
    """Each is written before the next is read, so that a stage never lies in memory as a whole."""
    path = tmp_path / "x.safetensors"
    sizes: list[int] = []

    def read(name: str) -> torch.Tensor:
        (partial,) = tmp_path.glob(".*.partial")
        sizes.append(partial.stat().st_size)
        return torch.full((1 << 20,), float(name))

    write_weights(path, {str(i): Header(torch.float32, (1 << 20,)) for i in range(4)}, read, {})
    # All but Python's small write buffer has reached the file.
    written = [after - before for before, after in pairwise(sizes)]
    assert min(written) > (4 << 20) - (1 << 17)


def test_a_tensor_that_is_read_stays_in_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(1 << 20)}, path)
    tensor = Weights({"a": path})["a"]
    with path.open("r+b") as file:
        file.seek(-4, 2)
        file.write(torch.ones(1).numpy().tobytes())
    assert tensor[-1] == 1  # a copy would not have seen the change


@pytest.mark.parametrize(
    ("present", "variant", "found"),
    [
        ([f"{NAME}.safetensors", f"{NAME}.fp16.safetensors"], None, f"{NAME}.safetensors"),
        ([f"{NAME}.safetensors", f"{NAME}.fp16.safetensors"], "fp16", f"{NAME}.fp16.safetensors"),
        ([f"{NAME}.fp16.safetensors"], None, f"{NAME}.fp16.safetensors"),
    ],
)
def test_variants(tmp_path: Path, present: list[str], variant: str | None, found: str) -> None:
    for name in present:
        save_file({"a": torch.zeros(1)}, tmp_path / name)
    assert find_weights(tmp_path, variant) == {"a": tmp_path / found}


def test_weights_that_cannot_be_found(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="it holds nothing"):
        find_weights(tmp_path)
    (tmp_path / f"{NAME}.bin").write_bytes(b"")
    with pytest.raises(UserError, match=rf"it holds {NAME}\.bin"):
        find_weights(tmp_path)
    for kind in ("fp16", "bf16"):
        save_file({"a": torch.zeros(1)}, tmp_path / f"{NAME}.{kind}.safetensors")
    with pytest.raises(UserError, match="variants bf16, fp16; say which"):
        find_weights(tmp_path)
    with pytest.raises(UserError, match="of variant 'int8'"):
        find_weights(tmp_path, "int8")


def test_shards(tmp_path: Path) -> None:
    index = tmp_path / f"{NAME}.safetensors.index.json"
    first, second = (f"{NAME}-0000{i}-of-00002.safetensors" for i in (1, 2))
    index.write_text(f'{{"weight_map": {{"a": "{first}", "b": "{second}"}}}}')
    save_file({"a": torch.zeros(1)}, tmp_path / first)
    files = find_weights(tmp_path)
    assert files == {"a": tmp_path / first, "b": tmp_path / second}
    with pytest.raises(UserError, match=f"{second} is missing"):
        Weights(files)
    save_file({"c": torch.zeros(1)}, tmp_path / second)
    with pytest.raises(UserError, match="does not hold 'b'"):
        Weights(files)
    save_file({"b": torch.zeros(1, dtype=torch.int64)}, tmp_path / second)
    with pytest.raises(UserError, match=r"'b' in .* is of type I64"):
        Weights(files)
    index.write_text("{}")
    with pytest.raises(UserError, match="no 'weight_map'"):
        find_weights(tmp_path)


def test_a_full_disk_is_seen_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file({"a": torch.zeros(10)}, tmp_path / "x.safetensors")
    weights = Weights({"a": tmp_path / "x.safetensors"})
    require_output(tmp_path / "new" / "deeper", [weights])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=40 + 39))
    require_output(tmp_path / "new", [weights])
    with pytest.raises(UserError, match="its disk has"):
        require_output(tmp_path / "new", [weights, weights])


def spoil(path: Path, number: float) -> None:
    with safe_open(path, framework="pt") as file:
        told = file.metadata()
    tensors = load_file(path)
    tensors[max(tensors)].view(-1)[0] = number
    save_file(tensors, path, told)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_no_number_goes_neither_in_nor_out(
    my_pipelines: tuple[Path, Path], tmp_path: Path, number: float
) -> None:
    found = read_pipelines(my_pipelines)
    ours = import_cascade(found, tmp_path / "ours", copy_text_encoder=True)
    new = tmp_path / "new"
    out = (ours / "base8", ours / "sr32", ours / "text")
    into = (my_pipelines[0] / "unet", my_pipelines[1] / "unet", my_pipelines[0] / "text_encoder")
    for folder in (*out, *into):
        (path,) = folder.glob("*.safetensors")
        whole = path.read_bytes()
        spoil(path, number)
        move = (
            partial(export_cascade, ours, read_manifest(ours), new)
            if folder in out
            else partial(import_cascade, found, new, copy_text_encoder=True)
        )
        with pytest.raises(UserError, match="holds NaN or infinite numbers"):
            move()
        assert not new.exists(), folder
        path.write_bytes(whole)


def test_a_full_disk_leaves_neither_a_cascade_nor_pipelines(
    my_pipelines: tuple[Path, Path],
    full_disk: Callable[[int], AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    ours = import_cascade(read_pipelines(my_pipelines), tmp_path / "ours", copy_text_encoder=True)
    new = tmp_path / "new"
    for size in (100, 3000, 50_000, 1_000_000):  # a note, a setting, the vocabulary, the weights
        for write in (
            lambda: import_cascade(read_pipelines(my_pipelines), new, copy_text_encoder=True),
            lambda: export_cascade(ours, read_manifest(ours), new),
        ):
            with full_disk(size), pytest.raises(UserError, match="cannot be written"):
                write()
            assert not new.exists()


PLACES = ("../a.safetensors", "/etc/passwd", "..", ".", "", "sub/a.safetensors", 3, None)


@pytest.mark.parametrize("place", PLACES)
def test_shards_lie_in_the_folder_of_their_index(tmp_path: Path, place: object) -> None:
    for index in (f"{NAME}.safetensors.index.json", "model.safetensors.index.json"):
        (tmp_path / index).write_text(json.dumps({"weight_map": {"shared.weight": place}}))
        with pytest.raises(UserError, match="which is no file of its folder"):
            read_index(tmp_path / index)
    with pytest.raises(UserError, match="which is no file of its folder"):
        find_weights(tmp_path)
    for name in ("config.json", "spiece.model"):
        shutil.copy(cascade_folder("mini") / "text" / name, tmp_path)
    with pytest.raises(UserError, match="which is no file of its folder"):
        EncoderFiles.open(tmp_path)
