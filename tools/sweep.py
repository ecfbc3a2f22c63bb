"""Find DreamBooth's defaults for a cascade: one knob at a time around its recipe, on real subjects.

    python tools/sweep.py DATA dog cat --part base --minutes 20
    python tools/sweep.py DATA dog cat --part super-resolution --only steps,prompt
    python tools/sweep.py DATA dog cat --part sampling --full guidance=2,3 --full steps=16,32

DATA is the folder of the DreamBooth data set, as for `tools/subjects.py`, and of four photos or
more the last is held out as there. The knobs and their values stand in `tools/sweeping/knobs.py`.
Every finished setting is a line of `settings.jsonl`: the same command started again tries what is
missing. Writes `sweep.json`, `sweep.md` and a sheet of pictures a knob into a folder of the part's
name, and exits with status 3 where time ran out first.
"""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cascade.cli.mistakes import answer
from cascade.config.folders import cascade_folder, read_manifest
from cascade.config.recipes import RECIPES
from cascade.data.images import read_photos, write_png
from cascade.environment import environment
from cascade.errors import UserError
from cascade.files import write_bytes
from subjects import nouns_of
from sweeping.knobs import Part, Settings, Table, coordinates, cross
from sweeping.ledger import Ledger
from sweeping.report import LIMITS, Limits, Sweep, record, sheet, tables
from sweeping.trial import Bench
from tuning import stage_configs
from work import prepare

OUT_OF_TIME = 3


def main(
    data: Annotated[Path, typer.Argument(help="The data set's folder.")],
    names: Annotated[list[str], typer.Argument(help="Subjects, by their folders' names.")],
    part: Annotated[Part, typer.Option(help="What is swept.")],
    output: Annotated[Path, typer.Option(help="Folder for runs and results.")] = Path("runs/sweep"),
    cascade: Annotated[str, typer.Option(help="The cascade whose defaults are sought.")] = "mini",
    only: Annotated[str | None, typer.Option(help="Knobs to turn, comma-separated.")] = None,
    full: Annotated[
        list[str] | None,
        typer.Option(help="KNOB=VALUE,VALUE; given twice, every combination is tried."),
    ] = None,
    last_stage: Annotated[
        str | None, typer.Option(help="The last super-resolution stage that is swept.")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0, help="Begin no setting after this time.")
    ] = None,
    most_drift: Annotated[
        float | None, typer.Option(min=0, help="Prior drift that the best setting may have.")
    ] = None,
    most_seconds: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds of tuning, or of a picture, that it may take."),
    ] = None,
) -> None:
    """Try every setting on every subject and report what is known."""
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    start = recipe_of(cascade)
    turned = settings_of(part, start, only, full)
    stages = drawn_stages(cascade, part, last_stage)
    nouns = nouns_of(data, names)
    photos = {name: read_photos(data / name) for name in names}
    work = output.resolve() / "work"
    usual = LIMITS[part]
    sweep = Sweep(
        bench=Bench(cascade, part, stages, Console()),
        works={name: prepare(photos[name], nouns[name], work, cascade) for name in names},
        tables=turned,
        ledger=Ledger(output / "settings.jsonl"),
        limits=Limits(
            usual.drift if most_drift is None else most_drift,
            usual.seconds if most_seconds is None else most_seconds,
        ),
    )
    ended = try_all(sweep, start, deadline)
    write(sweep, output / part)
    if not ended:
        raise typer.Exit(OUT_OF_TIME)


def recipe_of(cascade: str) -> Settings:
    """Where a cascade's sweep begins: its recipe, and the sampler of its base."""
    recipe = RECIPES[read_manifest(cascade_folder(cascade)).recipe]
    return Settings(recipe=recipe, sampler=stage_configs(cascade)[0].sampler)


def settings_of(
    part: Part, start: Settings, only: str | None, full: list[str] | None
) -> dict[str, Table]:
    """The tables that were asked for."""
    if only and full:
        raise UserError("--only and --full exclude each other; give one of them.")
    if full:
        return cross(part, start, full)
    return coordinates(part, start, [name.strip() for name in only.split(",")] if only else [])


def drawn_stages(cascade: str, part: Part, last: str | None) -> list[str]:
    """The stages that a part draws: the base, and for super-resolution those after it."""
    base, *others = (stage.name for stage in stage_configs(cascade))
    if part is not Part.super_resolution:
        if last is not None:
            raise UserError(f"{part} draws with the base alone; leave --last-stage out.")
        return [base]
    if not others:
        raise UserError(f"'{cascade}' has no super-resolution stage to tune; choose another part.")
    if last is not None and last not in others:
        raise UserError(
            f"'{last}' is no super-resolution stage of '{cascade}'; it has {', '.join(others)}."
        )
    return [base, *(others if last is None else others[: others.index(last) + 1])]


def try_all(sweep: Sweep, start: Settings, deadline: float | None) -> bool:
    """Try what has not been tried; return whether time sufficed."""
    bench, console = sweep.bench, Console(markup=False)
    trials = {
        bench.key(work, setting.settings): (name, table, setting)
        for table, settings in sweep.tables.items()
        for setting in settings
        for name, work in sweep.works.items()
    }
    left = {key: trial for key, trial in trials.items() if key not in sweep.ledger.found}
    for number, (key, (name, table, setting)) in enumerate(left.items(), start=1):
        if deadline is not None and time.monotonic() >= deadline:
            return False
        console.rule(f"{number} of {len(left)}: {name}, {table} {setting.label}")
        found = bench.try_setting(sweep.works[name], setting.settings, start)
        about = {"part": bench.part, "subject": name, "settings": setting.settings.used(bench.part)}
        sweep.ledger.add(key, about, found.figures())
    return True


def write(sweep: Sweep, folder: Path) -> None:
    """Write the record, the tables and the sheets, and print the tables."""
    found = {"environment": environment(), "command": shlex.join(["python", *sys.argv])}
    text = json.dumps(found | record(sweep), indent=2) + "\n"
    write_bytes(text.encode(), folder / "sweep.json")
    write_bytes(tables(sweep).encode(), folder / "sweep.md")
    for name in sweep.tables:
        write_png(sheet(sweep, name), folder / f"{name.replace(' ', '-')}.png")
    Console(markup=False, highlight=False, soft_wrap=True).print(tables(sweep))


if __name__ == "__main__":
    answer(lambda: typer.run(main))
