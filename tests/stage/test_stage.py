"""What `Stage.sample` promises: seeds, batches, samplers, sizes, levels, guidance."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from cascade.config.stage import AugmentationLevel, SamplerConfig, ThresholdConfig
from cascade.diffusion.denoiser import Denoised
from cascade.diffusion.noise import Noise
from cascade.errors import UserError
from cascade.stage import Stage
from cascade.text.encoder import TextEmbedding
from cascade.text.prompts import PromptTable

# A convolution or a matrix product over more rows is blocked differently and rounds differently:
# a few units of float32's last place per layer and step, far below half a grey level (2 / 255 / 2).
SAME = 1e-4

SAMPLERS = ("ancestral", "ddim", "dpmpp_2m", "heun")
Texts = list[str | None]


class Spy(nn.Module):
    """Passes every call on to a network and remembers it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[tuple[Tensor | None, ...]] = []

    def forward(self, *inputs: Tensor | None) -> Tensor:
        self.calls.append(inputs)
        out: Tensor = self.network(*inputs)
        return out


def spied(stage: Stage) -> tuple[Stage, Spy]:
    spy = Spy(stage.network)
    return stage.with_network(spy), spy


def draw(
    stage: Stage,
    table: PromptTable,
    prompts: Texts,
    seeds: list[int],
    sampler: SamplerConfig | None = None,
    low_res: Tensor | None = None,
    level: AugmentationLevel | None = None,
) -> Tensor:
    text, null = table.rows(prompts), table.rows([None] * len(prompts))
    return stage.sample(text, null, Noise(seeds), low_res, sampler, level)


def small(count: int, height: int = 16, width: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, height, width, generator=generator) * 2 - 1


DOG, CAT, BAG = "a photo of a dog", "a cat on the beach", "a red backpack"


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_picture_does_not_depend_on_its_batch(
    base: Stage, table: PromptTable, name: Literal["ancestral", "ddim", "dpmpp_2m", "heun"]
) -> None:
    sampler = SamplerConfig(name=name, steps=3, guidance=2.0, eta=0.5)
    together = draw(base, table, [DOG, CAT, BAG], [5, 6, 7], sampler)
    assert together.shape == (3, 3, 16, 16)
    assert together.abs().max() <= 1
    assert together.std() > 0.05
    for i, prompt in enumerate((DOG, CAT, BAG)):
        alone = draw(base, table, [prompt], [5 + i], sampler)
        torch.testing.assert_close(alone[0], together[i], atol=SAME, rtol=0)
    again = draw(base, table, [DOG, CAT, BAG], [5, 6, 7], sampler)
    assert torch.equal(again, together)


def test_seed_prompt_and_sampler_matter(base: Stage, table: PromptTable) -> None:
    pictures = [
        draw(base, table, [DOG], [0]),
        draw(base, table, [DOG], [1]),
        draw(base, table, [CAT], [0]),
        *(draw(base, table, [DOG], [0], SamplerConfig(name=n, steps=4)) for n in SAMPLERS),
        draw(base, table, [DOG], [0], SamplerConfig(name="ddim", steps=4, eta=0.5)),
        draw(base, table, [DOG], [0], SamplerConfig(steps=4, variance="fixed_large")),
    ]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            assert (one - other).abs().max() > 1e-3


def test_the_checkpoint_s_own_sampler_is_the_default(base: Stage, table: PromptTable) -> None:
    own = draw(base, table, [DOG], [0], base.config.sampler)
    assert torch.equal(draw(base, table, [DOG], [0]), own)


def test_explicit_timesteps_replace_the_number_of_steps(base: Stage, table: PromptTable) -> None:
    stage, spy = spied(base)
    times = (990.0, 600.0, 50.0)
    draw(stage, table, [DOG], [0], SamplerConfig(name="ddim", timesteps=times, guidance=1.0))
    seen = [float(call[1][0]) for call in spy.calls if call[1] is not None]
    assert seen == pytest.approx(times)
    evenly = tuple(base.schedule.spaced(4).tolist())
    named = draw(base, table, [DOG], [0], SamplerConfig(name="ddim", timesteps=evenly))
    assert torch.equal(named, draw(base, table, [DOG], [0], SamplerConfig(name="ddim", steps=4)))


def test_only_the_second_order_solver_leaves_the_last_timestep_out(
    base: Stage, table: PromptTable
) -> None:
    diffusion = base.config.diffusion.model_copy(update={"schedule": "linear"})
    config = base.config.model_copy(update={"diffusion": diffusion})
    stage, spy = spied(base.with_network(base.network, config))
    for name in SAMPLERS:
        for spacing in ("linspace", "leading"):
            spy.calls.clear()
            draw(stage, table, [DOG], [0], SamplerConfig(name=name, steps=4, spacing=spacing))
            seen = [round(float(call[1][0])) for call in spy.calls if call[1] is not None]
            assert (seen[-1] == 0) is (name != "dpmpp_2m")
            assert seen[0] == (999 if spacing == "linspace" else 800 if seen[-1] else 750)


def test_guidance_of_one_asks_nothing_of_the_null_text(base: Stage, table: PromptTable) -> None:
    stage, spy = spied(base)
    plain = SamplerConfig(name="ddim", steps=2, guidance=1.0)
    with_zeros = draw(stage, table, [DOG], [0], plain)
    text = table.rows([DOG])
    with_cat = base.sample(text, table.rows([CAT]), Noise([0]), sampler=plain)
    assert torch.equal(with_zeros, with_cat)
    assert [call[0].shape[0] for call in spy.calls if call[0] is not None] == [1, 1]


def test_guidance_zero_is_the_null_text_and_more_is_twice_the_rows(
    base: Stage, table: PromptTable
) -> None:
    off, one = (SamplerConfig(name="ddim", steps=2, guidance=w) for w in (0.0, 1.0))
    unguided = draw(base, table, [DOG], [0], off)
    torch.testing.assert_close(unguided, draw(base, table, [None], [0], one), atol=SAME, rtol=0)
    stage, spy = spied(base)
    draw(stage, table, [DOG, CAT], [0, 1], SamplerConfig(name="ddim", steps=1, guidance=3.0))
    assert [call[0].shape[0] for call in spy.calls if call[0] is not None] == [4]


def test_super_resolution_is_fully_convolutional(
    super_resolution: Stage, table: PromptTable
) -> None:
    for height, width in ((16, 24), (8, 8)):
        low = small(1, height, width)
        drawn = draw(super_resolution, table, [DOG], [0], low_res=low)
        assert drawn.shape == (1, 3, 2 * height, 2 * width)
        assert bool(drawn.isfinite().all())


def test_super_resolution_follows_its_low_resolution_picture(
    super_resolution: Stage, table: PromptTable
) -> None:
    low = small(2)
    drawn = draw(super_resolution, table, [DOG, DOG], [0, 0], low_res=low)
    assert (drawn[0] - drawn[1]).abs().max() > 1e-3


def test_levels_in_both_units_mean_the_same_noise(
    super_resolution: Stage, table: PromptTable
) -> None:
    # alpha^2 = 1 - variance; Imagen's cosine schedule is alpha = cos(pi t / 2).
    time = super_resolution.level_time(AugmentationLevel(value=0.25, unit="variance"))
    assert time == pytest.approx(1 / 3)  # sin(pi / 6) = 1/2
    assert super_resolution.level_time(AugmentationLevel(value=0.4)) == 0.4
    stage, spy = spied(super_resolution)
    level = AugmentationLevel(value=0.25, unit="variance")
    draw(stage, table, [DOG], [0], low_res=small(1), level=level)
    draw(stage, table, [DOG], [0], low_res=small(1))
    told = [float(call[5][0]) for call in spy.calls if call[5] is not None]
    assert told == pytest.approx([1000 / 3, 1000 / 3, 200, 200])
    by_time = AugmentationLevel(value=time)
    one = draw(super_resolution, table, [DOG], [0], low_res=small(1), level=level)
    two = draw(super_resolution, table, [DOG], [0], low_res=small(1), level=by_time)
    assert torch.equal(one, two)


def test_thresholds_are_applied(base: Stage, table: PromptTable) -> None:
    x0: list[Tensor] = []

    def keep(index: int, x: Tensor, denoised: Denoised) -> None:
        x0.append(denoised.x0)

    text, null = table.rows([DOG]), table.rows([None])
    for kind in ("none", "static", "dynamic"):
        threshold = ThresholdConfig(kind=kind, percentile=0.9)
        sampler = SamplerConfig(name="ddim", steps=2, guidance=30.0, threshold=threshold)
        base.sample(text, null, Noise([0]), sampler=sampler, on_step=keep)
    greatest = [float(value.abs().max()) for value in x0]
    assert max(greatest[:2]) > 1.0
    assert max(greatest[2:]) <= 1.0
    assert not torch.equal(x0[2], x0[4])


def test_sampling_in_bf16_is_the_networks_alone(base: Stage, table: PromptTable) -> None:
    answers: list[torch.dtype] = []
    # The last block's; the norm and the convolution behind it answer in fp32.
    block = base.network.get_submodule("decoder")[-1]
    hook = block.register_forward_hook(lambda *call: answers.append(call[-1].dtype))
    full = SamplerConfig(name="ddim", steps=4, guidance=2.0)
    exact = draw(base, table, [DOG], [0], full)
    half = draw(base, table, [DOG], [0], full.model_copy(update={"precision": "bf16"}))
    hook.remove()
    assert answers == [torch.float32] * 4 + [torch.bfloat16] * 4
    assert half.dtype == torch.float32
    apart = (half - exact).abs().mean()
    # bfloat16 keeps 8 bits: an answer is off by some 1/256, which four guided steps add up.
    assert 0 < apart < 4 / 256 * 3


def test_what_a_stage_cannot_do(base: Stage, super_resolution: Stage, table: PromptTable) -> None:
    with pytest.raises(ValueError, match="'sr32' needs a low-resolution picture"):
        draw(super_resolution, table, [DOG], [0])
    with pytest.raises(ValueError, match="'base16' is a base stage"):
        base.low_resolution()
    engine = base.with_network(lambda x, *_: x)
    with pytest.raises(TypeError, match="runs on an engine"):
        _ = engine.network
    assert engine.device == torch.device("cpu")
    assert draw(engine, table, [DOG], [0]).shape == (1, 3, 16, 16)


def test_kernels_that_cannot_run_are_refused_beforehand(
    tiny_cascade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cascade.stage.unsupported_reason", lambda device, dtype: "there is no GPU")
    stage = Stage.load(tiny_cascade / "base16")
    with pytest.raises(UserError, match="there is no GPU"):
        stage.set_backend("triton")


@pytest.mark.slow
def test_a_stage_draws_the_same_picture_with_kernels_and_without(tiny_cascade: Path) -> None:
    """In Triton's interpreter; kernels add in another order, which shows in fp32's last bits."""
    pytest.importorskip("triton")
    stage = Stage.load(tiny_cascade / "base16")
    sampler = stage.config.sampler.model_copy(update={"steps": 2})
    embedding = torch.randn(1, 3, 128, generator=torch.Generator().manual_seed(0))
    text = TextEmbedding(embedding, torch.ones(1, 3, dtype=torch.bool))
    null = TextEmbedding(torch.zeros(1, 1, 128), torch.ones(1, 1, dtype=torch.bool))
    drawn = []
    for backend in ("reference", "triton"):
        stage.set_backend(backend)
        drawn.append(stage.sample(text, null, Noise([5]), sampler=sampler))
    torch.testing.assert_close(drawn[0], drawn[1], rtol=0, atol=1e-4)
