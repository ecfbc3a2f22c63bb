"""`cascade train`: one stage from scratch."""

import time
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from cascade.cli import values
from cascade.cli.console import DryRun, Quiet, Status, resumable
from cascade.cli.options import Flag, Options, with_options
from cascade.cli.train_stages import is_cascade, train_stages
from cascade.config.machine import MachineConfig
from cascade.config.plan import PlannedRun
from cascade.config.train import PretrainConfig
from cascade.errors import UserError
from cascade.launch import Launch
from cascade.progress import say, spell

_STEPS = 1000  # of a plan whose settings name none
_PANEL = "With --plan"
_PARSERS = {"log": values.existing}
FLAGS = tuple(
    Flag(name, (f"machine.{name}",), _PANEL, parser=_PARSERS.get(name))
    for name in MachineConfig.model_fields
)


@with_options(PretrainConfig, FLAGS)
def train(
    options: Options[PretrainConfig],
    path: Annotated[
        Path | None,
        typer.Argument(
            parser=values.path, metavar="CONFIG", help="A TOML file; see configs/ for examples."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Stop after the first step past so many minutes, with a checkpoint and exit "
            f"status {Status.TIME_IS_UP}; no part of the run's settings.",
        ),
    ] = None,
    dry_run: DryRun = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan",
            help="Tell what the run takes of other machines: memory, time, traffic, checkpoints. "
            "Needs no data, no weights and no GPU.",
        ),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Tell the plan as JSON.", rich_help_panel=_PANEL)
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a stage from scratch, or on from a stage's weights; or all stages of a cascade.

    Started again with the same settings it goes on from its last checkpoint. On several GPUs:
    torchrun --nproc-per-node N -m cascade train CONFIG.
    """
    # Before torch is imported: a mistake in the settings is answered at once.
    options = replace(options, file=values.either(path, options.file, "config"))
    if is_cascade(options):
        train_stages(options, minutes, dry_run, plan)
        return
    if plan:
        if dry_run:
            raise UserError("--dry-run tries this machine and --plan another; give one of them.")
        _tell_plan(planned(options), as_json)
        return
    _refuse_plan_flags(options, as_json)
    _train(options.settings(), minutes, dry_run)


def _train(settings: PretrainConfig, minutes: float | None, dry_run: bool) -> None:
    from cascade.training.pretrain import foretell, pretrain

    first, start = Launch.read().is_main, time.monotonic()
    if first and settings.train.ema_note is not None:
        typer.echo(f"train.ema_decay: {settings.train.ema_note}", err=True)
    if dry_run:
        foretell(settings)
        return
    with resumable(settings.output):
        folder = pretrain(settings, minutes)
    if first:
        say(f"The trained stage is in {folder}, after {spell(time.monotonic() - start)}.")
        _tell_next(folder, settings.text_encoder)


def _tell_next(folder: Path, encoder: Path | None) -> None:
    """Tell the command that makes a cascade of the stage."""
    text = f" --text-encoder {quote(str(encoder))}" if encoder else ""
    say(f"Make a cascade of stages: cascade assemble {quote(str(folder))}{text} --output CASCADE")


def planned(options: Options[PretrainConfig]) -> PlannedRun:
    """Return what a plan needs of the settings; a file may be a stage's alone."""
    found = options.read_file()
    found = options.overridden(options.layered(found if "stage" in found else {"stage": found}))
    if "train" not in found:
        typer.echo(
            f"The settings have no [train]: planned are {_STEPS} steps of one picture on each "
            "GPU, in bf16.",
            err=True,
        )
        gpus = found.get("machine", {}).get("gpus", MachineConfig().gpus)
        found["train"] = {"steps": _STEPS, "batch_size": gpus, "precision": "bf16"}
    others = PretrainConfig.model_fields.keys() - PlannedRun.model_fields.keys()
    known = {name: value for name, value in found.items() if name not in others}
    return PlannedRun.parse(known, options.source, options.spelt)


def _tell_plan(run: PlannedRun, as_json: bool) -> None:
    """Print a plan's table; what does not fit is refused below it."""
    from rich.console import Console

    from cascade.training.fitting import require_fit
    from cascade.training.plan import Plan
    from cascade.training.plan_table import as_json as told
    from cascade.training.plan_table import table

    plan = Plan.make(run.stage, run.train, run.machine)
    if as_json:
        typer.echo(told(plan))
    else:
        Console(markup=False, emoji=False, highlight=False).print(table(plan))
    require_fit(plan)


def _refuse_plan_flags(options: Options[PretrainConfig], as_json: bool) -> None:
    """Refuse flags that only a plan has a use for."""
    given = [options.flags[name].spelt for name in options.values] + ["--json"] * as_json
    if given:
        raise UserError(f"{given[0]} belongs to a plan; add --plan, or leave it out.")
