"""One stage through three networks: eager in fp32, the engine and, where it decides, the baseline.

An engine within the floor passes whatever the baseline is, which is not asked then: it costs
several times as much as the two others.
"""

from collections.abc import Sequence
from functools import cache

from cascade_export.graph.numerics import Numerics
from cascade_export.graph.probe import Case, Figures, TensorDeviation, rms, tensor_deviation
from cascade_export.parity.limits import (
    PictureDeviation,
    picture_deviation,
    picture_limit,
    tensor_limit,
    within,
)
from cascade_export.parity.sampled import Networks, Trajectory


class TensorResult(Figures):
    """One call of one stage's network: what engine and baseline deviate by, and the limit.

    Attributes:
        eager: eager's own deviation in the engine's precision; None where the engine is within the
            floor, which is the limit then.
    """

    stage: str
    case: str
    engine: TensorDeviation
    eager: TensorDeviation | None
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
        eager: of eager in the engine's precision; None, and no `eager_steps`, where the engine is
            within the floor, which is the limit then.
    """

    stage: str
    steps: tuple[float, ...]
    eager_steps: tuple[float, ...]
    engine: PictureDeviation
    eager: PictureDeviation | None
    limit: PictureDeviation

    @property
    def passed(self) -> bool:
        """Return whether the engine's images keep the limit."""
        return within(self.engine, self.limit)


def compare_tensors(
    networks: Networks, cases: Sequence[Case], numerics: Numerics
) -> list[TensorResult]:
    """Call a stage's networks on the same inputs."""
    baseline = cache(networks.baseline)
    results = []
    for case in cases:
        exact, theirs = (
            case.answer(stage.denoiser.network, stage.device)
            for stage in (networks.eager, networks.engine)
        )
        engine, eager = tensor_deviation(theirs, exact), None
        shrunk = rms(case.inputs["x"]) / max(rms(exact), 1e-30)
        limit = tensor_limit(None, numerics, shrunk)
        if not engine.relative <= limit:
            measure = baseline()
            eager = tensor_deviation(case.answer(measure.denoiser.network, measure.device), exact)
            limit = tensor_limit(eager, numerics, shrunk)
        results.append(
            TensorResult(
                stage=networks.eager.config.name,
                case=case.name,
                engine=engine,
                eager=eager,
                limit=limit,
            )
        )
    return results


def compare_pictures(trajectory: Trajectory, numerics: Numerics) -> TrajectoryResult:
    """Compare a stage's images by the engine with eager's, and if need be with the baseline's."""
    images, steps = trajectory.engine
    engine, eager = picture_deviation(images, trajectory.eager), None
    eager_steps: tuple[float, ...] = ()
    limit = picture_limit(None, numerics, images.numel())
    if not within(engine, limit):
        measured, eager_steps = trajectory.baseline
        eager = picture_deviation(measured, trajectory.eager)
        limit = picture_limit(eager, numerics, images.numel())
    return TrajectoryResult(
        stage=trajectory.name,
        steps=steps,
        eager_steps=eager_steps,
        engine=engine,
        eager=eager,
        limit=limit,
    )
