"""Score a trained base stage, a super-resolution stage, or both.

    python tools/pretrain/score.py runs/pretrain/base64/stage --reference build/pretrain/val64 \
        --real build/pretrain/base64 --classes build/pretrain/base64
    python tools/pretrain/score.py mini --images 500 --reference-images 1000 --guidance 2
    python tools/pretrain/score.py --super-resolution runs/pretrain/sr256/stage \
        --photos build/pretrain/sr256

For a base: the Frechet inception distance to validation photos, how often a classifier sees what
the caption says, and a sheet of pictures. For super-resolution: photos made small and enlarged
again, against bicubic; those of a dataset, on which the stage may have been trained, and the
DreamBooth subjects' at the stage's size and at twice that.

Every stage gets `NAME-DIGEST.json`, `.md` and `.png` in the output folder. Pictures and features
are kept there too: what was interrupted, or out of time (exit status 3), goes on where it was. On a
CPU Inception takes about 0.1 s a picture: see `--reference-images`.
"""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from cascade.cli.mistakes import answer
from cascade.cli.sample import SamplerName, usable_device
from cascade.config.stage import Precision, SamplerConfig
from cascade.data.images import write_png
from cascade.environment import environment
from cascade.errors import UserError
from cascade.evaluate.stored import OnDone
from cascade.files import write_bytes
from cascade.progress import progress_bar, stage_steps
from packs import classes
from score_base import BaseRequest, chosen_classes, score_base
from score_enlargement import EnlargementRequest, photo_sets, score_enlargement
from scoring import Context, Dataset, Model, Scored, open_model

OUT_OF_TIME: Final = 3
console = Console()


class OutOfTimeError(Exception):
    """The minutes are over; what is done is on disk."""


def main(
    stage: Annotated[
        str | None, typer.Argument(help="A base: its folder, or a cascade's folder or name.")
    ] = None,
    stage_name: Annotated[
        str | None, typer.Option("--stage", help="Which of a cascade's bases; its first.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="The text encoder of a stage's folder; mini's.")
    ] = None,
    images: Annotated[int, typer.Option(min=2, help="Pictures to draw.")] = 2000,
    chosen: Annotated[
        Path | None,
        typer.Option("--classes", help="Training dataset, or file of WordNet ids; all classes."),
    ] = None,
    reference: Annotated[Path, typer.Option(help="Dataset that FID compares with.")] = Path(
        "build/pretrain/val64"
    ),
    reference_images: Annotated[
        int | None, typer.Option(min=2, help="Only so many of its photos, evenly chosen.")
    ] = None,
    real: Annotated[
        Path | None, typer.Option(help="Training dataset; its FID is the floor.")
    ] = None,
    sampler: Annotated[SamplerName | None, typer.Option(help="Replace the base's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, max=1000, help="Replace the base's.")] = None,
    guidance: Annotated[float | None, typer.Option(min=0, help="Replace the base's.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Replace the base's.")] = None,
    super_resolution: Annotated[
        str | None, typer.Option(help="A super-resolution stage, given like the base.")
    ] = None,
    photos: Annotated[Path | None, typer.Option(help="Dataset of photos that it enlarges.")] = None,
    enlargements: Annotated[
        int, typer.Option(min=1, help="At most so many photos of each size.")
    ] = 48,
    shared: Annotated[
        Path, typer.Option(envvar="DREAMCASCADE_SHARED", help="The shared data folder.")
    ] = Path("../shared"),
    output: Annotated[Path, typer.Option(help="Folder for the scores.")] = Path("runs/scores"),
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures worked on at once.")] = 16,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, ...; the GPU if there is one.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Begin nothing more after this time.")
    ] = None,
) -> None:
    """Check everything, then score what was given."""
    if (super_resolution is None) != (photos is None):
        raise UserError("Give both --super-resolution (a stage) and --photos (a dataset).")
    if stage is None and super_resolution is None:
        raise UserError("There is nothing to score; give a base stage or --super-resolution.")
    where = usable_device(device)
    base = enlarger = None
    if stage is not None:
        model = open_model(stage, False, stage_name, text, where)
        given = {"name": sampler, "steps": steps, "guidance": guidance, "precision": precision}
        names = classes(shared / "data" / "packs")
        base = BaseRequest(
            model=model,
            sampler=changed(model.stage.config.sampler, given),
            count=images,
            names=names,
            wnids=chosen_classes(chosen, names),
            reference=Dataset.open(reference),
            reference_images=reference_images,
            real=None if real is None else Dataset.open(real),
            packs=shared / "data" / "packs",
        )
    if super_resolution is not None and photos is not None:
        large = open_model(super_resolution, True, None, text, where)
        enlarger = EnlargementRequest(
            large,
            photo_sets(
                Dataset.open(photos), shared / "data" / "subjects", enlargements, large.stage.config
            ),
        )
    with pieces(output, where, batch_size, minutes) as context:
        if base is not None:
            announce(base.model, base.sampler)
            write(score_base(base, context), output)
        if enlarger is not None:
            announce(enlarger.model, enlarger.sampler)
            write(score_enlargement(enlarger, context), output)


def changed(sampler: SamplerConfig, given: Mapping[str, str | float | None]) -> SamplerConfig:
    """The checkpoint's sampler with what the command says."""
    change: dict[str, object] = {key: value for key, value in given.items() if value is not None}
    if "steps" in change:
        change["timesteps"] = None
    return SamplerConfig.parse(sampler.model_dump() | change, "the command's flags")


@contextmanager
def pieces(output: Path, device: str, batch_size: int, minutes: float | None) -> Iterator[Context]:
    """Show progress, and stop between two pieces of work when the time is over."""
    end = None if minutes is None else time.monotonic() + 60 * minutes
    with progress_bar(console) as bar:
        rows = stage_steps(bar)

        def row(name: str) -> OnDone:
            def on_done(done: int, total: int) -> None:
                rows(name, done, total)
                if done < total and end is not None and time.monotonic() >= end:
                    raise OutOfTimeError(f"{done} of {total} {name} are done")

            return on_done

        yield Context(output, device, batch_size, row)


def announce(model: Model, sampler: SamplerConfig) -> None:
    """Say what is scored, and how it draws."""
    console.print(f"{model.stage.config.name}: {sampler}", soft_wrap=True, markup=False)


def write(scored: Scored, output: Path) -> None:
    """Keep a stage's record and sheets, and print its table."""
    record = {"environment": environment(), "command": sys.argv} | dict(scored.record)
    write_bytes((json.dumps(record, indent=2) + "\n").encode(), output / f"{scored.name}.json")
    write_bytes(scored.table.encode(), output / f"{scored.name}.md")
    for suffix, sheet in scored.sheets.items():
        write_png(sheet, output / f"{scored.name}{suffix}.png")
    console.print(scored.table, soft_wrap=True, markup=False)


def guarded() -> None:
    """Run the program; being out of time is no mistake."""
    try:
        typer.run(main)
    except OutOfTimeError as stopped:
        console.print(f"The time is over: {stopped}; the same command goes on from here.")
        sys.exit(OUT_OF_TIME)


if __name__ == "__main__":
    answer(guarded)
