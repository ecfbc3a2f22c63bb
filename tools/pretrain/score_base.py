"""How good a base stage is: FID, class accuracy, a sheet of its pictures.

Shapes: `N` pictures, `C H W` pixels, `D` features.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from captions import Subject
from cascade.config.stage import SamplerConfig
from cascade.data.images import resize, square
from cascade.errors import UserError
from cascade.evaluate.classes import (
    ClassAccuracy,
    chance_accuracy,
    class_accuracy,
    noun_accuracy,
)
from cascade.evaluate.features import (
    EfficientNetLite0,
    FeatureExtractor,
    InceptionFID,
    imagenet_columns,
)
from cascade.evaluate.grid import image_grid
from cascade.evaluate.metrics import frechet_distance
from cascade.evaluate.stored import evenly, stored_features, to_floats
from cascade.stage import read_json
from packs import TinyPack, class_filter
from scoring import Context, Dataset, Model, Scored, caption, markdown

VALIDATION: Final = "tiny64_val"
COLUMNS: Final = 8
CELL: Final = 128


@dataclass(frozen=True)
class BaseRequest:
    """What to score, and against what.

    Attributes:
        model: the stage.
        sampler: how it draws.
        count: N, pictures to draw.
        names: every class that the classifier chooses from, by WordNet id.
        wnids: the classes to draw.
        reference: photos that FID compares with.
        reference_images: so many of them, evenly chosen; all without it.
        real: training pictures, whose FID is the floor.
        packs: folder of the photo packs.
    """

    model: Model
    sampler: SamplerConfig
    count: int
    names: Mapping[str, Subject]
    wnids: Sequence[str]
    reference: Dataset
    reference_images: int | None
    real: Dataset | None
    packs: Path

    def __post_init__(self) -> None:
        """Refuse what could not be compared."""
        config = self.model.stage.config
        for dataset in (self.reference, self.real):
            if dataset is not None and dataset.side != config.size:
                raise UserError(
                    f"The pictures of {dataset.folder} are {dataset.side} pixels wide but stage "
                    f"'{config.name}' makes {config.size}; give a dataset of that size."
                )
        if self.real is not None and len(self.real.images) < self.count:
            raise UserError(
                f"{self.real.folder} has {len(self.real.images)} pictures; draw no more than that "
                "with --images, so that both distances are of equal numbers."
            )


@dataclass(frozen=True)
class Labelled:
    """Pictures N 3 S S, each one's place in the list of classes, and what tells the set apart."""

    images: NDArray[np.uint8]
    labels: Tensor
    digest: str

    @property
    def rows(self) -> NDArray[np.int64]:
        """All of them."""
        return np.arange(len(self.images))


@dataclass(frozen=True)
class Distance:
    """FID to one set of photos.

    Attributes:
        to: the set.
        photos: how many of it.
        pictures: of what the stage drew; lower is better.
        training_pictures: of as many training pictures: the floor.
    """

    to: str
    photos: int
    pictures: float
    training_pictures: float | None


def chosen_classes(path: Path | None, names: Mapping[str, Subject]) -> list[str]:
    """The WordNet ids of a training dataset, or of a file; all without a path.

    Raises:
        UserError: there is no such dataset or file, it names no class, or one that is not in the
            class table.
    """
    if path is None:
        return list(names)
    if path.is_dir():
        found = read_json(path / "dataset.json").get("classes")
        wnids = sorted(set(map(str, found))) if isinstance(found, list) else []
    else:
        wnids = sorted(class_filter(path) or ())
    if not wnids:
        raise UserError(
            f"{path / 'dataset.json'} names no classes; make the dataset again, or give a file of "
            "WordNet ids."
        )
    unknown = [wnid for wnid in wnids if wnid not in names]
    if unknown:
        raise UserError(f"The class table has no {unknown[0]}; leave it out of {path}.")
    return wnids


def score_base(request: BaseRequest, context: Context) -> Scored:
    """Draw the pictures and measure them; see `score.py`."""
    wnids, names = request.wnids, request.names
    config = request.model.stage.config
    # Before anything is drawn: a missing package is told at once.
    inception, classifier = InceptionFID(context.device), EfficientNetLite0(context.device)
    columns = imagenet_columns(list(names))
    order = [wnids[number % len(wnids)] for number in range(request.count)]
    prompts = [caption(names[wnid]) for wnid in order]
    drawing = request.model.pictures(request.sampler, prompts, range(request.count))
    images = drawing.draw(context.pictures, context.batch_size, context.pieces("pictures"))
    places = {wnid: place for place, wnid in enumerate(names)}
    drawn = Labelled(images, torch.tensor([places[wnid] for wnid in order]), drawing.name)
    photos = validation_photos(request.packs, wnids, places, request.count, config.size)

    distances = _distances(request, inception, drawn, photos, context)
    accuracy, by_noun = _accuracy(names, classifier, columns, drawn, photos, context)
    record = {
        "stage": request.model.described(),
        "sampler": request.sampler.model_dump(mode="json"),
        "pictures": request.count,
        "caption": caption(names[wnids[0]]),
        "classes": list(wnids),
        "fid": {"extractor": inception.name, "to": [asdict(one) for one in distances]},
        "class accuracy": {
            "classifier": classifier.name,
            "candidates": len(names),
            "photos": len(photos.images),
            "of": {name: asdict(found) for name, found in accuracy.items()},
            "coarse by noun": by_noun,
        },
    }
    table = _table(config.name, request, distances, accuracy)
    return Scored(drawing.name, record, table, {"": _sheet(drawn, wnids, names)})


def validation_photos(
    packs: Path, wnids: Sequence[str], places: Mapping[str, int], count: int, size: int
) -> Labelled:
    """At most `count` validation photos in equal shares of the classes, in their order."""
    pack = TinyPack(packs, VALIDATION)
    members = pack.members(frozenset(wnids))
    each = min(-(-count // len(wnids)), *(len(found) for found in members.values()))
    chosen = [(members[wnid][number], wnid) for number in range(each) for wnid in wnids][:count]
    images = np.stack(
        [
            np.asarray(resize(square(pack[place].image), size, "bicubic")).transpose(2, 0, 1)
            for place, _ in chosen
        ]
    )
    labels = torch.tensor([places[wnid] for _, wnid in chosen])
    return Labelled(images, labels, hashlib.sha256(images.tobytes()).hexdigest())


def _distances(
    request: BaseRequest,
    extractor: FeatureExtractor,
    drawn: Labelled,
    photos: Labelled,
    context: Context,
) -> list[Distance]:
    """FID of the pictures, and of as many training pictures, to two sets of photos."""

    def features(
        name: str, images: NDArray[np.uint8], rows: NDArray[np.int64], digest: str
    ) -> Tensor:
        on_done = context.pieces(f"{extractor.name}: {name}")
        return stored_features(extractor, images, rows, digest, context.features, on_done)

    reference = request.reference
    rows = evenly(len(reference.images), request.reference_images or len(reference.images))
    targets = {
        reference.folder.name: features("reference", reference.images, rows, reference.digest),
        "photos of the same classes": features("photos", photos.images, photos.rows, photos.digest),
    }
    own = features("pictures", drawn.images, drawn.rows, drawn.digest)
    floor = None
    if request.real is not None:
        rows = evenly(len(request.real.images), request.count)
        floor = features("training pictures", request.real.images, rows, request.real.digest)
    return [
        Distance(
            name,
            len(target),
            frechet_distance(own, target),
            None if floor is None else frechet_distance(floor, target),
        )
        for name, target in targets.items()
    ]


def _accuracy(
    names: Mapping[str, Subject],
    classifier: EfficientNetLite0,
    columns: Tensor,
    drawn: Labelled,
    photos: Labelled,
    context: Context,
) -> tuple[dict[str, ClassAccuracy], dict[str, dict[str, float]]]:
    """Class accuracy of the pictures, the photos and chance; of the first two also by noun."""
    nouns = [subject.nouns[0] if subject.nouns else subject.name for subject in names.values()]
    accuracy: dict[str, ClassAccuracy] = {}
    by_noun: dict[str, dict[str, float]] = {}
    for name, some in (("pictures", drawn), ("photos", photos)):
        on_done = context.pieces(f"{classifier.name}: {name}")
        features = stored_features(
            classifier, some.images, some.rows, some.digest, context.features, on_done
        )
        logits = classifier.logits(features)[:, columns]
        accuracy[name] = class_accuracy(logits, some.labels, nouns)
        by_noun[name] = noun_accuracy(logits, some.labels, nouns)
    return accuracy | {"chance": chance_accuracy(drawn.labels, nouns)}, by_noun


def _table(
    name: str,
    request: BaseRequest,
    distances: Sequence[Distance],
    accuracy: Mapping[str, ClassAccuracy],
) -> str:
    """One line; in brackets what to compare with."""
    sampler = request.sampler
    steps = len(sampler.timesteps or ()) or sampler.steps
    head = ["stage", "sampler", "guidance", "pictures"]
    cells = [name, f"{sampler.name} {steps}", f"{sampler.guidance:g}", f"{request.count:,}"]
    for one in distances:
        floor = "" if one.training_pictures is None else f" ({one.training_pictures:.1f})"
        head.append(f"FID to {one.photos:,} of {one.to}{' (training pictures)' if floor else ''}")
        cells.append(f"{one.pictures:.1f}{floor}")
    drawn, photos, chance = (accuracy[kind] for kind in ("pictures", "photos", "chance"))
    candidates = f"of {len(request.names)} classes (photos, chance)"
    for kind in ("top_1", "top_5", "coarse"):
        head.append(f"{kind.replace('_', '-')} {candidates}")
        shares = [float(getattr(one, kind)) for one in (drawn, photos, chance)]
        cells.append(f"{shares[0]:.1%} ({shares[1]:.1%}, {shares[2]:.1%})")
    return markdown(head, [cells])


def _sheet(drawn: Labelled, wnids: Sequence[str], names: Mapping[str, Subject]) -> Image.Image:
    """A row of pictures of each class."""
    places = range(len(drawn.images))
    rows = [
        list(to_floats(drawn.images[list(places[first :: len(wnids)][:COLUMNS])]))
        for first in range(min(len(wnids), len(places)))
    ]
    labels = [names[wnid].name for wnid in wnids[: len(rows)]]
    return image_grid(rows, row_labels=labels, cell=max(CELL, drawn.images.shape[-1]))
