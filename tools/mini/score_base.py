"""How good a base is: whether its pictures show what was asked for, FID, a sheet of pictures.

Shapes: `N` pictures, `C H W` pixels, `D` features.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, islice
from statistics import fmean
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from cascade.config.stage import SamplerConfig
from cascade.errors import UserError
from cascade.evaluate.features import FeatureExtractor, InceptionFID
from cascade.evaluate.grid import image_grid
from cascade.evaluate.judge import Judge
from cascade.evaluate.judge_config import AttributeName, Stated
from cascade.evaluate.metrics import frechet_distance
from cascade.evaluate.stored import evenly, stored_features, to_floats
from judge_pictures import Labelled
from scoring import Context, Model, Scored, markdown
from world import Split, World

SPLITS: Final[tuple[Split, ...]] = ("held out", "training")
TRUE: Final = "true pictures"
SHEET_SEED: Final = 1  # the sheet's prompts are others than those that are counted
SHEET_ROWS, SHEET_COLUMNS, CELL = 12, 6, 128


@dataclass(frozen=True)
class BaseRequest:
    """What to score, and against what.

    Attributes:
        model: the stage.
        sampler: how it draws.
        count: N, pictures to draw of each split.
        judge: tells what they show.
        world: has the prompts.
        held: true pictures of held-out combinations.
        fid: whether the Frechet inception distance to these is wanted.
    """

    model: Model
    sampler: SamplerConfig
    count: int
    judge: Judge
    world: World
    held: Labelled
    fid: bool

    def __post_init__(self) -> None:
        """Refuse what could not be compared."""
        side, config = self.held.images.shape[-1], self.model.stage.config
        if side != config.size:
            raise UserError(
                f"The true pictures are {side} pixels wide but stage '{config.name}' makes "
                f"{config.size}; give a dataset of that size with --held."
            )
        if self.fid and len(self.held.images) < self.count:
            raise UserError(
                f"There are {len(self.held.images)} true pictures; draw no more than that with "
                "--images, or leave FID out with --no-fid: it compares equal numbers."
            )


@dataclass(frozen=True)
class Drawn:
    """Pictures N 3 S S, and what tells them from all others."""

    images: NDArray[np.uint8]
    digest: str


@dataclass(frozen=True)
class Judged:
    """How often the judge sees in pictures what is stated of them, shares in [0, 1].

    Attributes:
        accuracy: of every attribute that is stated of some picture.
        of: of how many.
        by_value: the same for each value that is stated.
    """

    accuracy: Mapping[AttributeName, float]
    of: Mapping[AttributeName, int]
    by_value: Mapping[AttributeName, Mapping[str, float]]


@dataclass(frozen=True)
class Distance:
    """FID to true pictures of held-out combinations; lower is better.

    Attributes:
        extractor: gives the features.
        pictures: N, drawn and true alike.
        drawn: of what the stage drew.
        true: of N other true pictures, the least that can be asked; None where there are too few.
    """

    extractor: str
    pictures: int
    drawn: float
    true: float | None


def score_base(request: BaseRequest, context: Context) -> Scored:
    """Draw pictures of both splits and measure them."""
    # Before anything is drawn: a missing package is told at once.
    inception = InceptionFID(context.device) if request.fid else None
    held = request.held
    judged: dict[str, Judged] = {}
    for split in SPLITS:
        prompts = [said for said, _ in islice(request.world.prompts(split), request.count)]
        drawing = request.model.pictures(request.sampler, prompts, range(request.count))
        images = drawing.draw(
            context.pictures, context.batch_size, context.pieces(f"pictures, {split}")
        )
        judged[split] = judge_pictures(
            request.judge, images, [request.judge.stated(said) for said in prompts]
        )
        if split == "held out":
            drawn = Drawn(images, drawing.name)
    judged[TRUE] = judge_pictures(request.judge, held.images.numpy(), held.stated())
    distance = None if inception is None else _distance(inception, drawn, held, context)
    record = {
        "stage": request.model.described(),
        "sampler": request.sampler.model_dump(mode="json"),
        "pictures": request.count,
        "judged": {name: asdict(found) for name, found in judged.items()},
        "fid": None if distance is None else asdict(distance),
    }
    return Scored(record, _table(request, judged, distance), {"": _sheet(request, context)})


def judge_pictures(judge: Judge, images: NDArray[np.uint8], stated: Sequence[Stated]) -> Judged:
    """Ask the judge about pictures N 3 S S of which something is stated."""
    hits: dict[AttributeName, dict[str, list[bool]]] = {}
    for name, answers in judge.answers(to_floats(images)).items():
        for answer, wanted in zip(answers, stated, strict=True):
            if name in wanted:
                value = wanted[name]
                hits.setdefault(name, {}).setdefault(value, []).append(answer == value)
    every = {name: list(chain(*found.values())) for name, found in hits.items()}
    return Judged(
        {name: fmean(found) for name, found in every.items()},
        {name: len(found) for name, found in every.items()},
        {
            name: {value: fmean(found[value]) for value in sorted(found)}
            for name, found in hits.items()
        },
    )


def _distance(
    extractor: FeatureExtractor, drawn: Drawn, held: Labelled, context: Context
) -> Distance:
    """FID of what was drawn, and of other true pictures, to as many true ones."""
    count = len(drawn.images)
    true = held.images.numpy()
    digest = hashlib.sha256(true.tobytes()).hexdigest()
    places = evenly(len(true), 2 * count)
    enough = len(places) == 2 * count
    rows = places[::2] if enough else evenly(len(true), count)

    def features(name: str, images: NDArray[np.uint8], rows: NDArray[np.int64], of: str) -> Tensor:
        on_done = context.pieces(f"{extractor.name}: {name}")
        return stored_features(extractor, images, rows, of, context.features, on_done)

    reference = features("true pictures", true, rows, digest)
    own = features("pictures", drawn.images, np.arange(count), drawn.digest)
    other = features("other true pictures", true, places[1::2], digest) if enough else None
    return Distance(
        extractor=extractor.name,
        pictures=count,
        drawn=frechet_distance(own, reference),
        true=None if other is None else frechet_distance(other, reference),
    )


def _table(request: BaseRequest, judged: Mapping[str, Judged], distance: Distance | None) -> str:
    """A line for each set of pictures, a column for each attribute."""
    sampler = request.sampler
    steps = sampler.count
    head = ["pictures", *request.judge.config.attributes]
    rows = []
    for name, found in judged.items():
        cells = [
            f"{found.accuracy[one]:.1%} of {found.of[one]:,}" if one in found.of else "-"
            for one in request.judge.config.attributes
        ]
        rows.append([name if name == TRUE else f"drawn, {name}", *cells])
    told = (
        f"{request.model.stage.config.name}, {sampler.name} {steps}, guidance "
        f"{sampler.guidance:g}: right answers of the judge.\n\n{markdown(head, rows)}"
    )
    if distance is None:
        return told
    least = "" if distance.true is None else f"; as many other true pictures: {distance.true:.1f}"
    return (
        f"{told}\nFID of {distance.pictures:,} pictures of held-out combinations to as many true "
        f"ones: {distance.drawn:.1f}{least}.\n"
    )


def _sheet(request: BaseRequest, context: Context) -> Image.Image:
    """A row of pictures for each of some held-out prompts, no two in one place."""
    by_scene: dict[str, str] = {}
    for said, labels in islice(request.world.prompts("held out", SHEET_SEED), 50 * SHEET_ROWS):
        by_scene.setdefault(labels.scene, said)
    prompts = list(by_scene.values())[:SHEET_ROWS]
    drawing = request.model.pictures(
        request.sampler,
        [said for said in prompts for _ in range(SHEET_COLUMNS)],
        list(range(SHEET_COLUMNS)) * len(prompts),
    )
    images = to_floats(
        drawing.draw(context.pictures, context.batch_size, context.pieces("pictures, sheet"))
    )
    cell = max(CELL, images.shape[-1])
    return image_grid(list(images.split(SHEET_COLUMNS)), row_labels=prompts, cell=cell)
