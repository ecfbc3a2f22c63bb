"""The output folder of a run: taken once, refused to others, and large enough."""

import shutil
from pathlib import Path

from cascade.data.images import write_bytes
from cascade.errors import UserError
from cascade.stage import Stage
from cascade.train.distributed import Processes


def claim(output: Path, settings: str, here: Processes) -> None:
    """Take an output folder for a run with these settings, or go on with the one it holds.

    Raises:
        UserError: it holds another run or anything else, or its disk is as good as full.
    """
    note = output / "run.json"
    if note.is_file():
        if note.read_text(encoding="utf-8") != settings:
            raise UserError(
                f"{output} holds a run with other settings (see {note}); choose another output "
                "folder, or remove that one."
            )
    elif output.is_dir() and any(output.iterdir()):
        raise UserError(f"{output} is not empty and holds no run; choose another output folder.")
    here.barrier()
    if here.first:
        output.mkdir(parents=True, exist_ok=True)
        write_bytes(settings.encode(), note)


def require_disk(folder: Path, stage: Stage, kept: int) -> None:
    """Refuse to start a run whose checkpoints would not fit on the disk.

    A checkpoint holds the weights, two optimizer moments and perhaps an average, all in float32;
    one more than is kept exists while a new one is written, and the stage is published beside them.

    Raises:
        UserError: there is less room than that.
    """
    weights = sum(parameter.numel() for parameter in stage.network.parameters()) * 4
    needed = weights * (4 * (kept + 1) + 1)
    existing = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"The run needs about {needed / 2**30:.1f} GiB on the disk of {folder} but "
            f"{free / 2**30:.1f} GiB are free; free some, or choose another output folder."
        )
