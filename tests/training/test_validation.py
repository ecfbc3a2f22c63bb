"""The pictures a run draws of itself."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cascade.config.folders import read_stage_config
from cascade.data.batch import Batch
from cascade.diffusion.noise import derive_seed
from cascade.sampling import Tables
from cascade.stage import Stage
from cascade.text.prompts import PromptTable
from cascade.training.distributed import Processes
from cascade.training.other_stages import other_stages
from cascade.training.panels import TIMES, X0Panel
from cascade.training.validation import Draw, SampleGrid, Validation, cascade_grid

Read = Callable[[str, int], np.ndarray]


@pytest.fixture(scope="module")
def tables(tiny_cascade: Path) -> Tables:
    embedding = torch.randn(3, 128, generator=torch.Generator().manual_seed(0))
    table = PromptTable({None: torch.zeros(1, 128), "a dog": embedding})
    return {read_stage_config(tiny_cascade / "base16").text: table}


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """The pixels of a picture that a run has drawn."""

    def read(name: str, step: int) -> np.ndarray:
        with Image.open(tmp_path / name / f"step-{step:06d}.png") as picture:
            return np.array(picture).astype(int)

    return read


def _rows(stage: Stage, tables: Tables) -> X0Panel:
    """Three rows of pictures of one colour each."""
    side, low_res = stage.config.size, stage.config.low_res
    colours = torch.tensor([-0.5, 0.0, 0.5]).view(3, 1, 1, 1)
    images = colours.expand(3, 3, side, side).contiguous()
    batch = Batch(
        images=images,
        low_res=None if low_res is None else images[..., : low_res.size, : low_res.size],
        prompts=("a dog", None, "a dog"),
        seeds=tuple(derive_seed(0, position) for position in range(3)),
        weights=torch.ones(3),
        terms=("mse",) * 3,
        positions=3,
    )
    return X0Panel(batch, tables[stage.config.text].rows(batch.prompts))


def test_the_same_weights_draw_the_same_pictures(
    tmp_path: Path, tiny_cascade: Path, tables: Tables, read: Read
) -> None:
    stage = Stage.load(tiny_cascade / "base16")
    stage.network.train()
    grid = SampleGrid(["a dog"] * 4, tables, columns=2)
    validation = Validation([grid, _rows(stage, tables)], tmp_path)
    for step in (5, 10):
        validation(stage, step)
    assert stage.network.training
    for name, shape in (("samples", (34, 34, 3)), ("x0", (6 * 18 - 2, 6 * 18 - 2, 3))):
        assert read(name, 5).shape == shape
        assert (read(name, 5) == read(name, 10)).all()


def test_super_resolution_shows_what_it_enlarged_above_it(
    tmp_path: Path, tiny_cascade: Path, tables: Tables, read: Read
) -> None:
    low_res = torch.full((2, 3, 16, 16), 1.0)
    low_res[1] = -1.0
    grid = SampleGrid(["a dog"] * 2, tables, columns=2, low_res=low_res)
    stage = Stage.load(tiny_cascade / "sr32")
    Validation([grid], tmp_path)(stage, 1)
    assert not stage.network.training
    sheet = read("samples", 1)
    assert sheet.shape == (66, 66, 3)
    assert (sheet[:32, :32] == 255).all()
    assert (sheet[:32, 34:] == 0).all()


@pytest.mark.parametrize("trained", ["base16", "sr32"])
def test_the_other_stages_complete_the_pictures(
    tmp_path: Path, tiny_cascade: Path, tables: Tables, read: Read, trained: str
) -> None:
    folders = [tiny_cascade / name for name in ("base16", "sr32")]
    stages = [(folder, read_stage_config(folder)) for folder in folders]
    stage = Stage.load(tiny_cascade / trained)
    others = other_stages(stages, stage.config)
    prompts = ["a dog"] * 3
    grid = (
        SampleGrid(prompts, tables, 2, later=tuple(others.later))
        if trained == "base16"
        else cascade_grid(prompts, tables, 2, others)
    )
    Validation([grid], tmp_path)(stage, 1)
    # Whichever stage is in training, here by the cascade's own weights: the same whole cascade.
    small = SampleGrid(prompts, tables, 2)(Stage.load(folders[0]))["samples"]
    whole = read("cascade", 1)
    assert whole.shape == (4 * 34 - 2, 2 * 34 - 2, 3)
    first = np.array(small.crop((0, 0, 16, 16))).repeat(2, axis=0).repeat(2, axis=1)
    assert (
        np.abs(whole[:32, :32] - first).max() <= 1
    )  # the base's, and below it what was made of it
    enlarged = SampleGrid(["a dog"], tables, 1, _tensor(small.crop((0, 0, 16, 16))))
    made = np.array(enlarged(Stage.load(folders[1]))["samples"])[34:].astype(int)
    assert np.abs(whole[34:66, :32] - made).max() <= 2  # of the base's rounded pixels


def _tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1


@pytest.mark.parametrize("trained", ["base16", "sr32"])
def test_panels_predict_the_clean_picture_at_every_level(
    tiny_cascade: Path, tables: Tables, trained: str
) -> None:
    stage = Stage.load(tiny_cascade / trained)
    panel = _rows(stage, tables)
    calls = 0

    def knows(x: Tensor, t: Tensor, *cond: Tensor | None) -> Tensor:
        """Answer with the v whose clean picture is the row's own."""
        nonlocal calls
        calls += 1
        sigma = stage.schedule.sigma(t.double()).float().view(-1, 1, 1, 1)
        scale = (1 + sigma**2).sqrt()
        return (x / scale - panel.rows.images) * scale / sigma

    drawn = panel(stage.with_network(knows))["x0"]
    assert calls == len(TIMES)
    side = stage.config.size + 2
    cells = np.array(drawn).astype(int)
    for row, colour in enumerate((64, 128, 191)):
        above, below = (
            cells[(2 * row + at) * side :][: side - 2].reshape(side - 2, -1, 3) for at in (0, 1)
        )
        assert np.abs(above[:, : side - 2] - colour).max() <= 1
        for column in range(1, 1 + len(TIMES)):
            assert np.abs(below[:, column * side :][:, : side - 2] - colour).max() <= 1
            assert above[:, column * side :][:, : side - 2].std() > 10 * column
        given = below[:, : side - 2]
        assert (given == 255).all() == (stage.config.low_res is None)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_draw_a_part_each_and_the_first_writes(
    tmp_path: Path, tiny_cascade: Path, tables: Tables, read: Read, world: int
) -> None:
    stage = Stage.load(tiny_cascade / "base16")
    later = (tiny_cascade / "sr32",)
    parts: dict[tuple[int, int], Tensor] = {}

    class Part(Processes):
        asked = 0

        def all_gather(self, part: Tensor, count: int) -> Tensor:
            Part.asked += 1
            parts[Part.asked, self.rank] = part
            others = [parts.get((Part.asked, rank), part) for rank in range(world)]
            return torch.cat(others)[:count]

    def draws(processes: Processes) -> list[Draw]:
        panel = _rows(stage, tables)
        grid = SampleGrid(["a dog"] * 4, tables, 2, later=later, processes=processes)
        return [grid, X0Panel(panel.rows, panel.text, processes)]

    Validation(draws(Processes(0, 1, torch.device("cpu"))), tmp_path)(stage, 3)
    for rank in reversed(range(world)):  # the first one last: it has what the others drew
        here, Part.asked = Part(rank, world, torch.device("cpu")), 0
        Validation(draws(here), tmp_path / "all", here)(stage, 3)
        assert (tmp_path / "all").exists() == (rank == 0)
    # As many calls in every process, and of as many rows.
    for asked in range(1, Part.asked + 1):
        assert len({len(parts[asked, rank]) for rank in range(world)}) == 1
    for name in ("samples", "cascade", "x0"):
        several = read(f"all/{name}", 3)
        assert np.abs(read(name, 3) - several).max() <= 1  # a picture in another batch
