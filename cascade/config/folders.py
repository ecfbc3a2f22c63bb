"""Finding a cascade's folder and reading what it says of itself; no weights, and no torch."""

from collections.abc import Collection, Iterable
from importlib.resources import files
from pathlib import Path
from typing import Final

from cascade.config.manifest import MANIFEST, CascadeManifest
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.files import read_json

BUNDLED = ("mini",)
"""The cascades that ship with the project."""

RUN = "run.json"
"""The file of a run's folder that holds what makes the run that run."""


# Beside the code once installed, beside the package in a checkout.
_INSIDE: Final = Path(str(files("cascade"))) / "configs"
CONFIGS: Final = _INSIDE if _INSIDE.is_dir() else _INSIDE.parents[1] / "configs"
"""The configurations that ship with the project, as TOML."""


def cascade_folder(path: Path | str) -> Path:
    """The folder of a cascade given by path or by the name of one that ships with the project.

    Raises:
        UserError: there is none.
    """
    if str(path) in BUNDLED and not (Path(path) / MANIFEST).is_file():
        return Path(str(files("cascade") / "zoo" / str(path)))
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(
            f"There is no cascade at {path}; give the folder of one, or '{BUNDLED[0]}'."
        )
    return folder


def read_manifest(folder: Path) -> CascadeManifest:
    """Read a cascade folder's `cascade.json`.

    Raises:
        UserError: it is missing or damaged.
    """
    if is_pipeline(folder) and not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} is a diffusers pipeline; make a cascade of it first: cascade import "
            f"--from {folder} --output CASCADE."
        )
    if not (folder / MANIFEST).is_file():
        unfinished = (folder / RUN).is_file()
        mend = "start its run again, and let it end" if unfinished else "give the folder of one"
        raise UserError(f"{folder} is no cascade: it has no {MANIFEST}; {mend}.")
    return CascadeManifest.parse(read_json(folder / MANIFEST), str(folder / MANIFEST))


def read_stage_config(folder: Path) -> StageConfig:
    """Read a stage folder's `config.json`.

    Raises:
        UserError: the file is missing or is not a stage's configuration.
    """
    return StageConfig.parse(read_json(folder / "config.json"), str(folder / "config.json"))


def stages_named(stages: Iterable[StageConfig], names: Collection[str]) -> list[StageConfig]:
    """The stages of these names, or all of them where none is named.

    Raises:
        UserError: there is none of a name.
    """
    known = {stage.name: stage for stage in stages}
    for name in names:
        if name not in known:
            raise UserError(
                f"The cascade has no stage '{name}'; its stages are {', '.join(known)}."
            )
    return [stage for name, stage in known.items() if name in (names or known)]


def is_pipeline(folder: Path) -> bool:
    """Whether this is a diffusers pipeline folder with a U-Net."""
    return (folder / "unet" / "config.json").is_file()
