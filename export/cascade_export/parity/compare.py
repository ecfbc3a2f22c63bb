"""One stage through three networks: eager in fp32, the baseline and the engine.

Shapes: `B` images, `C H W` pixels in [-1, 1].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from cascade.config.stage import SamplerConfig
from cascade.diffusion.denoiser import Denoised
from cascade.diffusion.noise import Noise, derive_seed
from cascade.sampling import OnStep
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


class Networks(NamedTuple):
    """The same stage around three networks."""

    eager: Stage
    baseline: Stage
    engine: Stage


class Samples(NamedTuple):
    """The same images by each of the networks, B C H W each."""

    eager: Tensor
    baseline: Tensor
    engine: Tensor


@dataclass(frozen=True)
class Sampling:
    """The samples of each network: prompts, how many at once, and perhaps other samplers.

    The reference's predictions of a whole batch are held for all steps.
    """

    prompts: Sequence[str]
    batch_size: int = 2
    samplers: Mapping[str, SamplerConfig] = field(default_factory=dict)

    @property
    def seeds(self) -> range:
        """Return the seed of each prompt."""
        return range(len(self.prompts))

    def batches(self) -> list[slice]:
        """Return the rows of each batch."""
        starts = range(0, len(self.seeds), self.batch_size)
        return [slice(start, start + self.batch_size) for start in starts]


class TensorResult(Figures):
    """One call of one stage's network: what engine and baseline deviate by, and the limit."""

    stage: str
    case: str
    engine: TensorDeviation
    eager: TensorDeviation
    limit: float

    @property
    def passed(self) -> bool:
        """Return whether the engine keeps the limit."""
        return self.engine.relative <= self.limit

    @property
    def excess(self) -> float:
        """Return the engine's deviation over the limit; infinite where it answers NaN."""
        ratio = self.engine.relative / self.limit
        return ratio if ratio == ratio else float("inf")


class TrajectoryResult(Figures):
    """One stage's images, sampled from start to end.

    Attributes:
        steps: root mean square by which the engine's predictions deviate after each step, grey
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
        """Return whether the engine's images keep the limit."""
        return within(self.engine, self.limit)


def compare_tensors(
    networks: Networks, cases: Sequence[Case], numerics: Numerics
) -> list[TensorResult]:
    """Call a stage's three networks on the same inputs."""
    results = []
    for case in cases:
        exact, ours, theirs = (
            case.answer(stage.denoiser.network, stage.device) for stage in networks
        )
        eager = tensor_deviation(ours, exact)
        results.append(
            TensorResult(
                stage=networks.eager.config.name,
                case=case.name,
                engine=tensor_deviation(theirs, exact),
                eager=eager,
                limit=tensor_limit(eager, numerics),
            )
        )
    return results


def compare_pictures(
    networks: Networks,
    table: PromptTable,
    sampling: Sampling,
    below: Samples | None,
    numerics: Numerics,
    on_step: OnStep | None = None,
) -> tuple[TrajectoryResult, Samples]:
    """Sample a stage's images with each of its three networks.

    Args:
        below: what each of the three has sampled in the stage before; None in a base stage.
    """
    parts: list[list[Tensor]] = [[], [], []]
    steps: list[list[list[float]]] = [[], [], []]
    batches = sampling.batches()
    for number, rows in enumerate(batches):
        predictions: list[Tensor] = []
        for index, stage in enumerate(networks):
            low_res = None if below is None else below[index][rows]
            watch = _Recorder(predictions) if index == 0 else _Watch(predictions)
            parts[index].append(_sample(stage, table, sampling, rows, low_res, watch))
            steps[index].append(watch.deviations)
            if on_step is not None:
                on_step(stage.config.name, 3 * number + index + 1, 3 * len(batches))
    samples = Samples(*(torch.cat(part) for part in parts))
    eager = picture_deviation(samples.baseline, samples.eager)
    result = TrajectoryResult(
        stage=networks.eager.config.name,
        steps=_worst(steps[2]),
        eager_steps=_worst(steps[1]),
        engine=picture_deviation(samples.engine, samples.eager),
        eager=eager,
        limit=picture_limit(eager, numerics, samples.eager.numel()),
    )
    return result, samples


class _Watch:
    """A measure of how far, after every step, a prediction is from the reference's."""

    def __init__(self, predictions: list[Tensor]) -> None:
        self.predictions = predictions
        self.deviations: list[float] = []

    def __call__(self, index: int, x: Tensor, denoised: Denoised) -> None:
        difference = denoised.x0.double().cpu() - self.predictions[index]
        self.deviations.append(rms(difference) * GREY_LEVELS)


class _Recorder(_Watch):
    """A recorder of the reference's predictions, from which it does not deviate itself."""

    def __call__(self, index: int, x: Tensor, denoised: Denoised) -> None:
        self.predictions.append(denoised.x0.cpu())
        self.deviations.append(0.0)


def _sample(
    stage: Stage,
    table: PromptTable,
    sampling: Sampling,
    rows: slice,
    low_res: Tensor | None,
    watch: _Watch,
) -> Tensor:
    """Sample a stage's images; NaN where one beside the reference samples none."""
    name = stage.config.name
    prompts, seeds = sampling.prompts[rows], sampling.seeds[rows]
    try:
        return stage.sample(
            table.rows(list(prompts)),
            table.rows([None] * len(prompts)),
            Noise([derive_seed(seed, name) for seed in seeds]),
            low_res,
            sampling.samplers.get(name),
            on_step=watch,
        ).cpu()
    except NoPictureError as error:
        if isinstance(watch, _Recorder):  # nothing can be compared with it
            raise
        return error.pictures.cpu()


def _worst(batches: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the largest deviation of each step; NaN where there is one."""
    return tuple(float(torch.tensor(step).max()) for step in zip(*batches, strict=True))
