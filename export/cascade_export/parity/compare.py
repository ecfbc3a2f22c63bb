"""One stage through three networks: eager in fp32, the baseline and the engine.

Shapes: `B` pictures, `C H W` pixels in [-1, 1].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from cascade.config.stage import SamplerConfig
from cascade.diffusion.denoiser import Denoised
from cascade.diffusion.noise import Noise, derive_seed
from cascade.stage import Stage
from cascade.tensors import NoPictureError
from cascade.text.prompts import PromptTable
from cascade_export.graph.numerics import Numerics
from cascade_export.graph.probe import Case, Figures, TensorDeviation, rms, tensor_deviation
from cascade_export.parity.limits import (
    GREY_LEVELS,
    PictureDeviation,
    picture_deviation,
    picture_limit,
    tensor_limit,
    within,
)

OnStep = Callable[[str, int, int], None]
"""Called with (stage name, comparisons done, of how many)."""


class Trio(NamedTuple):
    """The same stage around three networks."""

    eager: Stage
    baseline: Stage
    engine: Stage


class Drawn(NamedTuple):
    """The same pictures by each of a trio, B C H W each."""

    eager: Tensor
    baseline: Tensor
    engine: Tensor


@dataclass(frozen=True)
class Draw:
    """What is drawn: prompts with their seeds, how many at once, and perhaps other samplers."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    batch_size: int
    samplers: Mapping[str, SamplerConfig]

    def batches(self) -> list[slice]:
        """The rows of each batch."""
        starts = range(0, len(self.seeds), self.batch_size)
        return [slice(start, start + self.batch_size) for start in starts]


class TensorResult(Figures):
    """One call of one stage's network: what engine and baseline depart by, and the limit."""

    stage: str
    case: str
    engine: TensorDeviation
    eager: TensorDeviation
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the engine keeps the limit."""
        return self.engine.relative <= self.limit

    @property
    def excess(self) -> float:
        """The engine's deviation over the limit; infinite where it answers NaN."""
        ratio = self.engine.relative / self.limit
        return ratio if ratio == ratio else float("inf")


class TrajectoryResult(Figures):
    """One stage's pictures, drawn from start to end.

    Attributes:
        steps: root mean square by which the engine's predictions depart after each step, grey
            levels; over all batches, the worst.
    """

    stage: str
    steps: tuple[float, ...]
    eager_steps: tuple[float, ...]
    engine: PictureDeviation
    eager: PictureDeviation
    limit: PictureDeviation

    @property
    def passed(self) -> bool:
        """Whether the engine's pictures keep the limit."""
        return within(self.engine, self.limit)


def compare_tensors(trio: Trio, cases: Sequence[Case], numerics: Numerics) -> list[TensorResult]:
    """Call a stage's three networks on the same inputs."""
    results = []
    for case in cases:
        exact, ours, theirs = (case.answer(stage.denoiser.network, stage.device) for stage in trio)
        eager = tensor_deviation(ours, exact)
        results.append(
            TensorResult(
                stage=trio.eager.config.name,
                case=case.name,
                engine=tensor_deviation(theirs, exact),
                eager=eager,
                limit=tensor_limit(eager, numerics),
            )
        )
    return results


def compare_pictures(
    trio: Trio,
    table: PromptTable,
    draw: Draw,
    below: Drawn | None,
    numerics: Numerics,
    on_step: OnStep | None = None,
) -> tuple[TrajectoryResult, Drawn]:
    """Draw a stage's pictures three times.

    Args:
        below: what each of the three has drawn in the stage before; None in a base stage.
    """
    parts: list[list[Tensor]] = [[], [], []]
    steps: list[list[list[float]]] = [[], [], []]
    batches = draw.batches()
    for number, rows in enumerate(batches):
        predictions: list[Tensor] = []
        for index, stage in enumerate(trio):
            low_res = None if below is None else below[index][rows]
            watch = _Recorder(predictions) if index == 0 else _Watch(predictions)
            parts[index].append(_pictures(stage, table, draw, rows, low_res, watch))
            steps[index].append(watch.deviations)
            if on_step is not None:
                on_step(stage.config.name, 3 * number + index + 1, 3 * len(batches))
    drawn = Drawn(*(torch.cat(part) for part in parts))
    eager = picture_deviation(drawn.baseline, drawn.eager)
    result = TrajectoryResult(
        stage=trio.eager.config.name,
        steps=_worst(steps[2]),
        eager_steps=_worst(steps[1]),
        engine=picture_deviation(drawn.engine, drawn.eager),
        eager=eager,
        limit=picture_limit(eager, numerics, drawn.eager.numel()),
    )
    return result, drawn


class _Watch:
    """Measures at every step how far a prediction is from the reference's."""

    def __init__(self, predictions: list[Tensor]) -> None:
        self.predictions = predictions
        self.deviations: list[float] = []

    def __call__(self, index: int, x: Tensor, denoised: Denoised) -> None:
        """Take a step's prediction."""
        difference = denoised.x0.double().cpu() - self.predictions[index]
        self.deviations.append(rms(difference) * GREY_LEVELS)


class _Recorder(_Watch):
    """Keeps the reference's predictions, from which it does not depart itself."""

    def __call__(self, index: int, x: Tensor, denoised: Denoised) -> None:
        """Take a step's prediction."""
        self.predictions.append(denoised.x0.cpu())
        self.deviations.append(0.0)


def _pictures(
    stage: Stage, table: PromptTable, draw: Draw, rows: slice, low_res: Tensor | None, watch: _Watch
) -> Tensor:
    """What a stage draws; NaN where it is another than the reference and draws no picture."""
    name = stage.config.name
    prompts, seeds = draw.prompts[rows], draw.seeds[rows]
    try:
        return stage.sample(
            table.rows(list(prompts)),
            table.rows([None] * len(prompts)),
            Noise([derive_seed(seed, name) for seed in seeds]),
            low_res,
            draw.samplers.get(name),
            on_step=watch,
        ).cpu()
    except NoPictureError as error:
        if isinstance(watch, _Recorder):  # nothing can be compared with it
            raise
        return error.pictures.cpu()


def _worst(batches: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """The largest deviation of each step; NaN where there is one."""
    return tuple(float(torch.tensor(step).max()) for step in zip(*batches, strict=True))
