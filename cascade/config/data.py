"""Settings of what a stage is trained on."""

from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from cascade.config.base import Frozen, Share

Crop = Literal["centre", "random"]
Shapes = Literal["square", "aspect"]

Location = Annotated[
    str,
    BeforeValidator(lambda given: str(given) if isinstance(given, Path) else given),
    StringConstraints(min_length=1),
]
"""A folder, or the address of one in an object store: `s3://bucket/pictures`."""

MOST_WORKERS: Final = 256
"""Processes that decode for one that trains."""


class RowConfig(Frozen):
    """How training rows are drawn from pictures with captions."""

    caption_dropout: Share = Field(
        default=0.1, description="share of rows trained on without their caption"
    )
    flip: bool = Field(
        default=True, description="mirror half of the rows, but none whose caption names a side"
    )
    crop: Crop = Field(
        default="centre", description="where the part of a picture that a row shows is taken"
    )
    least_scale: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = Field(
        default=1.0,
        description="that part's least share of the largest one, drawn evenly from here to 1; no "
        "picture is enlarged",
    )
    shapes: Shapes = Field(
        default="square",
        description="square, or by each shard's aspect ratio with as many pixels, of a pack made "
        "with by_aspect; all rows of a step have one shape",
    )
    window: Annotated[int, Field(strict=True, gt=0, le=2**40)] = Field(
        default=2**17,
        description="pictures shuffled together; a shard's lie side by side, and shards come in a "
        "new order every epoch. Pictures from afar are fetched a window ahead",
    )
    lanes: Annotated[int, Field(strict=True, gt=0, le=2**16)] = Field(
        default=1,
        description="parts of an epoch read side by side; with as many as processes, or a multiple "
        "of that, each process reads shards of its own",
    )


class DataSetConfig(Frozen):
    """One of several sets of pictures."""

    folder: Location = Field(description="a pack or an array, as DataConfig's")
    weight: Annotated[float, Field(strict=True, gt=0.0, le=1e12)] | None = Field(
        default=None, description="its share of the rows, in any unit; its pictures if left out"
    )
    prefix: str = Field(default="", description="put before each of its captions")


class DataConfig(RowConfig):
    """Pictures with captions, and how a training row is drawn from them."""

    folder: Location | None = Field(
        default=None,
        description="a pack, which 'cascade data pack' makes of pictures, or its address in an "
        "object store; or a folder with images.npy and captions.jsonl",
    )
    sets: tuple[DataSetConfig, ...] = Field(
        default=(), max_length=1000, description="several such folders, mixed"
    )
    resident: bool = Field(
        default=False,
        description="hold all pictures, and the embeddings of all captions, on the training device",
    )
    workers: Annotated[int, Field(strict=True, ge=0, le=MOST_WORKERS)] = Field(
        default=0,
        description="processes that decode for each that trains; 0 is a thread, enough for small "
        "pictures",
    )
    cache: Path | None = Field(
        default=None,
        description="gets what is fetched from an address; the user's cache if left out",
    )
    cache_gib: Annotated[float, Field(strict=True, gt=0.0, le=2.0**20)] = Field(
        default=100.0, description="that the cache may hold; what was unused for longest goes"
    )
    most_skipped: Share = Field(
        default=0.01,
        description="share of rows whose picture is damaged or too small, above which a run stops; "
        "another picture of the shard takes the place of each",
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.folder is None) == (not self.sets):
            raise ValueError("pictures come from a folder or from several sets; give one of them")
        if self.resident and (self.crop == "random" or self.least_scale < 1 or self.workers):
            raise ValueError(
                "resident pictures are prepared once, whole and by this process; leave out crop, "
                "least_scale and workers, or set resident = false"
            )
        if self.resident and self.shapes != "square":
            raise ValueError("resident pictures are square; set shapes or resident otherwise")
        return self

    @property
    def all_sets(self) -> tuple[DataSetConfig, ...]:
        """The sets, of which a folder is one."""
        return self.sets if self.folder is None else (DataSetConfig(folder=self.folder),)
