"""TensorBoard and Weights & Biases: who is told of a run beside its own log.

Each is told a step once: where a run goes on from an earlier step than it had come to, TensorBoard
drops what it has of later ones, and W&B is not told again what it knows.
"""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from PIL import Image

from cascade.config.stage import StageConfig
from cascade.config.trackers import WandbConfig
from cascade.config.train import TrainConfig
from cascade.errors import UserError
from cascade.files import read_json, require_writable, write_json
from cascade.launch import Launch
from cascade.progress import silence

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_NOTE: Final = "wandb.json"  # which run of W&B's a run's folder belongs to, and the last step told


class Tracker(Protocol):
    """Someone who is told of a run, in the order of its steps."""

    def status(self, step: int, values: Mapping[str, float]) -> None:
        """Tell the figures of a step, by the names that they have in the log."""
        ...

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """Tell a picture drawn at a step."""
        ...

    def rewind(self, step: int) -> None:
        """Go on after an earlier step."""
        ...

    def close(self, failed: bool) -> None:
        """End the telling; nothing is told afterwards."""
        ...


def check_trackers(run: TrainConfig, run_dir: Path) -> None:
    """Make sure that the trackers can be told.

    Raises:
        UserError: a package is missing, a folder cannot be written, or W&B is online without a key.
    """
    for name in run.trackers:
        if find_spec(name) is None:
            raise UserError(
                f"The tracker '{name}' needs the package {name}; install it with "
                f"pip install 'dreamcascade[{name}]', or leave it out of train.trackers."
            )
    if "tensorboard" in run.trackers:
        require_writable(run_dir / run.logging_dir)
    if "wandb" in run.trackers and _online(run.wandb) and Launch.read().is_main:
        _require_login()


def open_trackers(stage: StageConfig, run: TrainConfig, run_dir: Path, start: int) -> list[Tracker]:
    """Open the trackers of a run that goes on after step `start`."""
    opened: list[Tracker] = []
    if "wandb" in run.trackers:  # the one that may fail comes first
        opened.append(WandbTracker(stage, run, run_dir, start))
    if "tensorboard" in run.trackers:
        opened.append(TensorBoard(run_dir / run.logging_dir / stage.name, start))
    return opened


class TensorBoard:
    """Event files in a folder, for `tensorboard --logdir`."""

    def __init__(self, folder: Path, start: int) -> None:
        self._folder = folder
        self._writer = self._opened(start)

    def status(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """See `Tracker`."""
        self._writer.add_image(name, np.asarray(picture), step, dataformats="HWC")
        self._writer.flush()

    def rewind(self, step: int) -> None:
        """See `Tracker`."""
        self._writer.close()
        self._writer = self._opened(step)

    def close(self, failed: bool) -> None:
        """See `Tracker`."""
        self._writer.close()

    def _opened(self, start: int) -> "SummaryWriter":
        with silence("tensorboard", "torch.utils.tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        return SummaryWriter(str(self._folder), purge_step=start + 1)


class WandbTracker:
    """A run of Weights & Biases, gone on with where this one goes on.

    `wandb.json` in the run's folder holds its id. A run that begins at its first step is a new one.
    """

    def __init__(self, stage: StageConfig, run: TrainConfig, run_dir: Path, start: int) -> None:
        import wandb

        self._note = run_dir / _NOTE
        held: Mapping[str, object] = {}
        if start and self._note.is_file():
            held = read_json(self._note, "remove it, and W&B begins a new run")
        self._told = self._last = int(str(held.get("step", 0)))
        try:
            self._run = wandb.init(
                project=run.wandb.project,
                name=run.wandb.name or stage.name,
                id=None if "id" not in held else str(held["id"]),
                resume="allow",
                reinit="create_new",  # beside a run of whoever calls this
                dir=run_dir,
                mode=run.wandb.mode,
                config={
                    "stage": stage.model_dump(mode="json"),
                    "train": run.model_dump(mode="json"),
                },
                settings=wandb.Settings(silent=True, console="off"),
            )
        except wandb.Error as error:
            raise UserError(f"W&B cannot begin a run ({error}); {_OFFLINE}.") from None

    def status(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._tell(step, dict(values))

    def picture(self, step: int, name: str, picture: Image.Image) -> None:
        """See `Tracker`."""
        import wandb

        self._tell(step, {name: wandb.Image(picture)})

    def rewind(self, step: int) -> None:
        """Keep what was told: a step cannot be taken back there."""
        self._told = self._last

    def close(self, failed: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=int(failed))

    def _tell(self, step: int, values: dict[str, Any]) -> None:
        if step > self._told:  # which stays: a step has figures and pictures
            self._run.log(values, step=step)
            self._last = step
            write_json({"id": self._run.id, "step": step}, self._note)


_OFFLINE: Final = "set train.wandb.mode to offline, or leave wandb out of train.trackers"


def _online(config: WandbConfig) -> bool:
    return (config.mode or os.environ.get("WANDB_MODE", "online")) == "online"


def _require_login() -> None:
    """Make sure that W&B has a key that its server takes; nobody is asked for one."""
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    try:
        known = wandb.login(prompt=False)
    except wandb.Error as error:
        raise UserError(f"W&B cannot be reached with its key ({error}); {_OFFLINE}.") from None
    if not known:
        raise UserError(f"W&B has no key on this machine; give one with 'wandb login', {_OFFLINE}.")
