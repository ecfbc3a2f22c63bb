"""`cascade sample`: pictures from prompts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from cascade.cli.bundle import (
    Bundle,
    Compiled,
    Engine,
    MaxMemory,
    Spinning,
    Subject,
    Threads,
    load_bundle,
    refuse_without_bundle,
)
from cascade.cli.text import Embeddings, EncoderMode
from cascade.config.stage import AugmentationLevel, Precision, SamplerConfig
from cascade.errors import UserError

SamplerName = Literal["ancestral", "ddim", "dpmpp_2m", "heun"]


def sample(
    prompt: Annotated[
        list[str],
        typer.Option("--prompt", help="What to draw; may be repeated.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Folder that gets the pictures.", show_default=False),
    ],
    cascade: Annotated[
        str | None, typer.Option(help="A cascade folder; 'mini' if neither this nor a bundle.")
    ] = None,
    num_images: Annotated[int, typer.Option(min=1, help="Pictures of each prompt.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the first picture; the next count up.")] = 0,
    sampler: Annotated[
        SamplerName | None, typer.Option(help="Replace the checkpoint's sampler (all stages).")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Replace its number of steps.")
    ] = None,
    timesteps: Annotated[
        list[str] | None,
        typer.Option(
            help="A named list such as smart100 in its place: one for all stages, or one each."
        ),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Replace its guidance weight.")
    ] = None,
    precision: Annotated[
        Precision | None,
        typer.Option(help="Of the networks' arithmetic; auto is bf16 on a device that has it."),
    ] = None,
    noise_level: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Augmentation level of super-resolution, in [0, 1]."),
    ] = None,
    last_stage: Annotated[str | None, typer.Option(help="Stop after this stage.")] = None,
    size: Annotated[
        int | None,
        typer.Option(min=1, help="Use the last stage again until pictures are this wide."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures worked on at once.")] = 8,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...; the GPU if there is one.")
    ] = None,
    kernels: Annotated[
        Literal["auto", "triton", "reference"],
        typer.Option(help="Triton kernels: where measured to be fastest, always, or never."),
    ] = "auto",
    embeddings: Embeddings = None,
    encoder_mode: EncoderMode = "auto",
    bundle: Bundle = None,
    subject: Subject = None,
    engine: Engine = None,
    threads: Threads = None,
    spinning: Spinning = True,
    compiled: Compiled = False,
    max_memory: MaxMemory = None,
) -> None:
    """Draw pictures: a PNG per picture and stage, and a grid.

    A picture is a function of its prompt and its seed, whatever else is drawn beside it.
    """
    from cascade.gallery import draw_to_folder
    from cascade.pipeline import Cascade

    if bundle is None:
        refuse_without_bundle(
            subject=subject,
            engine=engine,
            threads=threads,
            no_spinning=not spinning,
            compile=compiled,
            max_memory=max_memory,
        )
        loaded = Cascade.load(
            cascade or "mini",
            usable_device(device),
            embeddings=embeddings,
            encoder_mode=encoder_mode,
        )
    elif cascade is not None:
        raise UserError("A bundle holds its own cascade; leave --cascade or --bundle out.")
    elif precision is not None:
        raise UserError(
            "A bundle's engines keep the precision they were exported in; leave --precision or "
            "--bundle out."
        )
    elif size is not None:
        raise UserError("A bundle's engines are built for one size; leave --size or --bundle out.")
    else:
        loaded = load_bundle(
            bundle,
            None if device is None else usable_device(device),
            subject=subject,
            engine=engine,
            threads=threads,
            spinning=spinning,
            compiled=compiled,
            max_memory=max_memory,
            embeddings=embeddings,
            encoder_mode=encoder_mode,
        )
    if size is not None:
        loaded = loaded.enlarged(size)
    if kernels != "auto":
        for stage in loaded.stages:
            stage.set_backend(kernels)
    samplers: dict[str, SamplerConfig] = {}
    levels: dict[str, AugmentationLevel] = {}
    changes = {"name": sampler, "steps": steps, "guidance": guidance, "precision": precision}
    given: dict[str, object] = {key: value for key, value in changes.items() if value is not None}
    if steps is not None:
        given["timesteps"] = None
    lists = _timesteps(timesteps, steps, len(loaded.stages))
    for stage, listed in zip(loaded.stages, lists, strict=True):
        name = stage.config.name
        change = given if listed is None else given | {"timesteps": listed}
        samplers[name] = SamplerConfig.parse(
            stage.config.sampler.model_dump() | change, "the command's flags"
        )
        if noise_level is not None and stage.config.low_res is not None:
            levels[name] = AugmentationLevel(value=noise_level)
    path = draw_to_folder(
        loaded,
        prompt,
        range(seed, seed + num_images),
        output,
        samplers=samplers,
        levels=levels,
        last_stage=last_stage,
        batch_size=batch_size,
    )
    typer.echo(f"The grid is {path}.")


def _timesteps(names: Sequence[str] | None, steps: int | None, stages: int) -> Sequence[str | None]:
    """The named list of each stage, or None where its other settings hold."""
    if not names:
        return [None] * stages
    if steps is not None:
        raise UserError("--steps and --timesteps both say how to sample; give one of them.")
    if len(names) not in (1, stages):
        raise UserError(
            f"There are {len(names)} lists of timesteps for {stages} stages; give one for all, or "
            "one for each."
        )
    return names if len(names) == stages else [names[0]] * stages


def usable_device(name: str | None) -> str:
    """The device of this name, or the GPU where there is one.

    Raises:
        UserError: there is no such device.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts that it has it
        reason = str(error).splitlines()[0]
        raise UserError(f"There is no device '{name}' ({reason}); give 'cpu'.") from None
    return name
