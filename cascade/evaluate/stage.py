"""Scores of one stage: its images beside true ones, and beside a rival's.

A base's pictures answer the captions of true ones; its rival are other true pictures, the least
that can be asked. A super-resolution stage enlarges photos that were made small; its rival is
bicubic interpolation. A metric is a function of `Shown` and an entry of `METRICS`, and its
docstring is what the table tells.

Shapes: `N` pictures, `C H W` pixels (uint8 where they may lie in a file, else in [-1, 1]).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cascade.config.evaluate import StageScoreConfig
from cascade.data.captioned import CaptionedSamples
from cascade.data.grid import image_grid
from cascade.evaluate import enlargement, metrics
from cascade.evaluate.enlargement import Pairs, make_pairs
from cascade.evaluate.features import FeatureExtractor
from cascade.evaluate.judge import Judge
from cascade.evaluate.judge_config import AttributeName
from cascade.evaluate.stored import OnDone, PictureSet, evenly, stored_features, to_bytes, to_floats
from cascade.evaluate.true import captions_of, pixels_of
from cascade.stage import Stage
from cascade.tables import Table, explained

Bytes: TypeAlias = NDArray[np.uint8]

TRUE: Final = "other true pictures"
BICUBIC: Final = "bicubic"
_ROWS, _COLUMNS, _CELL = 6, 6, 128


@dataclass(frozen=True)
class Means:
    """The networks that images are measured with, and their folder."""

    fid: FeatureExtractor | None  # None where FID is not wanted
    features: FeatureExtractor | None  # of single pictures; None where none are enlarged
    judge: Judge | None  # None where the cascade has none
    work: Path  # folder for features, so that an interrupted score goes on
    on_done: Callable[[str], OnDone]  # told of every piece of a work, by that work's name


@dataclass(frozen=True)
class Shown:
    """The evidence of a metric."""

    name: str  # whose pictures they are
    images: Bytes  # N C H W
    true: Bytes  # N C H W
    captions: Sequence[str]  # N, of the images
    paired: bool  # whether each picture stands for the true one in its place
    tile: int  # side of the stage's own pictures, pixels
    means: Means

    @cached_property
    def fidelity(self) -> enlargement.Fidelity | None:
        """How near every picture is to its photo."""
        if not self.paired or self.means.features is None:
            return None
        pictures, photos = to_floats(self.images), to_floats(self.true)
        return enlargement.fidelity(pictures, photos, self.means.features, self.tile)

    @cached_property
    def right(self) -> Mapping[AttributeName, float]:
        """The judge's share of right answers, by what captions state."""
        judge = self.means.judge
        if judge is None or self.paired:
            return {}
        stated = [judge.stated(caption) for caption in self.captions]
        return judge.accuracy(to_floats(self.images), stated)


Metric: TypeAlias = Callable[[Shown], float | None]
"""Gives a figure, or None where there is none of such pictures."""


def fid(shown: Shown) -> float | None:
    """Frechet inception distance to as many true pictures; lower is better."""
    extractor = shown.means.fid
    if shown.paired or extractor is None:
        return None

    def features(name: str, images: Bytes) -> Tensor:
        digest, on_done = hashlib.sha256(images.tobytes()), shown.means.on_done(f"FID: {name}")
        rows = np.arange(len(images))
        return stored_features(
            extractor, images, rows, digest.hexdigest(), shown.means.work, on_done
        )

    return metrics.frechet_distance(
        features(shown.name, shown.images), features("true pictures", shown.true)
    )


def followed(attribute: AttributeName) -> Metric:
    """Return a metric: the share of pictures in which the judge sees what their captions state."""

    def share(shown: Shown) -> float | None:
        """Share of pictures in which the judge sees what the caption states."""
        return 100 * shown.right[attribute] if attribute in shown.right else None

    return share


def psnr(shown: Shown) -> float | None:
    """Peak signal to noise against the photo; higher is better, and blur is rewarded."""
    return None if shown.fidelity is None else shown.fidelity.psnr


def ssim(shown: Shown) -> float | None:
    """Structural similarity with the photo; higher is better, and blur is rewarded."""
    return None if shown.fidelity is None else shown.fidelity.ssim


def feature_distance(shown: Shown) -> float | None:
    """1 - cosine of the photo's features; lower is better, and detail of the kind is rewarded."""
    return None if shown.fidelity is None else shown.fidelity.feature_distance


METRICS: Final[Mapping[str, Metric]] = {
    "FID": fid,
    "concept, %": followed("concept"),
    "style, %": followed("style"),
    "scene, %": followed("scene"),
    "colour, %": followed("colour"),
    "accessory, %": followed("accessory"),
    "PSNR, dB": psnr,
    "SSIM": ssim,
    "feature distance": feature_distance,
}

Draw: TypeAlias = Callable[[Sequence[str], Sequence[int], Tensor | None], PictureSet]
"""Gives the pictures, yet to be drawn, of captions, seeds, and what is to be enlarged."""


@dataclass(frozen=True)
class Scored:
    """Figures by whose pictures they are, then by metric; and a sheet."""

    figures: Mapping[str, Mapping[str, float | None]]
    sheet: Image.Image

    def table(self, stage: str) -> Table:
        """Give a line for each; what nobody has a figure of is left out."""
        found = self.figures
        names = [name for name in METRICS if any(of[name] is not None for of in found.values())]
        rows = [[who, *(of[name] for name in names)] for who, of in found.items()]
        return Table([stage, *names], rows, explained({name: METRICS[name] for name in names}))


def score_base(
    stage: Stage, data: CaptionedSamples, config: StageScoreConfig, draw: Draw, means: Means
) -> Scored:
    """Draw pictures of a dataset's captions and measure them against its pictures."""
    count, side, name = config.images, stage.config.size, stage.config.name
    # As many true pictures are left over to be the rival, if there are enough.
    places = evenly(len(data), 2 * count)
    enough = len(places) == 2 * count
    rows = places[::2] if enough else evenly(len(data), count)
    captions, true = captions_of(data, rows), pixels_of(data, rows)
    drawing = draw(captions, range(len(rows)), None)
    drawn = drawing.draw(means.work, config.batch_size, means.on_done(f"pictures by {name}"))
    shown = [Shown(name, drawn, true, captions, False, side, means)]
    if enough:
        others = places[1::2]
        rival = pixels_of(data, others), true, captions_of(data, others)
        shown.append(Shown(TRUE, *rival, False, side, means))
    cells = to_floats(drawn[: _ROWS * _COLUMNS])
    few = [captions[place : place + _COLUMNS] for place in range(0, len(cells), _COLUMNS)]
    sheet = image_grid(list(cells.split(_COLUMNS)), captions=few, cell=max(_CELL, side))
    return Scored({each.name: _score(each) for each in shown}, sheet)


def score_enlargement(
    stage: Stage,
    photos: Sequence[Image.Image],
    captions: Sequence[str],
    side: int,
    config: StageScoreConfig,
    draw: Draw,
    means: Means,
) -> Scored:
    """Make photos small, enlarge them to `side` pixels and measure them against themselves."""
    name, size = stage.config.name, stage.config.size
    pairs: Pairs = make_pairs(photos, stage.config, side)
    drawing = draw(captions, range(len(photos)), pairs.low)
    # As many pixels at once as pictures of the stage's own size have.
    at_once = max(1, config.batch_size * size**2 // side**2)
    drawn = drawing.draw(means.work, at_once, means.on_done(f"pictures by {name}"))
    true, bicubic = to_bytes(pairs.high), to_bytes(pairs.bicubic())
    shown = [
        Shown(who, images, true, captions, True, size, means)
        for who, images in ((name, drawn), (BICUBIC, bicubic))
    ]
    columns = [pairs.low, *(to_floats(images[:_ROWS]) for images in (bicubic, drawn)), pairs.high]
    rows = list(zip(*(some[:_ROWS] for some in columns), strict=True))
    sheet = image_grid(rows, column_labels=["small", BICUBIC, name, "photo"], cell=side)
    return Scored({each.name: _score(each) for each in shown}, sheet)


def _score(shown: Shown) -> dict[str, float | None]:
    return {name: metric(shown) for name, metric in METRICS.items()}
