"""Sample a cascade of DeepFloyd IF's shape with diffusers, with eager and with its engines.

    python tools/bench_sampling.py

The same weights (random ones), noise, steps and embeddings for all, and the pictures are compared.
Random weights magnify rounding at the first step, where they predict noise of a size that no
trained network would: single values may be off in fp32 as they are between fp32 and fp64. Writes
`sampling.json` and `sampling.md` into the output folder; the bundle that it makes there is used
again.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from torch import Tensor

from cascade.cli.mistakes import answer
from cascade.config.folders import cascade_folder, read_manifest
from cascade.config.stage import MANIFEST, CascadeManifest, SamplerConfig, StageConfig
from cascade.diffusion.noise import Noise, derive_seed
from cascade.environment import environment
from cascade.files import write_bytes
from cascade.formats.encoder import write_encoder
from cascade.formats.export import export_cascade
from cascade.pipeline import Cascade
from cascade.sampling import prompt_table, sample_stage
from cascade.stage import Stage
from cascade.text.files import EncoderFiles
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.gate import Gate
from cascade_export.bundle.request import Request
from cascade_export.bundle.write import export_bundle

PROMPT = "a photo of a dog on the beach"
SEED = 3
CONFIGS = Path(__file__).resolve().parent.parent / "configs"
# A third of the published widths, one block where they have two to five: what two CPU cores can do.
SHAPES: Mapping[str, dict[str, Any]] = {
    "if-i-m": {"channels": (64, 128, 192, 256), "blocks": (1, 1, 1, 1)},
    "if-ii-m": {"channels": (32, 64, 128, 192, 256), "blocks": (1, 1, 1, 2, 2)},
}

Run = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Found:
    """One provider: seconds of every round, and how far its pictures are from diffusers'.

    Attributes:
        largest: by stage, the largest difference in grey levels.
        off: by stage, the share of values that are off by more than one grey level.
    """

    seconds: tuple[float, ...]
    largest: Mapping[str, float]
    off: Mapping[str, float]

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.seconds)


def main(
    output: Annotated[Path, typer.Option(help="Folder for bundle and results.")] = Path(
        "runs/sampling"
    ),
    steps: Annotated[int, typer.Option(min=2, help="Of each stage.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Pictures of each provider.")] = 3,
) -> None:
    """Make the cascade, export it, and time one picture with each provider, in turn."""
    folder = output / "cascade"
    if not (folder / MANIFEST).is_file():
        write_cascade(folder)
    cascade = Cascade.load(folder)
    if not (output / "bundle" / "bundle.json").is_file():
        gate = Gate(prompts=(PROMPT,), steps=2)
        export_bundle(cascade, output / "bundle", Request(gate=gate))
    engines = Bundle.open(output / "bundle").cascade()
    published = output / "published"
    if not published.is_dir():
        export_cascade(folder, read_manifest(folder), published, text_encoder=False)
    runs: dict[str, Run] = {
        "diffusers": diffusers_run(cascade, published, steps),
        "eager": our_run(cascade, steps),
        "onnxruntime": our_run(engines, steps),
    }
    before = os.getloadavg()[0]
    found = measure(runs, rounds)
    record = {
        "environment": environment()
        | {name: version(name) for name in ("diffusers", "onnxruntime")}
        | {"load average": f"{before:.1f} before, {os.getloadavg()[0]:.1f} after"},
        "steps of each stage": steps,
        "stages": {
            stage.config.name: {
                "parameters": sum(p.numel() for p in stage.network.parameters()),
                "unet": stage.config.unet.model_dump(mode="json"),
            }
            for stage in cascade.stages
        },
        "found": {name: asdict(one) | {"median": one.median} for name, one in found.items()},
    }
    write_bytes((json.dumps(record, indent=2) + "\n").encode(), output / "sampling.json")
    write_bytes(table(found, steps).encode(), output / "sampling.md")
    Console().print(table(found, steps))


def write_cascade(folder: Path) -> None:
    """A cascade of random weights; its text encoder is `mini`'s."""
    text = EncoderFiles.open(cascade_folder("mini") / "text")
    write_encoder(text, folder / "text", folder / "text" / "spiece.model")
    for seed, (name, shape) in enumerate(SHAPES.items()):
        config = StageConfig.read(CONFIGS / f"{name}.toml")
        narrow = {"text_width": text.width, "context_width": 256, "time_width": 256}
        unet = config.unet.model_copy(update=shape | narrow | {"pool_heads": 8})
        stage = Stage.build(config.model_copy(update={"unet": unet}), seed)
        wake(stage.network, seed)
        stage.save(folder / name)
    manifest = CascadeManifest(name="if-shaped", stages=tuple(SHAPES), recipe="deepfloyd")
    write_bytes(manifest.model_dump_json(indent=2).encode(), folder / MANIFEST)


def wake(network: torch.nn.Module, seed: int) -> None:
    """Draw the zero-initialised weights at random; a new network predicts 0 whatever it sees.

    The noise that a random network predicts is wrong, and at the first step (sigma of thousands)
    its rounding would be magnified to whole grey levels, in fp64 as in fp32: the last convolution
    is kept small.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1 and not parameter.any():
                gain = 0.02 if name == "conv_out.weight" else 0.5
                std = gain * parameter[0].numel() ** -0.5
                parameter.normal_(0.0, std, generator=generator)


def sampler(stage: Stage, steps: int) -> SamplerConfig:
    """The checkpoint's sampler with fewer steps; diffusers is told of their spacing."""
    return stage.config.sampler.model_copy(update={"steps": steps})


def our_run(cascade: Cascade, steps: int) -> Run:
    """Sample every stage from embeddings."""
    table = prompt_table(cascade.encoder, [PROMPT], cascade.stages[0].config)

    def run() -> Mapping[str, Tensor]:
        drawn: dict[str, Tensor] = {}
        low_res = None
        for stage in cascade.stages:
            low_res = sample_stage(
                stage, table, [PROMPT], [SEED], low_res=low_res, sampler=sampler(stage, steps)
            )
            drawn[stage.config.name] = low_res
        return drawn

    return run


def diffusers_run(cascade: Cascade, published: Path, steps: int) -> Run:
    """The same through diffusers' pipelines, with the same noise."""
    from diffusers import IFPipeline, IFSuperResolutionPipeline
    from diffusers.pipelines.deepfloyd_if import pipeline_if, pipeline_if_superresolution
    from diffusers.schedulers import scheduling_ddpm

    base, large = (stage.config for stage in cascade.stages)
    table = prompt_table(cascade.encoder, [PROMPT], base)
    pipelines: list[Any] = []
    for kind, config in ((IFPipeline, base), (IFSuperResolutionPipeline, large)):
        pipeline: Any = kind
        loaded = pipeline.from_pretrained(
            published / config.name, local_files_only=True, safety_checker=None
        )
        loaded.set_progress_bar_config(disable=True)
        pipelines.append(loaded)
    given = {
        "prompt_embeds": table.rows([PROMPT]).embedding,
        "negative_prompt_embeds": table.rows([None]).embedding,
        "num_inference_steps": steps,
        "output_type": "pt",
    }

    modules: tuple[Any, ...] = (pipeline_if, pipeline_if_superresolution, scheduling_ddpm)

    def replay(noise: list[Tensor]) -> None:
        left: Iterator[Tensor] = iter(noise)
        for module in modules:
            module.randn_tensor = lambda shape, **_: next(left)

    def run() -> Mapping[str, Tensor]:
        replay(draws(base, steps))
        first = pipelines[0](**given, guidance_scale=base.sampler.guidance).images
        augmentation, start, *others = draws(large, steps + 1)  # diffusers draws the start first
        replay([start, augmentation, *others])
        guidance = large.sampler.guidance
        second = pipelines[1](**given, image=first, guidance_scale=guidance).images
        return {base.name: first, large.name: second}

    return run


def draws(config: StageConfig, number: int) -> list[Tensor]:
    """What a stage of ours draws, in its order."""
    noise = Noise([derive_seed(SEED, config.name)])
    return [noise.normal(3, config.size, config.size) for _ in range(number)]


def measure(runs: Mapping[str, Run], rounds: int) -> dict[str, Found]:
    """Time the providers in turn, after one picture of each that is not counted."""
    pictures = {name: run() for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {
        name: Found(tuple(seconds[name]), *differences(pictures[name], pictures["diffusers"]))
        for name in runs
    }


def differences(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]
) -> tuple[dict[str, float], dict[str, float]]:
    """The largest difference of each stage's pictures, and the share of those above one level."""
    levels = {
        name: 127.5 * (ours[name] - picture.clamp(-1, 1)).abs() for name, picture in theirs.items()
    }
    largest = {name: float(level.max()) for name, level in levels.items()}
    return largest, {name: float((level > 1).double().mean()) for name, level in levels.items()}


def table(found: Mapping[str, Found], steps: int) -> str:
    """The result as Markdown."""
    base = found["diffusers"]
    stages = list(base.largest)
    told = " | ".join(f"{name}: largest, levels | off by more than 1" for name in stages)
    lines = [
        f"| one picture, {steps} steps a stage | seconds, median | diffusers' / its | {told} |",
        "|---|---|---|" + "---|---|" * len(stages),
    ]
    for name, one in found.items():
        far = " | ".join(f"{one.largest[stage]:.2g} | {one.off[stage]:.2%}" for stage in stages)
        lines.append(f"| {name} | {one.median:.2f} | {base.median / one.median:.2f} | {far} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    answer(lambda: typer.run(main))
