"""The pictures a run draws of itself."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cascade.stage import Stage
from cascade.text.prompts import PromptTable
from cascade.training.distributed import Processes
from cascade.training.validation import ValidationGrid


@pytest.fixture(scope="module")
def prompts() -> PromptTable:
    embedding = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    return PromptTable({None: torch.zeros(1, 128), "a dog": embedding})


def test_the_same_weights_draw_the_same_grid(
    tmp_path: Path, tiny_cascade: Path, prompts: PromptTable
) -> None:
    stage = Stage.load(tiny_cascade / "base16")
    stage.network.train()
    grid = ValidationGrid(["a dog"] * 4, prompts, tmp_path, columns=2)
    grid(stage, 5)
    grid(stage, 10)
    assert stage.network.training
    first, second = (tmp_path / "samples" / f"step-{step:06d}.png" for step in (5, 10))
    assert Image.open(first).size == (2 * 16 + 2, 2 * 16 + 2)
    assert first.read_bytes() == second.read_bytes()


def test_super_resolution_shows_what_it_enlarged_above_it(
    tmp_path: Path, tiny_cascade: Path, prompts: PromptTable
) -> None:
    low_res = torch.full((2, 3, 16, 16), 1.0)
    low_res[1] = -1.0
    grid = ValidationGrid(["a dog"] * 2, prompts, tmp_path, columns=2, low_res=low_res)
    stage = Stage.load(tiny_cascade / "sr32")
    grid(stage, 1)
    assert not stage.network.training
    with Image.open(tmp_path / "samples" / "step-000001.png") as sheet:
        assert sheet.size == (2 * 32 + 2, 2 * 32 + 2)
        white = sheet.crop((0, 0, 32, 32)).getextrema()
        black = sheet.crop((34, 0, 66, 32)).getextrema()
    assert white == ((255, 255),) * 3
    assert black == ((0, 0),) * 3


@pytest.mark.parametrize("world", [2, 3])
def test_processes_draw_a_part_each_and_the_first_writes(
    tmp_path: Path, tiny_cascade: Path, prompts: PromptTable, world: int
) -> None:
    stage = Stage.load(tiny_cascade / "base16")
    ValidationGrid(["a dog"] * 4, prompts, tmp_path / "one", columns=2)(stage, 3)
    parts: dict[int, Tensor] = {}

    class Part(Processes):
        def all_gather(self, part: Tensor, count: int) -> Tensor:
            parts[self.rank] = part
            return torch.cat([parts.get(rank, part) for rank in range(world)])[:count]

    for rank in reversed(range(world)):  # the first one last: it has what the others drew
        here = Part(rank, world, torch.device("cpu"))
        ValidationGrid(["a dog"] * 4, prompts, tmp_path / "all", 2, processes=here)(stage, 3)
    assert len({len(part) for part in parts.values()}) == 1  # as many calls in every process
    one, several = (
        np.array(Image.open(tmp_path / name / "samples" / "step-000003.png")).astype(int)
        for name in ("one", "all")
    )
    assert np.abs(one - several).max() <= 1  # a picture in another batch
