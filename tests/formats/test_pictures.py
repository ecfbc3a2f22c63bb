"""The same noise through diffusers' pipelines and through ours: the same picture."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import IFPipeline, IFSuperResolutionPipeline
from diffusers.pipelines.deepfloyd_if import pipeline_if, pipeline_if_superresolution
from diffusers.schedulers import scheduling_ddpm
from torch import Tensor

from cascade.config.folders import read_manifest
from cascade.config.respacing import named_timesteps
from cascade.diffusion.noise import Noise, derive_seed
from cascade.formats.deepfloyd import read_pipelines
from cascade.formats.export import export_cascade
from cascade.formats.importing import import_cascade
from cascade.pipeline import Cascade
from cascade.text.encoder import TextEmbedding

PROMPT = "a photo of a dog on the beach"
SEEDS = [3, 4]
STEPS = 12

# diffusers' own: how it hands tensors to numpy, and an argument its latest version has renamed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning"),
]


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[Tensor]], None]:
    """Make diffusers take its noise from a list."""

    def use(noise: list[Tensor]) -> None:
        left: Iterator[Tensor] = iter(noise)

        def draw(shape: Any, **_: Any) -> Tensor:
            drawn = next(left)
            assert tuple(shape) == tuple(drawn.shape)
            return drawn

        for module in (pipeline_if, pipeline_if_superresolution, scheduling_ddpm):
            monkeypatch.setattr(module, "randn_tensor", draw)

    return use


def draws(stage: str, side: int, number: int) -> list[Tensor]:
    """What a stage of ours draws, in its order: in stage II the augmentation's noise first."""
    noise = Noise([derive_seed(seed, stage) for seed in SEEDS])
    return [noise.normal(3, side, side) for _ in range(number)]


def second_stage_draws(stage: str, side: int, number: int) -> list[Tensor]:
    """The same in diffusers' order, which starts with the picture's noise."""
    augmentation, start, *steps = draws(stage, side, number)
    return [start, augmentation, *steps]


def loaded(kind: Any, folder: Path) -> Any:
    pipeline = kind.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def fewer(cascade: Cascade) -> dict[str, Any]:
    """The checkpoint's samplers with fewer steps, as diffusers' `num_inference_steps`."""
    return {
        stage.config.name: stage.config.sampler.model_copy(update={"steps": STEPS})
        for stage in cascade.stages
    }


def grey_levels(actual: Tensor, expected: Tensor) -> float:
    """The largest difference of two batches of pictures, in 8-bit levels."""
    assert actual.std() > 0.1  # a picture, not a flat field
    return float((actual - expected.clamp(-1, 1)).abs().max()) * 127.5


def test_both_stages(pipelines: tuple[Path, Path], replay: Callable[[list[Tensor]], None]) -> None:
    cascade = Cascade.load(pipelines)
    drawn = cascade.sample(PROMPT, SEEDS, samplers=fewer(cascade)).stages
    first = loaded(IFPipeline, pipelines[0])
    second = loaded(IFSuperResolutionPipeline, pipelines[1])
    text, null = first.encode_prompt([PROMPT] * len(SEEDS))
    # Neither guidance nor noise level: the pipelines' defaults have to be the checkpoint's.
    given = {"prompt_embeds": text, "negative_prompt_embeds": null, "output_type": "pt"}
    replay(draws("base8", 8, STEPS))
    base = first(**given, num_inference_steps=STEPS).images
    assert grey_levels(drawn["base8"], base) <= 1
    replay(second_stage_draws("sr32", 32, STEPS + 1))
    final = second(**given, image=base, num_inference_steps=STEPS).images
    assert grey_levels(drawn["sr32"], final) <= 1


@pytest.mark.slow
def test_the_checkpoints_own_settings_are_the_pipelines_defaults(
    pipelines: tuple[Path, Path], replay: Callable[[list[Tensor]], None]
) -> None:
    cascade = Cascade.load(pipelines[0])
    picture = cascade.sample(PROMPT, SEEDS).tensor
    first = loaded(IFPipeline, pipelines[0])
    replay(draws("base8", 8, 100))
    expected = first([PROMPT] * len(SEEDS), clean_caption=False, output_type="pt").images
    assert grey_levels(picture, expected) <= 1


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("null", ["zeros", "empty"])
@pytest.mark.parametrize(
    "scheduler",
    [
        {"variance_type": "learned_range", "sample_max_value": 1.0},
        {"variance_type": "fixed_small", "sample_max_value": 1.5},
        {"variance_type": "fixed_large", "thresholding": False},
        {"variance_type": "learned_range", "timestep_spacing": "linspace"},
    ],
)
def test_schedulers_and_null_texts(
    my_pipelines: tuple[Path, Path],
    replay: Callable[[list[Tensor]], None],
    rewrite: Callable[..., None],
    scheduler: dict[str, Any],
    null: str,
    guidance: float,
) -> None:
    folder = my_pipelines[0]
    rewrite(folder / "scheduler" / "scheduler_config.json", **scheduler)
    cascade = Cascade.load(folder)
    stage = cascade.stages[0]
    sampler = fewer(cascade)["base8"].model_copy(update={"guidance": guidance})
    table = cascade.prompts([PROMPT])
    text = table.rows([PROMPT] * len(SEEDS))
    without = table.rows([None] * len(SEEDS))
    if null == "zeros":
        without = TextEmbedding(torch.zeros_like(text.embedding), text.mask)
    noise = Noise([derive_seed(seed, "base8") for seed in SEEDS])
    picture = stage.sample(text, without, noise, sampler=sampler)
    first = loaded(IFPipeline, folder)
    replay(draws("base8", 8, STEPS))
    expected = first(
        prompt_embeds=text.embedding,
        negative_prompt_embeds=without.embedding,
        guidance_scale=guidance,
        num_inference_steps=STEPS,
        output_type="pt",
    ).images
    assert grey_levels(picture, expected) <= 1


def test_a_named_list_and_another_noise_level(
    pipelines: tuple[Path, Path], replay: Callable[[list[Tensor]], None]
) -> None:
    stage = Cascade.load(pipelines).stage("sr32")
    times = named_timesteps("super27")
    sampler = stage.config.sampler.model_copy(update={"timesteps": times})
    assert stage.config.low_res is not None
    level = stage.config.low_res.sampling_level.model_copy(update={"value": 0.04})
    low_res = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows = [torch.randn(2, 77, 128, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
    text, null = (TextEmbedding(row, torch.ones(2, 77, dtype=torch.bool)) for row in rows)
    noise = Noise([derive_seed(seed, "sr32") for seed in SEEDS])
    picture = stage.sample(text, null, noise, low_res, sampler, level)
    second = loaded(IFSuperResolutionPipeline, pipelines[1])
    replay(second_stage_draws("sr32", 32, len(times) + 1))
    expected = second(
        prompt_embeds=rows[0],
        negative_prompt_embeds=rows[1],
        image=low_res,
        timesteps=[int(time) for time in times],
        noise_level=40,
        output_type="pt",
    ).images
    assert grey_levels(picture, expected) <= 1


def test_diffusers_draws_with_what_was_exported(
    pipelines: tuple[Path, Path], tmp_path: Path, replay: Callable[[list[Tensor]], None]
) -> None:
    folder = import_cascade(read_pipelines(pipelines), tmp_path / "ours")
    one, two = export_cascade(folder, read_manifest(folder), tmp_path / "theirs")
    cascade = Cascade.load(folder)
    drawn = cascade.sample(PROMPT, SEEDS, samplers=fewer(cascade)).stages
    first, second = loaded(IFPipeline, one), loaded(IFSuperResolutionPipeline, two)
    prompts = [PROMPT] * len(SEEDS)
    replay(draws("base8", 8, STEPS))
    base = first(prompts, clean_caption=False, num_inference_steps=STEPS, output_type="pt").images
    assert grey_levels(drawn["base8"], base) <= 1
    text, null = first.encode_prompt(prompts)
    replay(second_stage_draws("sr32", 32, STEPS + 1))
    final = second(
        prompt_embeds=text, negative_prompt_embeds=null, image=base,
        num_inference_steps=STEPS, output_type="pt",
    ).images  # fmt: skip
    assert grey_levels(drawn["sr32"], final) <= 1
