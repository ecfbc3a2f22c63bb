"""Diffusers' pipelines of a cascade of DeepFloyd IF's kind, with its weights and its noise."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from torch import Tensor

from cascade.config.folders import read_manifest
from cascade.config.stage import SamplerConfig, StageConfig
from cascade.diffusion.noise import Noise, derive_seed
from cascade.formats.export import export_cascade, noise_level
from cascade.pipeline import Cascade
from cascade.text.prompts import OnlinePrompts

Drawer: TypeAlias = Callable[[str, Sequence[int]], Mapping[str, Tensor]]
"""Draws a picture of a prompt for each seed: by stage, B C H W."""


def diffusers_drawer(folder: Path, steps: int | None, device: str) -> Drawer:
    """Return what draws with `IFPipeline` and `IFSuperResolutionPipeline` as the cascade does.

    Args:
        folder: of a cascade of two stages.
        steps: of each stage; the checkpoint's own if left out.

    Raises:
        UserError: diffusers cannot express it.
    """
    from diffusers import IFPipeline, IFSuperResolutionPipeline
    from diffusers.pipelines.deepfloyd_if import pipeline_if, pipeline_if_superresolution
    from diffusers.schedulers import scheduling_ddpm

    cascade = Cascade.load(folder)
    base, large = cascade.configs
    texts = OnlinePrompts(cascade.encoder, base.text)  # it keeps them
    kinds = {base.name: IFPipeline, large.name: IFSuperResolutionPipeline}
    small_pipeline, large_pipeline = _opened(folder, kinds, device)
    assert large.low_res is not None  # the export has looked
    level = noise_level(large.low_res)
    modules: tuple[Any, ...] = (pipeline_if, pipeline_if_superresolution, scheduling_ddpm)

    def replay(noise: list[Tensor]) -> None:
        left: Iterator[Tensor] = iter(noise)
        for module in modules:
            module.randn_tensor = lambda shape, **_: next(left).to(device)

    def draw(prompt: str, seeds: Sequence[int]) -> Mapping[str, Tensor]:
        number = len(seeds)
        given = {
            "prompt_embeds": texts.rows([prompt] * number).embedding,
            "negative_prompt_embeds": texts.rows([None] * number).embedding,
            "output_type": "pt",
        }
        replay(_noise(base, seeds, _count(base, steps)))
        small = small_pipeline(**given, **_asked(base, steps)).images
        augmentation, start, *others = _noise(large, seeds, _count(large, steps) + 1)
        replay([start, augmentation, *others])  # diffusers draws the start first
        asked = _asked(large, steps) | {"noise_level": level}
        pictures = large_pipeline(**given, **asked, image=small).images
        return {base.name: small.cpu(), large.name: pictures.cpu()}

    return draw


def sampler_of(config: StageConfig, steps: int | None) -> SamplerConfig:
    """Return the checkpoint's sampler, perhaps with other steps; diffusers gets their spacing."""
    if steps is None:
        return config.sampler
    return config.sampler.model_copy(update={"steps": steps, "timesteps": None})


def _opened(folder: Path, kinds: Mapping[str, Any], device: str) -> list[Any]:
    """Return a pipeline of every stage."""
    opened: list[Any] = []
    with TemporaryDirectory() as scratch:
        published = Path(scratch) / "published"
        export_cascade(folder, read_manifest(folder), published, text_encoder=False)
        for name, kind in kinds.items():
            loaded = kind.from_pretrained(
                published / name, local_files_only=True, safety_checker=None
            )
            loaded.set_progress_bar_config(disable=True)
            opened.append(loaded.to(device))
    return opened


def _asked(config: StageConfig, steps: int | None) -> dict[str, Any]:
    sampler = sampler_of(config, steps)
    asked: dict[str, Any] = {"guidance_scale": sampler.guidance}
    if sampler.timesteps is None:
        return asked | {"num_inference_steps": sampler.steps}
    return asked | {"timesteps": [int(time) for time in sampler.timesteps]}


def _count(config: StageConfig, steps: int | None) -> int:
    return sampler_of(config, steps).count


def _noise(config: StageConfig, seeds: Sequence[int], number: int) -> list[Tensor]:
    """Return the noise that a stage of ours draws, in its order."""
    noise = Noise([derive_seed(seed, config.name) for seed in seeds])
    return [noise.normal(3, config.size, config.size) for _ in range(number)]
