"""LoRA files: merged exactly under peft's and diffusers' names, refused where they do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from cascade.config.unet import UNetConfig
from cascade.errors import UserError
from cascade.formats.keys import meta_tensors
from cascade.formats.lora import ADAPTER, read_lora
from cascade.model.adapters import adapt, merged_state
from cascade.model.unet import UNet

CONFIG = UNetConfig(
    channels=(16, 32),
    blocks=(1, 1),
    attention=("none", "joint"),
    head_channels=16,
    text_width=24,
    context_width=32,
    time_width=32,
    pool_heads=4,
    norm_groups=8,
    text_norm="group",
)
QKV = "decoder.0.attention.qkv"  # diffusers': up_blocks.0.attentions.0
TEXT = "decoder.0.attention.text_kv"
CONV = "encoder.0.block.conv1"


@pytest.fixture
def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(value.shape, generator=generator)
        for name, value in meta_tensors(CONFIG).items()
    }


def pair(outputs: int, inputs: tuple[int, ...], rank: int = 2) -> tuple[Tensor, Tensor]:
    """A and B."""
    generator = torch.Generator().manual_seed(outputs + rank)
    taps = (1,) * (len(inputs) - 1)
    return (
        torch.randn(rank, *inputs, generator=generator),
        torch.randn(outputs, rank, *taps, generator=generator),
    )


def product(b: Tensor, a: Tensor) -> Tensor:
    return (b.double().flatten(1) @ a.double().flatten(1)).view(len(b), *a.shape[1:])


def merge_lora(
    state: dict[str, Tensor], files: list[Path], config: UNetConfig = CONFIG, **how: Any
) -> dict[str, Tensor]:
    with torch.device("meta"):
        network = UNet(config)
    network.load_state_dict(state, assign=True)
    for path in files:
        for layer, adapter in read_lora(path, network, config, **how):
            adapt(network, layer, adapter)
    return merged_state(network)


@pytest.mark.parametrize("prefix", ["", "base_model.model.", "unet."])
def test_pefts_names_are_merged_exactly(
    state: dict[str, Tensor], tmp_path: Path, prefix: str
) -> None:
    a, b = pair(96, (32,))
    conv_a, conv_b = pair(16, (16, 3, 3))
    path = tmp_path / "lora.safetensors"
    tensors = {
        f"{prefix}{QKV}.lora_A.weight": a,
        f"{prefix}{QKV}.lora_B.weight": b,
        f"{prefix}{CONV}.lora_A.weight": conv_a,
        f"{prefix}{CONV}.lora_B.weight": conv_b,
    }
    save_file(tensors, path)
    merged = merge_lora(state, [path], scale=0.5)
    wanted = (state[f"{QKV}.weight"].double() + 0.5 * product(b, a)).float()
    assert torch.equal(merged[f"{QKV}.weight"], wanted)
    wanted = (state[f"{CONV}.weight"].double() + 0.5 * product(conv_b, conv_a)).float()
    assert torch.equal(merged[f"{CONV}.weight"], wanted)
    changed = {name for name in state if not torch.equal(merged[name], state[name])}
    assert changed == {f"{QKV}.weight", f"{CONV}.weight"}
    assert merged.keys() == state.keys()


@pytest.mark.parametrize(
    "form", ["{0}.lora.{1}.weight", "{0}_lora.{1}.weight", "unet.{0}.lora_{2}.weight"]
)
@pytest.mark.parametrize(
    ("theirs", "ours", "rows"),
    [
        ("to_q", QKV, slice(0, 32)),
        ("to_v", QKV, slice(64, 96)),
        ("add_v_proj", TEXT, slice(32, 64)),
        ("to_out", "decoder.0.attention.out", slice(0, 32)),
    ],
)
def test_diffusers_names_find_their_rows(
    state: dict[str, Tensor], tmp_path: Path, form: str, theirs: str, ours: str, rows: slice
) -> None:
    a, b = pair(32, (32,))
    module = f"up_blocks.0.attentions.0.processor.{theirs}"
    path = tmp_path / "lora.safetensors"
    save_file({form.format(module, "down", "A"): a, form.format(module, "up", "B"): b}, path)
    merged = merge_lora(state, [path], config=CONFIG)[f"{ours}.weight"]
    before = state[f"{ours}.weight"]
    assert torch.equal(merged[rows], (before[rows].double() + product(b, a)).float())
    others = torch.ones(len(before), dtype=torch.bool)
    others[rows] = False
    assert torch.equal(merged[others], before[others])


@pytest.mark.parametrize("place", ["tensor", "adapter"])
def test_alpha_scales_by_the_rank(state: dict[str, Tensor], tmp_path: Path, place: str) -> None:
    a, b = pair(96, (32,), rank=4)
    path = tmp_path / "lora.safetensors"
    tensors = {f"{QKV}.lora_A.weight": a, f"{QKV}.lora_B.weight": b}
    if place == "tensor":
        tensors[f"{QKV}.alpha"] = torch.tensor(8.0)
    else:
        (tmp_path / ADAPTER).write_text(json.dumps({"lora_alpha": 8, "r": 4}), encoding="utf-8")
    save_file(tensors, path)
    merged = merge_lora(state, [path])[f"{QKV}.weight"]
    wanted = (state[f"{QKV}.weight"].double() + 2 * product(b, a)).float()
    assert torch.equal(merged, wanted)


def test_files_add_up(state: dict[str, Tensor], tmp_path: Path) -> None:
    a, b = pair(96, (32,))
    paths = [tmp_path / f"{index}.safetensors" for index in range(2)]
    for path, sign in zip(paths, (1, -1), strict=True):
        save_file({f"{QKV}.lora_A.weight": a, f"{QKV}.lora_B.weight": sign * b}, path)
    merged = merge_lora(state, paths)[f"{QKV}.weight"]
    # Each file rounds once; the sum of the two is what was there, up to these roundings.
    torch.testing.assert_close(merged, state[f"{QKV}.weight"], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"mystery.lora_A.weight": (2, 8), "mystery.lora_B.weight": (8, 2)}, "changes 'mystery'"),
        ({f"{QKV}.lora_A.weight": (2, 32)}, "only half"),
        ({f"{QKV}.lora_A.weight": (2, 8), f"{QKV}.lora_B.weight": (96, 2)}, r"shape \(96, 8\)"),
        ({f"{QKV}.lora_A.weight": (2, 32), f"{QKV}.lora_B.weight": (96, 3)}, "only half"),
        ({f"{QKV}.weight": (96, 32)}, "no LoRA factor"),
        ({f"{QKV}.alpha": ()}, "no whole LoRA"),
        ({f"{QKV}.alpha": (2,)}, "no LoRA factor"),
        ({f"{QKV}.lora_A.weight": (2,)}, r"shape \(2,\)"),
        ({f"{QKV}.lora_A.weight": (0, 32), f"{QKV}.lora_B.weight": (96, 0)}, r"shape \(0, 32\)"),
        ({"text_encoder.q.lora.down.weight": (2, 8)}, "changes the text encoder too"),
    ],
)
def test_what_does_not_fit_is_refused(
    state: dict[str, Tensor], tmp_path: Path, tensors: dict[str, tuple[int, ...]], message: str
) -> None:
    path = tmp_path / "lora.safetensors"
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, path)
    with pytest.raises(UserError, match=message):
        merge_lora(state, [path], config=CONFIG)


def test_a_pickle_is_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    torch.save({"a": torch.ones(2)}, path)
    with pytest.raises(UserError, match="save its tensors with safetensors"):
        merge_lora(state, [path])


def test_an_adapter_that_is_no_plain_lora_is_refused(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    a, b = pair(96, (32,))
    path = tmp_path / "lora.safetensors"
    save_file({f"{QKV}.lora_A.weight": a, f"{QKV}.lora_B.weight": b}, path)
    settings = {"lora_alpha": 8, "use_dora": True}
    (tmp_path / ADAPTER).write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(UserError, match="use_dora"):
        merge_lora(state, [path])


@pytest.mark.parametrize(
    "alpha",
    ["true", "NaN", "-Infinity", '"8"', "null", "[8]", "1" + 400 * "0", "1" + 5000 * "0"],
)
def test_an_alpha_that_is_no_number_is_refused(
    state: dict[str, Tensor], tmp_path: Path, alpha: str
) -> None:
    a, b = pair(96, (32,))
    path = tmp_path / "lora.safetensors"
    save_file({f"{QKV}.lora_A.weight": a, f"{QKV}.lora_B.weight": b}, path)
    (tmp_path / ADAPTER).write_text(f'{{"lora_alpha": {alpha}}}', encoding="utf-8")
    with pytest.raises(UserError, match=ADAPTER):
        merge_lora(state, [path])


def test_what_changes_the_text_encoder_can_be_left_out(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    a, b = pair(96, (32,))
    path = tmp_path / "lora.safetensors"
    own = {f"unet.{QKV}.lora_A.weight": a, f"unet.{QKV}.lora_B.weight": b}
    save_file(own, path)
    wanted = merge_lora(state, [path])[f"{QKV}.weight"]
    save_file(
        own | {"text_encoder.q.lora_A.weight": a.clone(), "lora_te_x.alpha": torch.ones(2)}, path
    )
    with pytest.raises(UserError, match="--lora-unet-only"):
        merge_lora(state, [path])
    merged = merge_lora(state, [path], unet_only=True)
    assert torch.equal(merged[f"{QKV}.weight"], wanted)
