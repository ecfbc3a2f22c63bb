"""The true pictures that a stage's are compared with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cascade.config.data import DataConfig
from cascade.config.evaluate import StageScoreConfig
from cascade.config.stage import StageConfig
from cascade.data.captioned import CaptionedSamples
from cascade.data.images import read_photos
from cascade.data.opening import held_out_split, open_sources, place_of
from cascade.errors import UserError
from cascade.evaluate.stored import evenly


@dataclass(frozen=True)
class TruePictures:
    """A dataset of `cascade train`, or a folder of photos that are all called `prompt`."""

    dataset: str | None = None
    photos: Path | None = None
    prompt: str = "a photo"

    def __post_init__(self) -> None:
        """Refuse none and both."""
        if (self.dataset is None) == (self.photos is None):
            raise UserError("Give the true pictures: one of --dataset and --photos.")

    def data(self, stage: StageConfig, side: int) -> CaptionedSamples:
        """Open the dataset as whole pictures of a side: what a pack holds out, if it does."""
        if self.dataset is None:
            raise UserError("A base is compared with captioned pictures; give a --dataset.")
        data = DataConfig(folder=self.dataset)
        whole = stage.model_copy(update={"size": side, "low_res": None})
        split = held_out_split(place_of(data, self.dataset))
        sources = tuple(open_sources(data, data.all_sets[0], whole, split))
        return CaptionedSamples(sources, whole, 0, data)

    def check(self, stage: StageConfig, config: StageScoreConfig) -> None:
        """Refuse pictures that do not fit a stage, before anything is loaded."""
        side = stage.size if stage.low_res is None else config.side or stage.size
        if stage.low_res is None or self.dataset is not None:
            self.data(stage, side)
        else:
            self.several(stage, config.images, side)
        factor = stage.size // stage.low_res.size if stage.low_res else 1
        if side % factor:
            raise UserError(
                f"Stage '{stage.name}' enlarges by {factor}, so never to {side} pixels; give "
                f"--side a multiple of {factor}."
            )

    def several(
        self, stage: StageConfig, count: int, side: int
    ) -> tuple[Sequence[Image.Image], list[str]]:
        """Return at most `count` pictures, at least `side` pixels wide, and a caption of each."""
        if self.photos is None:
            data = self.data(stage, side)
            rows = evenly(len(data), count)
            return [Image.fromarray(data.whole(int(row))[0]) for row in rows], captions_of(
                data, rows
            )
        images = read_photos(self.photos, side).images[:count]
        return images, [self.prompt] * len(images)


def pixels_of(data: CaptionedSamples, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return some of a dataset's pictures, N C S S."""
    return np.stack([data.whole(int(row))[0].transpose(2, 0, 1) for row in rows])


def captions_of(data: CaptionedSamples, rows: NDArray[np.int64]) -> list[str]:
    """Return the first caption of some of a dataset's pictures."""
    return [data.captions(int(row))[0] for row in rows]
