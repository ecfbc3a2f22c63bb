"""`cascade sample`: pictures from prompts."""

from pathlib import Path
from typing import Annotated

import typer

from cascade.chain import MOST_SIDE, scales
from cascade.cli import values
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
from cascade.cli.mistakes import goes_on
from cascade.cli.telling import Quiet
from cascade.cli.text import Embeddings, EncoderMode
from cascade.config.stage import Precision, SamplerName
from cascade.errors import UserError
from cascade.files import require_writable
from cascade.progress import say
from cascade.request import MOST_AT_ONCE, MOST_PICTURES, Asked, Request
from cascade_kernels.names import Backend


def sample(
    prompt: Annotated[
        list[str],
        typer.Option("--prompt", help="What to draw; may be repeated.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "--output-dir",
            "-o",
            parser=values.path,
            metavar="FOLDER",
            help="Gets the pictures; those there are never replaced.",
        ),
    ] = Path("pictures"),
    negative_prompt: Annotated[
        str | None,
        typer.Option(help="What to lead away from, in place of the unconditional text."),
    ] = None,
    cascade: Annotated[
        str | None,
        typer.Option(
            parser=values.cascade,
            metavar="FOLDER",
            help="A cascade folder; 'mini' if neither this nor a bundle.",
        ),
    ] = None,
    num_images: Annotated[
        int, typer.Option(min=1, max=MOST_PICTURES, help="Pictures of each prompt.")
    ] = 4,
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
    last_stage: Annotated[
        str | None, typer.Option(parser=values.name, metavar="NAME", help="Stop after this stage.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            min=1, max=MOST_SIDE, help="Use the last stage again until pictures are this wide."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, max=MOST_AT_ONCE, help="Pictures worked on at once.")
    ] = 8,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...; the GPU if there is one.")
    ] = None,
    kernels: Annotated[
        Backend,
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
    quiet: Quiet = False,
) -> None:
    """Draw pictures: a PNG per picture and stage, and a grid.

    A picture is a function of its prompt, its seed and its settings; what is drawn beside it moves
    about one value in ten thousand, by one grey level. Each batch is written when it is drawn,
    and the same command goes on where it was stopped.
    """
    require_writable(output)
    asked: Asked = {
        "negative_prompts": negative_prompt,
        "sampler": sampler,
        "steps": steps,
        "timesteps": timesteps,
        "guidance": guidance,
        "precision": precision,
        "noise_level": noise_level,
        "last_stage": last_stage,
        "batch_size": batch_size,
    }
    seeds = range(seed, seed + num_images)
    prompts = [text for text in prompt for _ in seeds]
    if bundle is None:
        refuse_without_bundle(
            subject=subject,
            engine=engine,
            threads=threads,
            no_spinning=not spinning,
            compile=compiled,
            max_memory=max_memory,
        )
    else:
        _refuse_with_bundle(cascade, precision, size)

    from cascade.environment import usable_device
    from cascade.gallery import draw_to_folder
    from cascade.pipeline import Opened

    if bundle is None:
        where = usable_device(device)
        opened = Opened.at(cascade or "mini", embeddings=embeddings)
        stages = scales(opened.configs, size or opened.configs[-1].size)
        request = Request.of(stages, prompts, [*seeds] * len(prompt), asked)
        loaded = opened.load(where, encoder_mode).enlarged(stages[-1].size)
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
        request = Request.of(loaded.configs, prompts, [*seeds] * len(prompt), asked)
    if kernels != "auto":
        for stage in loaded.stages:
            stage.set_backend(kernels)
    with goes_on():
        gallery = draw_to_folder(loaded, request, output, columns=num_images)
    if gallery.kept:
        say(f"{gallery.kept} of {gallery.pictures} pictures were there already.")
    if gallery.shown < gallery.pictures:
        say(f"The grid shows {gallery.shown} of {gallery.pictures} pictures.")
    say(f"The grid is {gallery.grid}.")


def _refuse_with_bundle(cascade: str | None, precision: str | None, size: int | None) -> None:
    """Refuse flags of what a bundle has decided.

    Raises:
        UserError: one is given.
    """
    if cascade is not None:
        raise UserError("A bundle holds its own cascade; leave --cascade or --bundle out.")
    if precision is not None:
        raise UserError(
            "A bundle's engines keep the precision they were exported in; leave --precision or "
            "--bundle out."
        )
    if size is not None:
        raise UserError("A bundle's engines are built for one size; leave --size or --bundle out.")
