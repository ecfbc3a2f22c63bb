"""A cascade's folder: finding it, and what it says of itself; no weights, and no torch."""

import re
from collections.abc import Collection, Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from cascade.config.base import NAME, Frozen, Name, read_toml
from cascade.config.stage import RecipeName, StageConfig
from cascade.errors import UserError
from cascade.files import read_json

MANIFEST = "cascade.json"
"""The file of a cascade's folder that holds its `CascadeManifest`."""

BUNDLED = ("mini",)
"""The cascades that ship with the project."""

RUN = "run.json"
"""The file of a run's folder that holds what makes the run that run."""


# Beside the code once installed, beside the package in a checkout.
_INSIDE: Final = Path(str(files("cascade"))) / "configs"
CONFIGS: Final = _INSIDE if _INSIDE.is_dir() else _INSIDE.parents[1] / "configs"
"""The configurations that ship with the project, as TOML."""


class CascadeManifest(Frozen):
    """`cascade.json`: which folders make up a cascade, in order."""

    name: str = Field(description="of the cascade, for people")
    text_encoder: str = Field(
        default="text",
        description="a folder in the cascade's, or the absolute path of one too large to copy",
    )
    stages: tuple[Name, ...] = Field(min_length=1, max_length=16, description="folders, base first")
    recipe: RecipeName = Field(
        default="paper", description="the DreamBooth preset that suits these weights"
    )
    licence: str = Field(default="", description="what its weights may be used for")
    format: Literal[1] = Field(default=1, description="of this file")

    @field_validator("text_encoder")
    @classmethod
    def _beside_or_absolute(cls, value: str) -> str:
        if re.fullmatch(NAME, value) or (Path(value).is_absolute() and value.isprintable()):
            return value
        raise ValueError("must be the name of a folder in the cascade's, or an absolute path")

    @model_validator(mode="after")
    def _folders_of_their_own(self) -> Self:
        folders = [*self.stages, self.text_encoder]
        twice = next((name for name in folders if folders.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"'{twice}' is named twice; stages and text_encoder are folders each")
        return self


def cascade_folder(path: Path | str) -> Path:
    """Return a cascade's folder, given its path or the name of a bundled one.

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


def stage_index(name: object, stages: Sequence[StageConfig]) -> int:
    """Return the index of the stage of this name.

    Raises:
        UserError: there is none.
    """
    known = [stage.name for stage in stages]
    if not isinstance(name, str) or name not in known:
        raise UserError(f"The cascade has no stage '{name}'; it has {', '.join(known)}.")
    return known.index(name)


def stages_named(stages: Iterable[StageConfig], names: Collection[str]) -> list[StageConfig]:
    """Return the stages of these names, or all of them where none is named.

    Raises:
        UserError: there is none of a name.
    """
    known = list(stages)
    wanted = {stage_index(name, known) for name in names}
    return [stage for index, stage in enumerate(known) if index in wanted or not names]


def read_stage_file(path: Path) -> StageConfig:
    """Read the stage of a settings file: a run's `[stage]`, or a file that is a stage's alone.

    Raises:
        UserError: the file is missing, or is not a stage's configuration.
    """
    held = read_toml(path)
    return StageConfig.parse(held.get("stage", held), str(path))


def is_pipeline(folder: Path) -> bool:
    """Return whether this is a diffusers pipeline folder with a U-Net."""
    return (folder / "unet" / "config.json").is_file()


def check_chain(stages: Sequence[StageConfig], width: int, folder: Path) -> None:
    """Check that each stage enlarges the pictures of the one before, and reads text of `width`.

    Raises:
        UserError: it does not.
    """
    made: int | None = None
    names: set[str] = set()
    for stage in stages:
        if stage.name in names:
            raise UserError(
                f"In {folder} two stages are called '{stage.name}'; give one of them another name "
                "in its config.json."
            )
        names.add(stage.name)
        wanted = stage.low_res.size if stage.low_res else None
        if wanted != made:
            enlarges = "makes pictures from nothing" if wanted is None else f"enlarges {wanted} px"
            before = "it is the first" if made is None else f"the one before makes {made} px"
            raise UserError(
                f"In {folder} stage '{stage.name}' {enlarges} but {before}; "
                f"put the stages of {MANIFEST} in order, base first."
            )
        if stage.unet.text_width != width:
            raise UserError(
                f"In {folder} stage '{stage.name}' reads text of width {stage.unet.text_width} but "
                f"the encoder's is {width}; use the encoder that belongs to the stages."
            )
        made = stage.size
