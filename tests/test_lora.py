"""A cascade with LoRA files: which stage they belong to, and what they make of its weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cascade.errors import UserError
from cascade.lora import parse_lora, with_lora
from cascade.pipeline import Cascade


def test_files_are_sorted_by_stage_and_merged(tiny_cascade: Path, tmp_path: Path) -> None:
    cascade = Cascade.load(tiny_cascade)
    weight = cascade.stage("base16").network.get_parameter("text_projection.weight")
    down, up = torch.ones(2, weight.shape[1]), torch.full((weight.shape[0], 2), 0.5)
    names = (f"text_projection.lora_{side}.weight" for side in "AB")
    save_file(dict(zip(names, (down, up), strict=True)), tmp_path / "lora.safetensors")
    file = str(tmp_path / "lora.safetensors")
    for value in (file, f"base16={file}"):
        merged = with_lora(cascade, parse_lora([value], cascade), scale=0.5)
        found = merged.stage("base16").network.get_parameter("text_projection.weight")
        assert torch.allclose(found, weight + 0.5)
        assert merged.stage("sr32") is cascade.stage("sr32")
    with pytest.raises(UserError, match="There is no LoRA file"):
        parse_lora(["sr64=nothing"], cascade)
    with pytest.raises(UserError, match="NaN or infinite"):  # though no factor is
        with_lora(cascade, parse_lora([file], cascade), scale=1e300)
