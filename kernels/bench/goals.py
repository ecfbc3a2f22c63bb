"""Whether the kernels reach what they were written for; computed from results, never typed.

A ratio is an alternative's time over the kernel's: above 1 the kernel is faster. Shapes that failed
their check, or during which the device drifted, are missing from a mean and are counted.
"""

import statistics
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from bench import group_norm_film_silu, joint_attention, sampler_step
from bench.problem import REFERENCE
from bench.results import CaseResult, Mode, Results

CONCATENATING = ("cudnn", "flash", "flex")
COMPILED = ("native compiled", "reference compiled")
EAGER = ("native",)
_ATTENTION: dict[Mode, float] = {"forward": 1.3, "both": 1.15}
_NORM: tuple[Mode, ...] = ("forward", "backward")

Figure = Callable[[CaseResult], float | None]


@dataclass(frozen=True)
class Goal:
    """One thing wanted and what was found.

    Attributes:
        text: what is wanted, for people.
        least: the figure that must be reached.
        found: the figure; None where no shape has one.
        shapes: on which it rests.
        wanted_shapes: on which it should rest.
    """

    text: str
    least: float
    found: float | None
    shapes: int
    wanted_shapes: int

    @property
    def verdict(self) -> str:
        """Return "met", "not met", or why neither can be said."""
        if self.found is None:
            return "not yet measured"
        if self.shapes < self.wanted_shapes:
            return f"incomplete: {self.shapes} of {self.wanted_shapes} shapes"
        return "met" if self.found >= self.least else "not met"


def goals(results: Results) -> list[Goal]:
    """Return every goal with what the results say of it."""
    return [*_attention(results), *_norm(results), *_sampler(results)]


def ratio(case: CaseResult, mode: Mode, against: Collection[str] | None = None) -> float | None:
    """Return the best alternative's time over the kernel's, or None where either has none.

    Args:
        case: the shape.
        mode: of running it.
        against: the alternatives that count; None is all.
    """
    ours, best = case.ours(mode), case.best(mode, against)
    if ours is None or best is None or not case.valid(mode):
        return None
    return best[1] / ours


def geometric_mean(values: Collection[float]) -> float | None:
    """Return the geometric mean, or None of nothing."""
    return statistics.geometric_mean(values) if values else None


def _attention(results: Results) -> Iterator[Goal]:
    cases, wanted = list(results.of("joint_attention")), len(joint_attention.cases())
    for mode, least in _ATTENTION.items():
        yield _mean(
            f"joint_attention, {mode}: {least}x the best of cuDNN, FlashAttention and "
            "FlexAttention over concatenated keys",
            least,
            cases,
            wanted,
            _ratio_in(mode, CONCATENATING),
        )
    for mode in _ATTENTION:
        found = [value for case in cases if (value := _dispatched(case, mode)) is not None]
        yield Goal(
            f"joint_attention, {mode}: no dispatched shape below 0.98x",
            0.98,
            min(found, default=None),
            len(found),
            wanted,
        )


def _norm(results: Results) -> Iterator[Goal]:
    cases, wanted = list(results.of("group_norm_film_silu")), len(group_norm_film_silu.cases())
    for mode in _NORM:
        name = f"group_norm_film_silu, {mode}"
        yield _mean(
            f"{name}: 0.85 of the copy's bandwidth", 0.85, cases, wanted, _use(results, mode)
        )
        yield _mean(f"{name}: 1.3x torch.compile", 1.3, cases, wanted, _ratio_in(mode, COMPILED))
        yield _mean(f"{name}: 2x eager", 2.0, cases, wanted, _ratio_in(mode, EAGER))


def _sampler(results: Results) -> Iterator[Goal]:
    large = [case for case in results.of("sampler_step") if "1024" in case.case]
    wanted = sum(case.side == 1024 for case in sampler_step.cases())
    figure = _ratio_in("forward", (REFERENCE,))
    yield _mean("sampler_step at 1024x1024: 5x eager", 5.0, large, wanted, figure)


def _ratio_in(mode: Mode, against: Collection[str]) -> Figure:
    return lambda case: ratio(case, mode, against)


def _use(results: Results, mode: Mode) -> Figure:
    """The share of the copy's bandwidth that the kernel's own passes reach."""

    def figure(case: CaseResult) -> float | None:
        ours = case.ours(mode)
        if ours is None or not case.valid(mode):
            return None
        return 1e6 * case.work[mode].moved / ours / results.peaks.copy_bandwidth

    return figure


def _dispatched(case: CaseResult, mode: Mode) -> float | None:
    """The ratio of the path that a measured table routes to: the reference where we lose."""
    kernel, path = ratio(case, mode), case.find(mode, REFERENCE)
    if kernel is not None and kernel >= 1:
        return kernel
    best = case.best(mode)
    if best is None or path is None or path.timing is None or not case.valid(mode):
        return None
    return best[1] / path.timing.median


def _mean(text: str, least: float, cases: list[CaseResult], wanted: int, figure: Figure) -> Goal:
    found = [value for case in cases if (value := figure(case)) is not None]
    return Goal(text, least, geometric_mean(found), len(found), wanted)
