"""`cascade bench sample`: whole pictures of a cascade, by every provider with the same noise.

A cascade of DeepFloyd IF's shape and random weights stands in where none is given.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from cascade.config.folders import CONFIGS, MANIFEST, CascadeManifest, cascade_folder, read_manifest
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.files import write_bytes
from cascade.formats.weights import write_encoder
from cascade.pipeline import Cascade
from cascade.results import Result
from cascade.sampling import sample_stage
from cascade.stage import Stage
from cascade.text.files import EncoderFiles
from cascade_bench.cold_start import PROMPT, engine_of
from cascade_bench.harness import bench
from cascade_bench.networks import narrowed, random_weights
from cascade_bench.pipelines import diffusers_drawer, sampler_of
from cascade_bench.problem import Case, Problem
from cascade_bench.providers import known
from cascade_bench.records import Mode
from cascade_bench.settings import SampleBenchConfig
from cascade_bench.timing import Run
from cascade_export.bundle.bundle import Bundle

SEED: Final = 3
# A third of the published widths, one block where they have two to five: what two CPU cores can do.
SHAPES: Final[Mapping[str, dict[str, Any]]] = {
    "if-i-m": {"channels": (64, 128, 192, 256), "blocks": (1, 1, 1, 1)},
    "if-ii-m": {"channels": (32, 64, 128, 192, 256), "blocks": (1, 1, 1, 2, 2)},
}
# RMS, grey levels: rounding alone is 0.3, and from about two one sees a difference.
_LIMIT: Final = 2.0


@dataclass(frozen=True)
class Asked:
    """A cascade's folder, perhaps its bundle, and how it samples."""

    folder: Path
    bundle: Path | None
    config: SampleBenchConfig


Draw: TypeAlias = Callable[[], Mapping[str, Tensor]]
"""Draws one picture: by stage, 1 C H W."""


def bench_sample(
    folder: Path | None, bundle: Path | None, config: SampleBenchConfig, output: Path
) -> tuple[Result, bool]:
    """Time whole pictures; the record is `sample` in `output`."""
    names = known(config.against, PROVIDERS)
    if folder is None:
        folder = output / "if-shaped"
        if not (folder / MANIFEST).is_file():
            write_cascade(folder)
    asked = Asked(folder, bundle, config)
    opening = partial(
        PictureProblem,
        device=torch.device(config.device),
        providers={name: partial(PROVIDERS[name], asked) for name in names},
        ours=names[0],
        baseline="diffusers" if "diffusers" in names else names[0],
        plain=partial(eager, asked),
    )
    told = f"one picture, {config.steps} steps a stage"
    case = Case("cascade", read_manifest(folder).name, told, opening)
    return bench("bench sample", [case], output / "sample", config, packages=("diffusers",))


@dataclass(frozen=True, kw_only=True)
class PictureProblem(Problem):
    """One picture of a cascade; `plain` makes what is right."""

    plain: Callable[[], Draw]

    def gate(self) -> Callable[[Draw], float]:
        """Return the distance of the last stage's picture to eager's, over what one may see."""
        expected = list(self.plain()().values())[-1]

        def excess(draw: Draw) -> float:
            found = list(draw().values())[-1].clamp(-1, 1)
            return float(127.5 * (found - expected).square().mean().sqrt()) / _LIMIT

        return excess

    def call(self, draw: Draw, mode: Mode) -> Run:
        """Return what draws a picture."""
        return draw


def eager(asked: Asked) -> Draw:
    """Sample with our cascade as it is."""
    return _ours(Cascade.load(asked.folder, asked.config.device), asked.config.steps)


def compiled(asked: Asked) -> Draw:
    """Sample with our cascade, its networks compiled."""
    cascade = Cascade.load(asked.folder, asked.config.device)
    for stage in cascade.stages:
        stage.network.compile(dynamic=False)
    return _ours(cascade, asked.config.steps)


def engine(asked: Asked) -> Draw:
    """Sample with the engine of a bundle of the cascade."""
    if asked.bundle is None:
        raise UserError("The provider 'engine' draws with a bundle of the cascade; give --bundle.")
    kind, options = engine_of("engine")
    opened = Bundle.open(asked.bundle)
    cascade = opened.cascade(device=asked.config.device, engine=kind, options=options)
    return _ours(cascade, asked.config.steps)


def diffusers(asked: Asked) -> Draw:
    """Diffusers' pipelines with the same weights and noise; of two stages of IF's kind."""
    draw = diffusers_drawer(asked.folder, asked.config.steps, asked.config.device)
    return partial(draw, PROMPT, [SEED])


PROVIDERS: Final[Mapping[str, Callable[[Asked], Draw]]] = {
    "eager": eager,
    "compiled": compiled,
    "engine": engine,
    "diffusers": diffusers,
}


def write_cascade(folder: Path, smaller: int = 1) -> None:
    """Write a cascade of IF's shape and random weights, its pictures smaller by a factor.

    Its text encoder is `mini`'s.
    """
    text = EncoderFiles.open(cascade_folder("mini") / "text")
    write_encoder(text, folder / "text", folder / "text" / "spiece.model")
    for seed, (name, shape) in enumerate(SHAPES.items()):
        published = StageConfig.read(CONFIGS / f"{name}.toml")
        config = narrowed(published, None, published.size // smaller)
        narrow = {"text_width": text.width, "context_width": 256, "time_width": 256}
        unet = config.unet.model_copy(update=shape | narrow | {"pool_heads": 8})
        stage = Stage.build(config.model_copy(update={"unet": unet}), seed)
        stage.network.load_state_dict(random_weights(unet))
        stage.save(folder / name)
    manifest = CascadeManifest(name="if-shaped", stages=tuple(SHAPES), recipe="deepfloyd")
    write_bytes(manifest.model_dump_json(indent=2).encode(), folder / MANIFEST)


def _ours(cascade: Cascade, steps: int) -> Draw:
    table = cascade.prompts([PROMPT])

    def draw() -> Mapping[str, Tensor]:
        drawn: dict[str, Tensor] = {}
        low_res = None
        for stage in cascade.stages:
            sampler = sampler_of(stage.config, steps)
            low_res = sample_stage(stage, table, [PROMPT], [SEED], low_res=low_res, sampler=sampler)
            drawn[stage.config.name] = low_res
        return drawn

    return draw
