"""The output folder of a run: taken once, refused to others, and large enough."""

import shutil
from collections.abc import Iterable
from pathlib import Path

from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.errors import UserError
from cascade.files import write_bytes
from cascade.stage import skeleton
from cascade.train.distributed import Processes


def claim(output: Path, settings: str, here: Processes) -> None:
    """Take an output folder for a run with these settings, or go on with the one it holds.

    Raises:
        UserError: it holds another run or anything else, or cannot be made.
    """
    note = output / "run.json"
    if note.is_file():
        if note.read_text(encoding="utf-8") != settings:
            raise UserError(
                f"{output} holds a run with other settings (see {note}); choose another output "
                "folder, or remove that one."
            )
    elif output.is_dir() and any(path.suffix != ".partial" for path in output.iterdir()):
        raise UserError(f"{output} is not empty and holds no run; choose another output folder.")
    here.barrier()
    if here.first:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{output} cannot be made a folder ({error.strerror}); choose another output "
                "folder."
            ) from None
        write_bytes(settings.encode(), note)


def require_disk(folder: Path, runs: Iterable[tuple[StageConfig, TrainConfig]]) -> None:
    """Refuse to start runs whose checkpoints would not fit on the disk.

    A checkpoint holds the weights, two optimizer moments and perhaps an average, in float32 (the
    moments of 8-bit AdamW in two bytes and a little for both); one more than is kept exists while a
    new one is written, and the stage is published beside them. What an earlier start left in the
    folder is part of that.

    Raises:
        UserError: there is less room than that.
    """
    needed = sum(
        _weight_bytes(stage) * (_copies(run) * (run.checkpoints_kept + 1) + 1)
        for stage, run in runs
    )
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    held = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if free + held < needed:
        raise UserError(
            f"The run needs about {needed / 2**30:.1f} GiB on the disk of {folder} but "
            f"{free / 2**30:.1f} GiB are free; free some, or choose another output folder."
        )


def _copies(run: TrainConfig) -> float:
    """How many times the weights' size a checkpoint is."""
    return 2.51 if run.optimizer.name == "adamw8bit" else 4.0


def _weight_bytes(stage: StageConfig) -> int:
    return sum(parameter.numel() for parameter in skeleton(stage).parameters()) * 4
