"""`cascade train` with the file of a whole cascade."""

from pathlib import Path
from shlex import quote

from cascade.cli.console import EarlyEnd, Status, resumable
from cascade.cli.options import Options
from cascade.config.cascade_run import CascadeRunConfig
from cascade.config.train import PretrainConfig
from cascade.errors import UserError
from cascade.progress import say


def is_cascade(options: Options[PretrainConfig]) -> bool:
    """Return whether the settings' file names the stages of a cascade."""
    return "stages" in options.read_file()


def train_stages(
    options: Options[PretrainConfig], minutes: float | None, dry_run: bool, plan: bool
) -> None:
    """Train all stages."""
    if plan or options.values:
        raise UserError("A plan is made of one stage; give its file.")
    config = CascadeRunConfig.parse(options.overridden(options.read_file()), options.source)
    from cascade.whole import Ended, train_cascade

    assert options.file is not None, "it names stages"
    try:
        with resumable():
            made = train_cascade(config, Path(options.file).parent, minutes, dry_run)
    except Ended as end:
        if end.status in tuple(Status):
            raise EarlyEnd(Status(end.status), f"{end}".capitalize()) from None
        raise UserError(f"{end}; what was wrong stands above.".capitalize()) from None
    if not dry_run:
        say(f"The cascade is in {made}.")
        say(f"Draw: cascade sample --cascade {quote(str(made))} --prompt PROMPT")
