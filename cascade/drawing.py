"""A request in one stage: what it asks the network, and what it makes of the answers.

Requests of one stage share a call of the network at whatever step each is (`advance`). All other
arithmetic is each request's own, so its pictures can depend on who shares its calls through the
network alone, and not at all where a row of its answer does not depend on the rows beside it.

Shapes: `B` pictures, `C H W` pixels, `R` rows of a call.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from cascade.config.stage import Precision
from cascade.diffusion.denoiser import Denoised
from cascade.diffusion.guidance import Guided, Query
from cascade.diffusion.noise import Noise
from cascade.diffusion.samplers import SamplerCall, Trajectory
from cascade.model.precision import autocast
from cascade.tensors import NoPictureError


class Drawing:
    """B pictures on their way through a stage; made by `Stage.begin`.

    Attributes:
        stage: the stage's name.
        count: how many steps they take.
        precision: of the network's arithmetic.
    """

    def __init__(
        self,
        stage: str,
        denoise: Guided,
        calls: Sequence[SamplerCall],
        x: Tensor,
        noise: Noise,
        precision: Precision,
    ) -> None:
        """Start at x, B C H W, at the level of the first of the calls."""
        self.stage = stage
        self.count = sum(call.ends_step for call in calls)
        self.precision: Precision = precision
        self.denoise = denoise
        self._way = Trajectory(calls, x, noise)

    @property
    def done(self) -> bool:
        """Return whether nothing is left to ask."""
        return self._way.done

    @property
    def steps(self) -> int:
        """Return how many steps are done."""
        return self._way.steps

    @property
    def x(self) -> Tensor:
        """Return the pictures at their present noise level, B C H W."""
        return self._way.x

    @property
    def rows(self) -> int:
        """Return how many rows the next call asks for."""
        weight = self.denoise.weight(self._way.call.sigma)
        return len(self.x) * (1 if weight == 1 else 2)

    def ask(self) -> Query:
        """Return what the network is asked next."""
        return self.denoise.ask(self.x, self._way.call.sigma)

    def answer(self, out: Tensor) -> Denoised | None:
        """Take the network's answer, R C H W; return the prediction where it ends a step."""
        return self._way.advance(partial(self.denoise.take, out))

    def pictures(self) -> Tensor:
        """Return what is drawn, B C H W in [-1, 1].

        Raises:
            NoPictureError: a number of it is NaN or infinite.
        """
        if not bool(torch.isfinite(self.x).all()):
            raise NoPictureError(self.stage, self.x)
        return self.x.clamp(-1.0, 1.0)


def advance(drawings: Sequence[Drawing], rows: int | None = None) -> list[Denoised | None]:
    """Ask the network once for all of them, and give each its part of the answer.

    Args:
        drawings: as of `answers`.
        rows: as of `answers`.

    Returns:
        For each the prediction, B C H W, where it has ended a step.
    """
    parts = answers(drawings, rows)
    return [each.answer(part) for each, part in zip(drawings, parts, strict=True)]


@torch.no_grad()
def answers(drawings: Sequence[Drawing], rows: int | None = None) -> Sequence[Tensor]:
    """Ask the network once for all of them, and return what each is answered, R C H W.

    Args:
        drawings: of one network, size and precision.
        rows: fill the call up to so many, for a network that answers alike in calls of one size.
    """
    first = drawings[0]
    queries = [each.ask() for each in drawings]
    query = Query.stack(queries, rows)
    with autocast(first.precision, query.x.device):
        out = first.denoise.denoiser.predict(*query)
    sizes = [len(each.x) for each in queries]
    parts: Sequence[Tensor] = out[: sum(sizes)].split(sizes)
    return parts
