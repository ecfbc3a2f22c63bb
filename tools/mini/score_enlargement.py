"""How good a super-resolution stage is: photos made small and enlarged again, against bicubic.

Shapes: `N` pictures, `C H W` pixels in [-1, 1].
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from captions import with_article
from cascade.config.stage import SamplerConfig, StageConfig
from cascade.data.captioned import CaptionedArray
from cascade.data.images import read_photos
from cascade.errors import UserError
from cascade.evaluate.enlargement import Fidelity, fidelity, make_pairs
from cascade.evaluate.features import EfficientNetLite0
from cascade.evaluate.grid import image_grid
from cascade.evaluate.stored import evenly, to_floats
from scoring import Context, Model, Scored, markdown

ROWS: Final = 6


@dataclass(frozen=True)
class Photos:
    """Photos with a caption of each, and the side to enlarge them to, pixels."""

    source: str
    side: int
    images: Sequence[Image.Image]
    captions: Sequence[str]


@dataclass(frozen=True)
class EnlargementRequest:
    """What to score, and on what."""

    model: Model
    sampler: SamplerConfig
    sets: Sequence[Photos]


@dataclass(frozen=True)
class Enlarged:
    """One set's figures, of the stage and of bicubic."""

    low: int
    high: int
    source: str
    photos: int
    stage: Fidelity
    bicubic: Fidelity


def photo_sets(
    dataset: Path | None, subjects: Path, count: int, config: StageConfig
) -> tuple[Photos, ...]:
    """What to enlarge: whether one network serves both sizes is told by the same photos at both.

    Args:
        dataset: of pictures of the size that the stage makes; None is none.
        subjects: the DreamBooth data set's folder; photos for that size and for twice that.
        count: at most so many pictures of each.
        config: the stage's.

    Raises:
        UserError: the dataset's pictures are of another size, or the photos missing or too small.
    """
    side = config.size
    sets = (subject_photos(subjects, side, count), subject_photos(subjects, 2 * side, count))
    return sets if dataset is None else (dataset_pictures(dataset, side, count), *sets)


def dataset_pictures(folder: Path, side: int, count: int) -> Photos:
    """At most `count` pictures of a dataset, evenly chosen.

    Raises:
        UserError: there is no such dataset, or its pictures are of another size.
    """
    data = CaptionedArray.open(folder)
    if data.images.shape[-1] != side:
        raise UserError(
            f"The pictures of {folder} are {data.images.shape[-1]} pixels wide but the stage makes "
            f"{side}; give a dataset of that size."
        )
    rows = [int(row) for row in evenly(len(data.images), count)]
    captions = [data.captions[row][0] for row in rows]
    return Photos(folder.name, side, [data.picture(row) for row in rows], captions)


def score_enlargement(request: EnlargementRequest, context: Context) -> Scored:
    """Enlarge photos of all sets and compare; see `score.py`."""
    extractor = EfficientNetLite0(context.device)
    stage = request.model.stage
    found: list[Enlarged] = []
    sheets: dict[str, Image.Image] = {}
    for number, photos in enumerate(request.sets):
        side = photos.side
        pairs = make_pairs(photos.images, stage.config, side)
        drawing = request.model.pictures(
            request.sampler, photos.captions, range(len(photos.images)), pairs.low
        )
        small = int(pairs.low.shape[-1])
        on_done = context.pieces(f"pictures of {photos.source}, {small} -> {side}")
        # As many pixels at once as pictures of the stage's own size have.
        batch_size = max(1, context.batch_size * stage.config.size**2 // side**2)
        enlarged = to_floats(drawing.draw(context.pictures, batch_size, on_done))
        bicubic = pairs.bicubic()
        ours, plain = (
            fidelity(pictures, pairs.high, extractor, stage.config.size)
            for pictures in (enlarged, bicubic)
        )
        found.append(Enlarged(small, side, photos.source, len(photos.images), ours, plain))
        columns = ["small", "bicubic", stage.config.name, "photo"]
        rows = list(zip(pairs.low, bicubic, enlarged, pairs.high, strict=True))[:ROWS]
        sheets[f"-{number}-{side}px"] = image_grid(rows, column_labels=columns, cell=side)
    record = {
        "stage": request.model.described(),
        "sampler": request.sampler.model_dump(mode="json"),
        "level": stage.config.low_res and stage.config.low_res.sampling_level.model_dump(),
        "features": extractor.name,
        "enlarged": [asdict(one) for one in found],
    }
    return Scored(record, _table(stage.config.name, found), sheets)


def subject_photos(folder: Path, side: int, count: int) -> Photos:
    """The first photo of every subject, at most `count`, called by its class noun.

    Raises:
        UserError: the data set is not there, or a photo is smaller than `side`.
    """
    table = folder / "prompts_and_classes.txt"
    if not table.is_file():
        raise UserError(f"There is no {table}; give the DreamBooth data set with --subjects.")
    text = table.read_text(encoding="utf-8")
    nouns = dict(re.findall(r"^(\w+),([a-z ]+)$", text, flags=re.MULTILINE))
    names = sorted(name for name in nouns if (folder / name).is_dir())[:count]
    if not names:
        raise UserError(f"{folder} has no subject's folder; give the data set with --subjects.")
    images = [read_photos(folder / name, side).images[0] for name in names]
    captions = [f"a photo of {with_article(nouns[name])}" for name in names]
    return Photos("DreamBooth's subjects", side, images, captions)


def _table(name: str, found: Sequence[Enlarged]) -> str:
    """Two lines for each set."""
    head = ["pixels", "photos", "enlarged by", "PSNR, dB", "SSIM", "feature distance"]
    rows = [
        [
            f"{one.low} -> {one.high}",
            f"{one.photos} of {one.source}",
            by,
            f"{scores.psnr:.2f}",
            f"{scores.ssim:.3f}",
            f"{scores.feature_distance:.3f}",
        ]
        for one in found
        for by, scores in ((name, one.stage), ("bicubic", one.bicubic))
    ]
    return markdown(head, rows)
