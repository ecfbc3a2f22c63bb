"""The true pictures that a stage's are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cascade.config.evaluate import StageScoreConfig
from cascade.config.stage import StageConfig
from cascade.data.array import CaptionedArray
from cascade.data.images import read_photos
from cascade.errors import UserError
from cascade.evaluate.stored import evenly


@dataclass(frozen=True)
class TruePictures:
    """A dataset of `cascade train`, or a folder of photos that are all called `prompt`."""

    dataset: Path | None = None
    photos: Path | None = None
    prompt: str = "a photo"

    def __post_init__(self) -> None:
        """Refuse none and both."""
        if (self.dataset is None) == (self.photos is None):
            raise UserError("Give the true pictures: one of --dataset and --photos.")

    def data(self) -> CaptionedArray:
        """Open the dataset."""
        if self.dataset is None:
            raise UserError("A base is compared with captioned pictures; give a --dataset.")
        return CaptionedArray.open(self.dataset)

    def check(self, stage: StageConfig, config: StageScoreConfig) -> None:
        """Refuse pictures that do not fit a stage, before anything is loaded."""
        side = stage.size if stage.low_res is None else config.side or stage.size
        if stage.low_res is None or self.dataset is not None:
            found = self.data().images.shape[-1]
            if found != side:
                raise UserError(
                    f"The true pictures are {found} pixels wide but stage '{stage.name}' is to "
                    f"make {side}; give a dataset of that size."
                )
        else:
            self.several(config.images, side)
        factor = stage.size // stage.low_res.size if stage.low_res else 1
        if side % factor:
            raise UserError(
                f"Stage '{stage.name}' enlarges by {factor}, so never to {side} pixels; give "
                f"--side a multiple of {factor}."
            )

    def several(self, count: int, side: int) -> tuple[Sequence[Image.Image], list[str]]:
        """Return at most `count` pictures, at least `side` pixels wide, and a caption of each."""
        if self.photos is None:
            data = self.data()
            rows = evenly(len(data.images), count)
            return [data.picture(int(row)) for row in rows], captions_of(data, rows)
        images = read_photos(self.photos, side).images[:count]
        return images, [self.prompt] * len(images)


def captions_of(data: CaptionedArray, rows: NDArray[np.int64]) -> list[str]:
    """Return the first caption of some of a dataset's pictures."""
    return [data.captions(int(row))[0] for row in rows]
