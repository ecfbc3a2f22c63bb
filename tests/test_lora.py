"""A cascade with LoRA files: which stage they belong to, and what they make of its weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from cascade.cli.app import app
from cascade.errors import UserError
from cascade.lora import lora_files, with_lora
from cascade.pipeline import Cascade
from cascade.stage import Stage


@pytest.fixture
def lora(tiny_cascade: Path, tmp_path: Path) -> str:
    """Return a file that adds 1 to every weight of the base's text projection."""
    weight = Stage.load(tiny_cascade / "base16").network.get_parameter("text_projection.weight")
    down, up = torch.ones(2, weight.shape[1]), torch.full((weight.shape[0], 2), 0.5)
    names = (f"text_projection.lora_{side}.weight" for side in "AB")
    save_file(dict(zip(names, (down, up), strict=True)), tmp_path / "lora.safetensors")
    return str(tmp_path / "lora.safetensors")


def test_files_are_sorted_by_stage_and_merged(tiny_cascade: Path, lora: str) -> None:
    cascade = Cascade.load(tiny_cascade)
    weight = cascade.stage("base16").network.get_parameter("text_projection.weight")
    for value in (lora, f"base16={lora}"):
        merged = with_lora(cascade, lora_files([value], cascade.configs), scale=0.5)
        found = merged.stage("base16").network.get_parameter("text_projection.weight")
        assert torch.allclose(found, weight + 0.5)
        assert merged.stage("sr32") is cascade.stage("sr32")
    with pytest.raises(UserError, match="There is no LoRA file"):
        lora_files(["sr64=nothing"], cascade.configs)
    with pytest.raises(UserError, match="NaN or infinite"):  # though no factor is
        with_lora(cascade, lora_files([lora], cascade.configs), scale=1e300)


def test_a_command_samples_with_a_file(tiny_cascade: Path, tmp_path: Path, lora: str) -> None:
    common = ["sample", "--cascade", str(tiny_cascade), "--prompt", "a dog", "--num-images", "1"]
    output = ["--output", str(tmp_path / "images")]
    for number, flags in enumerate(([], ["--lora", lora], ["--lora", lora, "--lora-scale", "0.5"])):
        assert CliRunner().invoke(app, [*common, *output, *flags]).exit_code == 0
        # Weights of their own are images of their own: nothing is taken for what is there.
        images = {path.read_bytes() for path in (tmp_path / "images" / "sr32").iterdir()}
        assert len(images) == number + 1
