"""The plan of a pre-training, and where it keeps things on the disk it works on."""

import importlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.shapes import CONFIGS
from cascade.config.base import apply_override
from cascade.config.train import PretrainConfig
from cascade.errors import UserError
from gpu.parts import join_complete
from gpu.pieces import IncompleteError

BASE: Final = "base64"
LARGE: Final = "sr256"
STAGES: Final = (BASE, LARGE)
PACKS: Final = ("tiny64_relevant", "tiny64_rest_a")
"""The base's photos."""

_FOLDERS = ("data/packs", "data/subjects", "cutouts", "site")
_NEEDED = (
    "data/packs/tiny_imagenet_classes.tsv",
    *(f"data/packs/{pack}{end}" for pack in (*PACKS, "tiny64_val") for end in (".bin", ".idx.npz")),
    *(f"data/packs/sr256_photos{end}" for end in (".bin", ".idx.npz", ".tsv")),
    *(f"cutouts/{pack}.npz" for pack in PACKS),
    "data/subjects/prompts_and_classes.txt",
)


@dataclass(frozen=True)
class Plan:
    """How much of everything.

    Attributes:
        size: side of the base's pictures, pixels.
        high: side of the super-resolution stage's.
        minutes: of training, by stage; as many steps are planned as fit in.
        reserve: minutes of a call that training leaves for what follows it, by stage.
        settings: on top of a stage's recipe, as `cascade train --set` takes them.
        probe_steps: of the short runs that measure the speed.
        pictures: that the finished base is scored with.
        few: pictures of the other scores.
        guidance: scales to compare.
        enlargements: photos that the finished super-resolution stage is scored with.
        batch_size: pictures that a score works on at once.
    """

    size: int
    high: int
    minutes: Mapping[str, float]
    reserve: Mapping[str, float]
    settings: Mapping[str, Sequence[str]]
    probe_steps: int
    pictures: int
    few: int
    guidance: Sequence[float]
    enlargements: int
    batch_size: int


@dataclass(frozen=True)
class Job:
    """One pre-training.

    Attributes:
        store: folder for everything, on a disk that lasts from call to call.
        plan: how much.
        settings: what the command says on top of the recipes; `STAGE:A.B=C` is for one stage.
    """

    store: Path
    plan: Plan
    settings: Sequence[str]

    @property
    def packs(self) -> Path:
        """Folder of the photo packs."""
        return self.store / "data" / "packs"

    @property
    def validation(self) -> Path:
        """Dataset of the photos that the base is compared with."""
        return self.store / f"val{self.plan.size}"

    @property
    def results(self) -> Path:
        """Folder of what is handed back."""
        return self.store / "results"

    def dataset(self, stage: str) -> Path:
        """What a stage is trained on."""
        plan = self.plan
        return self.store / (f"base{plan.size}" if stage == BASE else f"sr{plan.high}")

    def run(self, stage: str) -> Path:
        """A stage's training run."""
        return self.store / "runs" / stage

    def trained(self, stage: str) -> Path:
        """A stage once it is trained."""
        return self.run(stage) / "stage"

    def shipped(self, stage: str) -> Path:
        """A stage as it ships."""
        return self.results / "cascade" / stage

    def told(self, stage: str) -> list[str]:
        """What plan and command say of a stage's settings.

        Raises:
            UserError: the command speaks of another stage.
        """
        theirs = []
        for setting in self.settings:
            name, colon, _ = setting.partition("=")[0].partition(":")
            if colon and name not in STAGES:
                raise UserError(f"--set {setting}: the stages are {', '.join(STAGES)}; name one.")
            if not colon:
                theirs.append(setting)
            elif name == stage:
                theirs.append(setting[len(name) + 1 :])
        return [*self.plan.settings[stage], *theirs]

    def says(self, stage: str, key: str) -> bool:
        """Whether plan or command set this key."""
        values: dict[str, object] = {}
        for setting in self.told(stage):
            apply_override(values, setting)
        found: object = values
        for name in key.split("."):
            found = found.get(name) if isinstance(found, dict) else None
        return found is not None


def recipe(stage: str) -> Path:
    """The settings that a stage's training begins with."""
    return CONFIGS / f"mini-{stage}.toml"


def read_recipe(stage: str, settings: Sequence[str]) -> PretrainConfig:
    """A stage's recipe with other settings.

    Raises:
        UserError: one of them is wrong.
    """
    return PretrainConfig.read(recipe(stage), settings)


def require(path: Path, after: str) -> None:
    """Do not begin before an earlier piece is done.

    Raises:
        IncompleteError: `path` is not there yet.
    """
    if not path.exists():
        raise IncompleteError(f"waits for: {after}")


def take_in(data: Path, store: Path) -> None:
    """Copy what is needed and not held yet, and join what came in parts (`parts.py`).

    Raises:
        UserError: there is no such folder.
    """
    if not data.is_dir():
        raise UserError(f"There is no folder {data}; give the carried data with --data.")
    for folder in _FOLDERS:
        for source in sorted((data / folder).rglob("*")):
            target = store / source.relative_to(data)
            if source.is_dir() or _same_size(source, target):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")
            shutil.copyfile(source, partial)
            partial.replace(target)
        join_complete(store / folder)
    importlib.invalidate_caches()  # packages in `site` may be new


def lacking(store: Path) -> list[str]:
    """What of the packs and masks is not held yet."""
    return [name for name in _NEEDED if not (store / name).is_file()]


def _same_size(source: Path, target: Path) -> bool:
    return target.is_file() and target.stat().st_size == source.stat().st_size
