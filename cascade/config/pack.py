"""Settings of `cascade data pack`."""

import math
import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from cascade.config.base import Count, Frozen, Share, Side

_TESTS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION: Final = re.compile(rf"\s*([^<>=!]*[^<>=!\s])\s*({'|'.join(_TESTS)})\s*([^\s=]+)\s*")
# A user with a password, and a signature, of an address.
_SECRET: Final = re.compile(r"(?<=://)[^/@]*@|\?.*")

SHRUNK_QUALITY: Final = 95
"""Of JPEGs that are made of larger pictures."""


class Condition(NamedTuple):
    """What a number of a picture must be."""

    name: str
    test: str
    bound: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a condition such as `aesthetic>=5`.

        Raises:
            ValueError: it is none.
        """
        found = _CONDITION.fullmatch(text)
        try:
            if found is not None and math.isfinite(float(found[3])):
                return cls(found[1], found[2], float(found[3]))
        except ValueError:
            pass
        raise ValueError(
            f"'{text}' is no condition; write a name, one of {', '.join(_TESTS)} and a number, "
            "such as 'aesthetic>=5'"
        )

    def holds(self, value: float) -> bool:
        """Report whether a number is as it must be."""
        return _TESTS[self.test](value, self.bound)


class PackConfig(Frozen):
    """Which pictures are packed, and into what."""

    sources: tuple[str, ...] = Field(
        min_length=1,
        description="folders of pictures, webdataset tars, Parquet files, array data sets, packs; "
        "paths or addresses such as s3://bucket/data, with lists such as data-{000..012}.tar",
    )
    output: Path = Field(description="folder of the pack, on this machine")
    image_column: str | None = Field(
        default=None, description="column of the pictures in Parquet files; found if left out"
    )
    caption_column: str | None = Field(
        default=None,
        description="column or field of the captions; caption, captions or text if left out",
    )
    class_names: Path | None = Field(
        default=None, description="a file with the name of a class per line, the first one's 0"
    )
    class_caption: str = Field(
        default="a photo of a {}",
        description="caption of a picture of which only the class is known; {} is its name",
    )
    shrink: Side | None = Field(
        default=None,
        description="make larger pictures so small that the shorter side has this many pixels: "
        f"JPEGs of quality {SHRUNK_QUALITY}, PNGs where something is transparent",
    )
    least_side: Side = Field(default=1, description="shorter side of a picture at least, pixels")
    most_aspect: Annotated[float, Field(strict=True, ge=1.0, le=1000.0)] | None = Field(
        default=None, description="longer side by shorter side of a picture at most"
    )
    where: tuple[str, ...] = Field(
        default=(),
        description="leave out pictures whose number is not so, as in 'aesthetic>=5'; may be "
        "repeated",
    )
    duplicates: Annotated[int, Field(strict=True, ge=0, le=16)] | None = Field(
        default=None,
        description="leave out pictures whose perceptual hash has at most so many bits other than "
        "an earlier one's; 4 finds copies of another size or quality",
    )
    held_out: Share = Field(
        default=0.0, description="share of the pictures that are for validation alone"
    )
    shard_size: Annotated[int, Field(strict=True, gt=0, le=2**20)] = Field(
        default=256, description="size of a shard at most, MiB"
    )
    shard_records: Count = Field(default=10_000, description="pictures of a shard at most")
    by_aspect: bool = Field(
        default=False, description="shards of pictures of about one aspect ratio each"
    )
    workers: Annotated[int, Field(strict=True, gt=0, le=1024)] | None = Field(
        default=None, description="processes at work; one per core if left out"
    )

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What numbers must be."""
        return tuple(map(Condition.parse, self.where))

    @field_validator("where")
    @classmethod
    def _are_conditions(cls, where: tuple[str, ...]) -> tuple[str, ...]:
        for text in where:
            Condition.parse(text)
        return where

    @field_validator("class_caption")
    @classmethod
    def _has_place(cls, caption: str) -> str:
        if "{}" not in caption:
            raise ValueError(f"must have a place for the name, {{}}, not '{caption}'")
        return caption

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.shrink is not None and self.shrink < self.least_side:
            raise ValueError(
                f"pictures shrunk to {self.shrink} pixels would be smaller than the least side, "
                f"{self.least_side}; shrink them less"
            )
        return self

    def identity(self) -> dict[str, Any]:
        """Return all that the pack's bytes depend on, and nothing else; addresses without keys."""
        settings = self.model_dump(mode="json", exclude={"output", "workers"})
        settings["sources"] = [
            _SECRET.sub("", source) if "://" in source else source for source in self.sources
        ]
        return settings
