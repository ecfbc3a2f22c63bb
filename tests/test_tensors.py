"""Weights that are none are refused wherever weights are read, with the reason."""

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade.config.stage import TextConfig
from cascade.errors import UserError
from cascade.evaluate.judge import Judge
from cascade.evaluate.judge_config import Attribute, JudgeConfig
from cascade.evaluate.judge_network import JudgeNetwork
from cascade.stage import Stage
from cascade.tensors import headers, read_weights, require_finite, weight_shapes
from cascade.text.encoder import TextEncoder

Load = Callable[[Path], object]


@pytest.fixture(params=["stage", "text encoder", "judge"])
def checkpoint(
    request: pytest.FixtureRequest, tiny_cascade: Path, tmp_path: Path
) -> tuple[Path, Load]:
    """A folder with weights, and what loads it."""
    folder = tmp_path / "mine"
    if request.param == "judge":
        config = JudgeConfig(
            attributes={"concept": Attribute(words={"dog": ("dog",)})}, widths=(8, 8, 8, 8)
        )
        Judge(config, JudgeNetwork(config.widths, list(config.counts.values()))).save(folder)
        return folder, Judge.load
    if request.param == "stage":
        return Path(shutil.copytree(tiny_cascade / "base16", folder)), Stage.load
    return Path(shutil.copytree(tiny_cascade / "text", folder)), TextEncoder.load


def spoil(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """Change the first tensor of a file in place; returns its name."""
    tensors = load_file(path)
    name = min(tensors)
    save_file(tensors | {name: change(tensors[name])}, path, {"format": "pt"})
    return name.removeprefix("encoder.")


def put(number: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(weight: torch.Tensor) -> torch.Tensor:
        weight.view(-1)[-1] = number
        return weight

    return change


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_one_weight_that_is_no_number_is_named(
    checkpoint: tuple[Path, Load], number: float
) -> None:
    folder, load = checkpoint
    load(folder)
    name = spoil(folder / "model.safetensors", put(number))
    with pytest.raises(UserError, match=f"{name}' in .* NaN or infinite"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.float8_e4m3fn])
def test_weights_that_are_no_floats_are_named(
    checkpoint: tuple[Path, Load], dtype: torch.dtype
) -> None:
    folder, load = checkpoint
    name = spoil(folder / "model.safetensors", lambda weight: weight.to(dtype))
    with pytest.raises(UserError, match=f"{name}' in .* is of type .*, and weights are floats"):
        load(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_every_float_is_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    save_file({"a": torch.ones(3, dtype=dtype)}, tmp_path / "w.safetensors")
    assert headers(tmp_path / "w.safetensors")["a"].dtype == dtype
    read = read_weights(tmp_path / "w.safetensors")
    assert torch.equal(read["a"], torch.ones(3))
    assert read["a"].dtype == torch.float32


class Marker:
    """What runs when it is read: a pickle is never loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('a pickle was run')",)


def saved(**options: bool) -> Callable[[Path], None]:
    return lambda path: torch.save({"a": torch.ones(3)}, path, **options)


OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "torch.save": (saved(), "a zip archive, .*save_file"),
    "old torch.save": (saved(_use_new_zipfile_serialization=False), "a pickle, .*save_file"),
    "hostile pickle": (lambda path: path.write_bytes(pickle.dumps(Marker())), "a pickle"),
    "git lfs": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        "Git LFS's pointer .* 'git lfs pull'",
    ),
    "web page": (lambda path: path.write_text("\n<!DOCTYPE html><html>"), "a web page"),
    "gguf": (lambda path: path.write_bytes(b"GGUF\3\0\0\0"), "a GGUF file"),
    "nothing": (lambda path: path.write_bytes(b""), "is damaged"),
    "noise": (lambda path: path.write_bytes(b"\1" * 100), "is damaged"),
}


@pytest.mark.parametrize(("write", "message"), OTHERS.values(), ids=OTHERS)
def test_files_of_other_formats_are_recognised(
    checkpoint: tuple[Path, Load], write: Callable[[Path], object], message: str
) -> None:
    folder, load = checkpoint
    write(folder / "model.safetensors")
    for read in (lambda: load(folder), lambda: weight_shapes(folder / "model.safetensors")):
        with pytest.raises(UserError, match=message) as caught:
            read()
        assert "\n" not in str(caught.value)


def test_what_is_no_number_is_not_published(tiny_cascade: Path, tmp_path: Path) -> None:
    stage = Stage.load(tiny_cascade / "sr32")
    name, weight = list(stage.network.named_parameters())[-1]
    with torch.no_grad():
        weight.view(-1)[0] = math.nan
    with pytest.raises(UserError, match=f"'{name}' in the stage 'sr32'"):
        stage.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    require_finite({"empty": torch.empty(0)}, "nowhere")


def test_a_text_encoder_that_gives_no_numbers_is_named(tiny_cascade: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_cascade / "text", tmp_path / "text"))
    spoil(folder / "model.safetensors", put(math.nan))
    with pytest.raises(UserError, match="answers NaN or infinite"):
        TextEncoder.load(folder, mode="layerwise").embed(["a dog"], TextConfig(max_length=8))


@pytest.mark.parametrize(
    "key",
    ["num_layers", "d_model", "d_ff", "d_kv", "num_heads", "layer_norm_epsilon", "dense_act_fn"],
)
@pytest.mark.parametrize("value", [10**6, 2**62, 10**30, 0, -1, 1.5, True, "12", None, [1]])
def test_a_text_encoder_of_absurd_settings_is_not_built(
    tiny_cascade: Path, tmp_path: Path, key: str, value: object
) -> None:
    folder = Path(shutil.copytree(tiny_cascade / "text", tmp_path / "text"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=rf"'{key}' is|lacks \d+ weights"):
        TextEncoder.load(folder)
