"""Score a cascade's base, or its super-resolution stage.

    python tools/mini/score.py base mini --precision bf16 --output tools/results/2026-12-01-base
    python tools/mini/score.py base runs/pretrain/base64/stage --no-fid --images 500
    python tools/mini/score.py enlargement mini --subjects ../shared/data/subjects

`base` draws pictures of held-out and of seen combinations and asks the judge whether they show what
the prompts say, beside its answers about true pictures; gives their Frechet inception distance, and
a sheet. `enlargement` makes photos small and enlarges them again, against bicubic.

Each writes `OUTPUT.json`, `.md` and sheets `.jpg`. What was drawn and computed is kept in the
folder `--work`: a score that was interrupted, or out of time (exit status 3), goes on where it was.
On a CPU Inception takes about 0.1 s a picture.
"""

import io
import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import typer
from rich.console import Console

from cascade.cli.mistakes import answer
from cascade.config.folders import cascade_folder
from cascade.config.stage import Precision, SamplerConfig, SamplerName
from cascade.environment import environment, usable_device
from cascade.evaluate.judge import FOLDER, Judge
from cascade.evaluate.stored import OnDone
from cascade.files import write_bytes
from cascade.progress import progress_bar, stage_steps
from judge_pictures import Labelled
from score_base import BaseRequest, score_base
from score_enlargement import EnlargementRequest, photo_sets, score_enlargement
from scoring import Context, Model, Scored, open_model
from world import World

OUT_OF_TIME: Final = 3
console = Console()
app = typer.Typer()

Given: TypeAlias = Annotated[str, typer.Argument(help="A cascade or a stage's folder, or mini.")]
Which: TypeAlias = Annotated[str | None, typer.Option(help="Which of a cascade's; its first.")]
Text: TypeAlias = Annotated[
    Path | None, typer.Option(help="The text encoder of a stage's folder; mini's.")
]
Sampler: TypeAlias = Annotated[SamplerName | None, typer.Option(help="Replace the stage's.")]
Steps: TypeAlias = Annotated[int | None, typer.Option(min=1, max=1000, help="Replace the stage's.")]
Guidance: TypeAlias = Annotated[float | None, typer.Option(min=0, help="Replace the stage's.")]
Bits: TypeAlias = Annotated[Precision | None, typer.Option(help="Replace the stage's.")]
Output: TypeAlias = Annotated[Path, typer.Option(help="The score's files, without their endings.")]
Work: TypeAlias = Annotated[Path, typer.Option(help="Folder for pictures and features.")]
Batch: TypeAlias = Annotated[int, typer.Option(min=1, help="Pictures worked on at once.")]
Device: TypeAlias = Annotated[
    str | None, typer.Option(help="cpu, cuda, ...; the GPU if there is one.")
]
Minutes: TypeAlias = Annotated[
    float | None, typer.Option(min=0, help="Begin nothing more after this time.")
]


class OutOfTimeError(Exception):
    """The minutes are over; what is done is on disk."""


@app.command()
def base(
    cascade: Given,
    stage: Which = None,
    text: Text = None,
    judge: Annotated[Path | None, typer.Option(help="The judge's folder; mini's.")] = None,
    sprites: Annotated[Path, typer.Option(help="What make_sprites.py wrote.")] = Path(
        "build/mini/sprites"
    ),
    held: Annotated[Path, typer.Option(help="Dataset of held-out combinations.")] = Path(
        "build/mini/held64"
    ),
    images: Annotated[int, typer.Option(min=2, help="Pictures to draw of each split.")] = 2000,
    fid: Annotated[bool, typer.Option(help="Measure FID to the held-out pictures.")] = True,
    sampler: Sampler = None,
    steps: Steps = None,
    guidance: Guidance = None,
    precision: Bits = None,
    output: Output = Path("build/mini/scores/base"),
    work: Work = Path("build/mini/scores"),
    batch_size: Batch = 16,
    device: Device = None,
    minutes: Minutes = None,
) -> None:
    """Draw pictures and ask the judge what they show."""
    where = usable_device(device)
    model = open_model(cascade, False, stage, text, where)
    given = {"name": sampler, "steps": steps, "guidance": guidance, "precision": precision}
    request = BaseRequest(
        model=model,
        sampler=changed(model.stage.config.sampler, given),
        count=images,
        judge=Judge.load(judge or cascade_folder("mini") / FOLDER, where),
        world=World.open(sprites),
        held=Labelled.open(held),
        fid=fid,
    )
    announce(model, request.sampler)
    with pieces(work, where, batch_size, minutes) as context:
        write(score_base(request, context), output)


@app.command()
def enlargement(
    cascade: Given,
    stage: Which = None,
    text: Text = None,
    subjects: Annotated[Path, typer.Option(help="The DreamBooth data set's folder.")] = Path(
        "../shared/data/subjects"
    ),
    dataset: Annotated[
        Path | None, typer.Option(help="Dataset whose pictures are enlarged as well.")
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="At most so many of each kind.")] = 48,
    sampler: Sampler = None,
    steps: Steps = None,
    guidance: Guidance = None,
    precision: Bits = None,
    output: Output = Path("build/mini/scores/enlargement"),
    work: Work = Path("build/mini/scores"),
    batch_size: Batch = 16,
    device: Device = None,
    minutes: Minutes = None,
) -> None:
    """Make photos small, enlarge them again and compare."""
    where = usable_device(device)
    model = open_model(cascade, True, stage, text, where)
    given = {"name": sampler, "steps": steps, "guidance": guidance, "precision": precision}
    request = EnlargementRequest(
        model,
        changed(model.stage.config.sampler, given),
        photo_sets(dataset, subjects, images, model.stage.config),
    )
    announce(model, request.sampler)
    with pieces(work, where, batch_size, minutes) as context:
        write(score_enlargement(request, context), output)


def changed(sampler: SamplerConfig, given: Mapping[str, str | float | None]) -> SamplerConfig:
    """The checkpoint's sampler with what the command says."""
    change: dict[str, object] = {key: value for key, value in given.items() if value is not None}
    if "steps" in change:
        change["timesteps"] = None
    return SamplerConfig.parse(sampler.model_dump() | change, "the command's flags")


@contextmanager
def pieces(work: Path, device: str, batch_size: int, minutes: float | None) -> Iterator[Context]:
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

        yield Context(work, device, batch_size, row)


def announce(model: Model, sampler: SamplerConfig) -> None:
    """Say what is scored, and how it draws."""
    console.print(f"{model.stage.config.name}: {sampler}", soft_wrap=True, markup=False)


def write(scored: Scored, output: Path) -> None:
    """Keep a stage's record and sheets, and print its table."""
    record = {"environment": environment(), "command": sys.argv} | dict(scored.record)
    # Not `with_suffix`: what follows a point in the name is not its ending.
    write_bytes((json.dumps(record, indent=2) + "\n").encode(), Path(f"{output}.json"))
    write_bytes(scored.table.encode(), Path(f"{output}.md"))
    for suffix, sheet in scored.sheets.items():
        buffer = io.BytesIO()
        sheet.save(buffer, format="JPEG", quality=90)
        write_bytes(buffer.getvalue(), Path(f"{output}{suffix}.jpg"))
    console.print(scored.table, soft_wrap=True, markup=False)


def guarded() -> None:
    """Run the program; being out of time is no mistake."""
    try:
        app()
    except OutOfTimeError as stopped:
        console.print(f"The time is over: {stopped}; the same command goes on from here.")
        sys.exit(OUT_OF_TIME)


if __name__ == "__main__":
    answer(guarded)
