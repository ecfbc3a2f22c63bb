"""Does a cascade that was tuned on a subject know it, and does it still know the class?

A metric is a function of `Evidence` and an entry of `METRICS`; its docstring is what the report
tells of it.
"""

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from cascade.evaluate import metrics
from cascade.evaluate.judge_config import AttributeName
from cascade.evaluate.subject import Evidence

Metric: TypeAlias = Callable[[Evidence], float | None]
"""Gives a figure, or None where there is none of that stage or cascade."""


def similarity(e: Evidence) -> float:
    """Pictures of the subject against its photos; higher is better."""
    return metrics.subject_similarity(e.instance, e.real)


def of_the_way(e: Evidence) -> float | None:
    """Distance of that from the untouched cascade's (0), on the way to the photos' (100)."""
    return way(similarity(e), similarity(e.before), metrics.self_similarity(e.real))


def prior_similarity(e: Evidence) -> float:
    """Pictures of the class against the photos; lower is better."""
    return metrics.subject_similarity(e.of_class, e.real)


def diversity(e: Evidence) -> float:
    """Distance among pictures of the class; higher is better."""
    # DreamBooth (section 4.3) takes LPIPS; a cosine ranks collapse the same way, on another scale.
    return 1 - metrics.self_similarity(e.of_class)


def subject_diversity(e: Evidence) -> float:
    """Distance among pictures of the subject."""
    return 1 - metrics.self_similarity(e.instance)


def prior_drift(e: Evidence) -> float:
    """Pictures of the class against the untouched cascade's of the same seeds; lower is better."""
    # Pairs differ by the weights alone: steady with a dozen, where a Frechet distance of the two
    # sets would need thousands.
    return metrics.feature_distance(e.of_class, e.before.of_class)


def likeness(e: Evidence) -> float | None:
    """Distance of the subject alone, cut out in new places, on the same way."""
    found, floor = e.cut_out, e.before.cut_out
    if found is None or floor is None:
        return None
    pictures, photos = found
    start = metrics.subject_similarity(floor[0], photos)
    end = metrics.self_similarity(photos)
    return way(metrics.subject_similarity(pictures, photos), start, end)


def followed(attribute: AttributeName) -> Metric:
    """Return a metric: the share of pictures elsewhere in which the judge sees what is stated."""

    def share(e: Evidence) -> float | None:
        """Share of pictures elsewhere in which the judge finds what the prompt states."""
        return 100 * e.right[attribute] if attribute in e.right else None

    return share


def psnr(e: Evidence) -> float | None:
    """Likeness of a photo, downscaled and upscaled again, to itself; higher is better."""
    found = e.drawn.enlarged.get(e.stage)
    return None if found is None else metrics.psnr(found.picture, found.pair.high)


def enlarged_distance(e: Evidence) -> float | None:
    """Distance of the same in features, 1 - cosine; lower is better."""
    found, extractor = e.drawn.enlarged.get(e.stage), e.means.extractor
    if found is None:
        return None
    return metrics.feature_distance(extractor(found.picture), extractor(found.pair.high))


METRICS: Final[Mapping[str, Metric]] = {
    "similarity": similarity,
    "of the way, %": of_the_way,
    "PRES": prior_similarity,
    "DIV": diversity,
    "DIV of the subject": subject_diversity,
    "prior drift": prior_drift,
    "likeness, %": likeness,
    "scene, %": followed("scene"),
    "style, %": followed("style"),
    "colour, %": followed("colour"),
    "accessory, %": followed("accessory"),
    "PSNR, dB": psnr,
    "feature distance": enlarged_distance,
}


def score(evidence: Evidence) -> dict[str, float | None]:
    """Measure everything of one stage and cascade."""
    return {name: metric(evidence) for name, metric in METRICS.items()}


def way(similarity: float, floor: float, ceiling: float) -> float | None:
    """Return how far a similarity is from a floor (0) to a ceiling (100), percent.

    Below 0 where tuning led away; None where floor and ceiling leave no way to go.
    """
    return 100 * (similarity - floor) / (ceiling - floor) if ceiling > floor else None
