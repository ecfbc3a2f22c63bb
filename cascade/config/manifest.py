"""What a cascade is: the file that names its parts."""

import re
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from cascade.config.base import NAME, Frozen, Name
from cascade.config.stage import RecipeName

MANIFEST = "cascade.json"
"""The file of a cascade's folder that holds its `CascadeManifest`."""


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
