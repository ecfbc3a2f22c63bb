"""What a run is going to do, as a table that is told before it begins."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich import box, get_console
from rich.table import Table

from cascade.config.stage import StageConfig
from cascade.config.train import OptimizerConfig, TrainConfig
from cascade.progress import say, spell


@dataclass(frozen=True)
class Work:
    """One part of a run.

    Attributes:
        name: the stage that is trained, or what is drawn.
        size: side of its pictures, pixels.
        seconds: that it is likely to take.
        steps: how many optimizer steps, and how many of them are done.
        batch: rows of a step, in words.
        rate: the learning rate, in words.
        before: what is drawn before it, in words.
    """

    name: str
    size: int
    seconds: float
    steps: str = ""
    batch: str = ""
    rate: str = ""
    before: str = ""


def micro_batch(run: TrainConfig, world: int) -> int:
    """Positions in one pass of one of so many processes; what does not divide is refused later."""
    return max(1, run.batch_size // (run.gradient_accumulation_steps * world))


def training(
    stage: StageConfig, run: TrainConfig, done: int, seconds: float, batch: str, before: str = ""
) -> Work:
    """The training of a stage.

    Args:
        stage: the stage.
        run: how it is trained.
        done: steps that are behind it.
        seconds: of the others, and of what is drawn before.
        batch: rows of a step, in words.
        before: what is drawn before, in words.
    """
    return Work(
        name=stage.name,
        size=stage.size,
        seconds=seconds,
        steps=f"{run.steps} ({done} done)" if done else str(run.steps),
        batch=batch,
        rate=_rate(run.optimizer),
        before=before,
    )


def tell(works: Sequence[Work], device: torch.device) -> None:
    """Log the table, and how long it will take in all."""
    rows = {
        "pixels": [str(work.size) for work in works],
        "steps": [work.steps for work in works],
        "batch": [work.batch for work in works],
        "learning rate": [work.rate for work in works],
        "drawn before": [work.before for work in works],
        "about": [spell(work.seconds) for work in works],
    }
    table = Table("", *(work.name for work in works), box=box.SIMPLE_HEAD)
    for title, cells in rows.items():
        if any(cells):
            table.add_row(title, *cells)
    console = get_console()
    with console.capture() as drawn:
        console.print(table, markup=False, highlight=False)
    say(drawn.get().rstrip())
    say(f"About {spell(sum(work.seconds for work in works))} in all on {device}, by a probe.")


def _rate(config: OptimizerConfig) -> str:
    parts = [f"{config.learning_rate:g} {config.schedule}"]
    if config.warmup_steps:
        parts.append(f"after {config.warmup_steps} steps of warm-up")
    return ", ".join(parts)
