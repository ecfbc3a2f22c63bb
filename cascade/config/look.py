"""Settings of `cascade data info` and `cascade data check`."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from cascade.config.base import Frozen, Seed, Share


class InfoConfig(Frozen):
    """What is drawn of a data set beside its figures."""

    sheet: Path | None = Field(
        default=None, description="draw pictures with their captions on one sheet, a PNG"
    )
    pictures: Annotated[int, Field(strict=True, gt=0, le=2**12)] = Field(
        default=48, description="pictures on the sheet, taken evenly from the whole data set"
    )
    seed: Seed = Field(default=0, description="another one takes other pictures")


class CheckConfig(Frozen):
    """How thoroughly a pack is checked."""

    quick: bool = Field(
        default=False, description="compare the files' checksums and look at no record"
    )
    sample: Share = Field(default=1.0, description="share of the pictures that are decoded")
    seed: Seed = Field(default=0, description="another one decodes another share")
    workers: Annotated[int, Field(strict=True, gt=0, le=1024)] | None = Field(
        default=None, description="processes at work; one per core if left out"
    )
