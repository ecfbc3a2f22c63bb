"""Pictures of other aspect ratios: their sides, stage by stage, and what is told of them."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from cascade.config.sample import SampleOptions
from cascade.config.stage import StageConfig
from cascade.data.pack import ASPECTS
from cascade.diffusion.noise import Noise
from cascade.errors import UserError
from cascade.gallery import Gallery, sample_to_folder
from cascade.pipeline import Cascade
from cascade.request import Request
from cascade.stage import Stage
from cascade.text.encoder import TextEmbedding

# As in test_stage.py: sums over more rows round differently, far below half a grey level.
SAME = 1e-4

Outcome = Callable[..., object]


@pytest.mark.parametrize("aspect", ASPECTS)
@pytest.mark.parametrize(("size", "levels"), [(64, 4), (64, 1), (256, 5)])
def test_a_shape_has_a_square_s_pixels_and_the_network_s_multiples(
    base: Stage, aspect: tuple[int, int], size: int, levels: int
) -> None:
    each = {"channels": (16,) * levels, "blocks": (1,) * levels, "attention": ("none",) * levels}
    unet = base.config.unet.model_copy(update=each)
    config = base.config.model_copy(update={"size": size, "unet": unet})
    width, height = config.shape(aspect)
    assert (width % unet.factor, height % unet.factor) == (0, 0)
    # Each side is off by no more than half a factor.
    area, ratio = size * size, aspect[0] / aspect[1]
    for side, exact in ((width, math.sqrt(area * ratio)), (height, math.sqrt(area / ratio))):
        assert abs(side - exact) <= unet.factor / 2
    assert config.shape((aspect[1], aspect[0])) == (height, width)
    if aspect == (1, 1):
        assert (width, height) == (size, size)


def test_every_stage_draws_the_aspect_ratio(cascade: Cascade) -> None:
    drawn = cascade.upscaled_to(64).sample("a dog", [1, 2], aspect="3:2")
    assert {name: tuple(one.shape) for name, one in drawn.stages.items()} == {
        "base16": (2, 3, 14, 20),
        "sr32": (2, 3, 28, 40),
        "sr32-at-64": (2, 3, 56, 80),
    }
    upright = cascade.sample("a dog", [1], aspect="2:3", last_stage="base16")
    assert upright.tensor.shape == (1, 3, 20, 14)


def test_a_picture_alone_is_the_one_in_a_batch(cascade: Cascade) -> None:
    prompts = ["a dog", "a cat on the beach", "a red backpack"]
    together = cascade.sample(prompts, [5, 6, 7], aspect="16:9")
    assert together.tensor.std() > 0.05
    for row, prompt in enumerate(prompts):
        alone = cascade.sample(prompt, [5 + row], aspect="16:9")
        torch.testing.assert_close(alone.tensor[0], together.tensor[row], atol=SAME, rtol=0)


def test_one_to_one_is_the_square_to_the_last_bit(cascade: Cascade) -> None:
    plain = cascade.sample("a dog", [3])
    for written in ("1:1", "7:7"):
        square = cascade.sample("a dog", [3], aspect=written)
        for name, pictures in plain.stages.items():
            assert torch.equal(square.stages[name], pictures)


def test_the_base_draws_what_every_stage_can_enlarge(cascade: Cascade) -> None:
    base, larger = cascade.configs
    deep = larger.unet.model_copy(
        update={"channels": (16,) * 4, "blocks": (1,) * 4, "attention": ("none",) * 4}
    )
    stages: list[StageConfig] = [base, larger.model_copy(update={"unet": deep})]
    assert deep.factor == 16  # so that the base's sides are multiples of 8
    for last in (None, "base16"):  # which stage is drawn last changes no picture
        request = Request.of(stages, "a dog", [0], SampleOptions(aspect="2:1", last_stage=last))
        assert (request.aspect, request.size) == ((2, 1), (24, 8))


class Plan:
    """An engine that takes squares of one side alone."""

    def __init__(self, side: int) -> None:
        self.side = side
        self.calls: list[Tensor] = []

    def __call__(self, x: Tensor, *_: Tensor | None, **others: Tensor | None) -> Tensor:
        self.calls.append(x)
        return x


def test_plans_draw_squares_of_one_size_and_say_so_before_any_work(cascade: Cascade) -> None:
    begun: list[object] = []
    base, larger = cascade.stages
    small, large = Plan(16), Plan(32)
    for stages in ([base.with_network(small), larger], [base, larger.with_network(large)]):
        mixed = Cascade(cascade.manifest, cascade.encoder, stages)
        with pytest.raises(UserError, match=r"takes squares of (16|32) pixels alone; leave the as"):
            mixed.sample("a dog", [0], aspect="3:2", on_step=lambda *step: begun.append(step))
    with pytest.raises(UserError, match=r"'sr32' runs on a plan, .* 32 pixels alone; leave the si"):
        mixed.upscaled_to(64)
    assert (small.calls, large.calls, begun) == ([], [], [])
    assert mixed.upscaled_to(32).configs == mixed.configs
    assert mixed.sample("a dog", [0], aspect="2:2").tensor.shape == (1, 3, 32, 32)


def test_a_folder_keeps_squares_and_others_apart(cascade: Cascade, tmp_path: Path) -> None:
    def draw(aspect: str | None) -> Gallery:
        request = Request.of(cascade.configs, "a dog", [4, 5], SampleOptions(aspect=aspect))
        return sample_to_folder(cascade, request, tmp_path, columns=2)

    square, wide, again = draw(None), draw("3:2"), draw("6:4")
    assert (square.kept, wide.kept, again.kept) == (0, 0, 2)
    assert draw("1:1").kept == 2
    assert again.grid == wide.grid
    with Image.open(wide.grid) as sheet:
        assert sheet.size == (2 * 42 - 2, 28)
    told = []
    for name in ("00-4", "01-4"):
        with Image.open(tmp_path / "sr32" / f"{name}.png") as picture:
            told.append((picture.size, picture.text.get("aspect")))  # type: ignore[attr-defined]
    assert told == [((32, 32), None), ((40, 28), "3:2")]


def test_the_command_draws_the_aspect_ratio(
    command: Outcome, tiny_cascade: Path, tmp_path: Path
) -> None:
    given = ("--cascade", tiny_cascade, "--prompt", "a dog", "--num-images", 1, "-o", tmp_path)
    command("sample", *given, "--size", 64, "--aspect", "1:2")
    with Image.open(tmp_path / "sr32-at-64" / "00-0.png") as picture:
        assert picture.size == (48, 88)


@pytest.mark.slow
def test_kernels_draw_the_same_picture(tiny_cascade: Path) -> None:
    """In Triton's interpreter, or on a GPU; they add in another order, which shows last bits."""
    pytest.importorskip("triton")
    stage = Stage.load(tiny_cascade / "base16")
    stage.size = stage.config.shape((3, 2))
    sampler = stage.config.sampler.model_copy(update={"steps": 2})
    embedding = torch.randn(1, 3, 128, generator=torch.Generator().manual_seed(0))
    text = TextEmbedding(embedding, torch.ones(1, 3, dtype=torch.bool))
    null = TextEmbedding(torch.zeros(1, 1, 128), torch.ones(1, 1, dtype=torch.bool))
    drawn = []
    for backend in ("reference", "triton"):
        stage.set_backend(backend)
        drawn.append(stage.sample(text, null, Noise([5]), sampler=sampler))
    assert drawn[0].shape == (1, 3, 14, 20)
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=1e-4)
