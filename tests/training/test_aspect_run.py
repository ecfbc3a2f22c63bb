"""Training on a pack that is sorted by aspect ratio: each step's rows have one of its shapes."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascade.config.data import DataConfig
from cascade.config.folders import read_stage_config
from cascade.config.pack import PackConfig
from cascade.config.train import PretrainConfig, TrainConfig
from cascade.data.captioned import CaptionedSamples
from cascade.data.opening import data_identity, open_samples
from cascade.data.pack import ASPECTS
from cascade.data.stream import RankSlice, Stream
from cascade.errors import UserError
from cascade.model.unet import UNet
from cascade.packing.run import pack
from cascade.training.distributed import Processes
from cascade.training.parallel import spread_stage
from cascade.training.pretrain import pretrain
from cascade.training.report import read_log
from cascade.training.weights import FreshWeights

BATCH = 4
# By the caption: width and height of the files, C H W that a stage of 16 pixels is trained on, and
# how many there are.
PICTURES: dict[str, tuple[tuple[int, int], tuple[int, int, int], int]] = {
    "wide": ((50, 32), (3, 14, 20), 9),  # of 3:2
    "square": ((32, 31), (3, 16, 16), 7),
    "tall": ((24, 49), (3, 22, 12), 5),  # of 1:2
}

Run = Callable[..., Path]
Open = Callable[..., CaptionedSamples]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for kind, ((width, height), _, count) in PICTURES.items():
        for number in range(count):
            pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{kind}-{number}.png")
            (folder / f"{kind}-{number}.txt").write_text(f"{kind} {number}")
    return folder


@pytest.fixture(scope="module")
def sorted_pack(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("packs") / "pack"
    pack(PackConfig(sources=(str(photos),), output=output, workers=1, by_aspect=True))
    return output


@pytest.fixture(scope="module")
def mixed_pack(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("packs") / "pack"
    pack(PackConfig(sources=(str(photos),), output=output, workers=1))
    return output


@pytest.fixture
def samples(tiny_cascade: Path, sorted_pack: Path) -> Open:
    """Open a pack, the sorted one if no other is named, as the rows of a stage."""

    def opened(stage: str = "base16", **changes: Any) -> CaptionedSamples:
        settings = {"folder": sorted_pack, "shapes": "aspect", "caption_dropout": 0.0} | changes
        config = read_stage_config(tiny_cascade / stage)
        return open_samples(DataConfig(**settings), config, seed=3, batch_size=BATCH)

    return opened


def test_each_global_batch_has_one_shape_whatever_the_processes(samples: Open) -> None:
    source = samples()
    for world, accumulation in ((1, 1), (2, 1), (2, 2), (4, 1)):
        shapes, rows = [], []
        for rank in range(world):
            part = RankSlice(BATCH, accumulation, rank, world)
            batches = list(islice(Stream(source).batches(0, part), 30 * accumulation))
            shapes.append([tuple(one.images.shape[1:]) for one in batches[::accumulation]])
            rows += [row for one in batches for row in zip(one.prompts, one.seeds, strict=True)]
            for batch in batches:
                # Each picture has the shape of its own ratio.
                kinds = {str(prompt).split()[0] for prompt in batch.prompts}
                assert [PICTURES[kind][1] for kind in kinds] == [tuple(batch.images.shape[1:])]
        assert all(one == shapes[0] for one in shapes)
        whole = source.decide(range(30 * BATCH))
        assert Counter(rows) == Counter((one.prompt, one.seed) for one in whole)
        assert set(shapes[0]) == {shape for _, shape, _ in PICTURES.values()}


def test_every_picture_comes_once_in_each_epoch_of_its_ratio(samples: Open) -> None:
    chosen = samples().decide(range(100 * BATCH))
    by_kind: dict[str, list[str]] = defaultdict(list)
    for one in chosen:
        by_kind[str(one.prompt).split()[0]].append(str(one.prompt))
    for kind, (_, _, count) in PICTURES.items():
        shown = by_kind[kind]
        assert len(shown) > 2 * count
        for first in range(0, len(shown) - count + 1, count):
            assert len(set(shown[first : first + count])) == count


def test_ratios_come_as_often_as_their_pictures(samples: Open) -> None:
    source = samples()
    cycle = range(0, 4096 * BATCH, BATCH)  # after which shares are exact, to one batch
    found = Counter(str(one.prompt).split()[0] for one in source.decide(cycle))
    for kind, (_, _, count) in PICTURES.items():
        assert abs(found[kind] - 4096 * count / 21) <= 1


def test_a_set_s_weight_is_shared_out_to_its_ratios(
    samples: Open, sorted_pack: Path, array: Path
) -> None:
    sets = ({"folder": sorted_pack, "weight": 3.0}, {"folder": array, "weight": 1.0})
    source = samples(folder=None, sets=sets)
    # An array's pictures are squares, and come in batches of their own.
    assert [one.size for one in source.sources] == [
        *((12, 22), (16, 16), (20, 14)),
        (16, 16),
    ]
    assert [one.weight for one in source.sources] == pytest.approx([15 / 21, 1, 27 / 21, 1])
    for start in range(0, 40 * BATCH, BATCH):
        assert len({one.source for one in source.decide(range(start, start + BATCH))}) == 1


@pytest.fixture(scope="module")
def array(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("array")
    pictures = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)
    np.save(folder / "images.npy", pictures)
    (folder / "captions.jsonl").write_text('["a dog"]\n' * 5)
    return folder


def test_an_array_alone_is_square_and_unsorted_packs_are_refused(
    samples: Open, array: Path, mixed_pack: Path
) -> None:
    source, plain = samples(folder=array), samples(folder=array, shapes="square")
    assert torch.equal(source.rows(range(8)).images, plain.rows(range(8)).images)
    with pytest.raises(UserError, match="not sorted by aspect ratio; pack it again with --by-asp"):
        samples(folder=mixed_pack)


def test_super_resolution_stages_are_refused(samples: Open) -> None:
    with pytest.raises(UserError, match="'sr32' is trained on what it enlarges, which is square"):
        samples("sr32")


def test_a_sorted_pack_trains_squares_too(samples: Open) -> None:
    source = samples(shapes="square")
    assert source.rows(range(21)).images.shape == (21, 3, 16, 16)
    assert data_identity(source) != data_identity(samples())


@pytest.fixture
def run(tmp_path: Path, tiny_cascade: Path, sorted_pack: Path) -> Run:
    """Train the tiny cascade's base on the sorted pack; return its weights' file."""

    def run(output: str, data: dict[str, Any] | None = None, **train: Any) -> Path:
        settings = {"steps": 6, "batch_size": BATCH, "log_every": 1, "checkpoint_every": 3}
        values = {
            "stage": read_stage_config(tiny_cascade / "base16").model_dump(),
            "train": settings | train,
            "data": {"folder": sorted_pack, "shapes": "aspect"} | (data or {}),
            "text_encoder": tiny_cascade / "text",
            # More rows than a step has: of three ratios.
            "validation": {"images_per_prompt": 1, "x0_rows": 16 * BATCH},
            "output": tmp_path / output,
        }
        return pretrain(PretrainConfig.model_validate(values)) / "model.safetensors"

    return run


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(run: Run, tmp_path: Path) -> None:
    whole = run("whole", keep_checkpoints=True).read_bytes()
    run("half", steps=3, keep_checkpoints=True)
    assert run("half", keep_checkpoints=True).read_bytes() == whole
    assert run("square", {"shapes": "square"}).read_bytes() != whole
    with Image.open(tmp_path / "whole" / "samples" / "step-000006.png") as picture:
        assert picture.size == (16, 16)  # what validation draws is square
    with Image.open(tmp_path / "whole" / "x0" / "step-000006.png") as panel:
        width, height = (panel.width + 2) // 6 - 2, panel.height + 2
    # The rows of the first one's shape, two rows of six cells for each.
    (shape,) = (shape for _, shape, _ in PICTURES.values() if shape[2] == width)
    assert height % (2 * (shape[1] + 2)) == 0
    assert 1 < height // (2 * (shape[1] + 2)) < 16 * BATCH


@pytest.mark.slow
@pytest.mark.dist
def test_workers_and_accumulation_see_the_same_rows(run: Run) -> None:
    whole = run("thread")
    assert run("workers", {"workers": 2}).read_bytes() == whole.read_bytes()
    parts = run("parts", gradient_accumulation_steps=2)
    losses = [
        [line["loss"] for line in read_log(one.parents[1] / "log.jsonl")] for one in (whole, parts)
    ]
    # The same rows in two passes: sums in another order, over six steps.
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


@pytest.mark.slow
def test_blocks_are_compiled_for_every_shape(
    tiny_cascade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced: list[torch.fx.GraphModule] = []

    def backend(
        graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor], **_: object
    ) -> Callable[..., object]:
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    stage = read_stage_config(tiny_cascade / "base16").model_copy(update={"size": 64})
    config = TrainConfig(steps=1, batch_size=1, compile=True)
    alone = Processes(0, 1, torch.device("cpu"))
    network = spread_stage(stage, FreshWeights(stage, 0), config, alone).network
    assert isinstance(network, UNet)
    shapes = {stage.shape(aspect) for aspect in ASPECTS}
    assert len(shapes) == len(ASPECTS) > 8  # more than PyTorch compiles of itself
    for _ in range(2):  # and each once
        for width, height in shapes:
            text, mask = torch.zeros(1, 16, 128), torch.ones(1, 16, dtype=torch.bool)
            network(torch.zeros(1, 3, height, width), torch.zeros(1), text, mask)
        assert len(traced) == len(shapes) * len(network.blocks)
