"""One stage's images by its three networks, batch by batch.

Shapes: `B` images, `C H W` pixels in [-1, 1].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from cascade.config.stage import SamplerConfig
from cascade.diffusion.denoiser import Denoised
from cascade.diffusion.noise import Noise, derive_seed
from cascade.sampling import OnStep
from cascade.stage import Stage
from cascade.tensors import NoPictureError
from cascade.text.encoder import TextEmbedding
from cascade.text.prompts import PromptTable
from cascade_export.graph.probe import rms
from cascade_export.parity.kept import Kept, Values
from cascade_export.parity.limits import GREY_LEVELS


class Networks(NamedTuple):
    """The same stage around three networks; the baseline, as large as two, is made when called."""

    eager: Stage
    engine: Stage
    baseline: Callable[[], Stage]


@dataclass(frozen=True)
class Sampling:
    """The samples of each network: prompts, how many at once, and perhaps other samplers.

    The reference's predictions of a whole batch are held for all steps.

    Attributes:
        kept: where batches are kept until their owner has the report.
    """

    prompts: Sequence[str]
    batch_size: int = 2
    samplers: Mapping[str, SamplerConfig] = field(default_factory=dict)
    kept: Kept | None = None

    @property
    def seeds(self) -> range:
        """Return the seed of each prompt."""
        return range(len(self.prompts))

    def batches(self) -> list[slice]:
        """Return the rows of each batch."""
        starts = range(0, len(self.seeds), self.batch_size)
        return [slice(start, start + self.batch_size) for start in starts]


class Sampled(NamedTuple):
    """A network's images of all batches, B C H W, and after each step the worst batch's deviation.

    Attributes:
        steps: root mean square by which predictions deviate from eager's, grey levels.
    """

    images: Tensor
    steps: tuple[float, ...]


class Trajectory:
    """One stage's images, sampled from start to end; the baseline's where they are asked for.

    Args:
        below: the stage before, of which each network enlarges its own images.
        on_step: told of every network and batch.
    """

    def __init__(
        self,
        networks: Networks,
        table: PromptTable,
        sampling: Sampling,
        below: "Trajectory | None" = None,
        on_step: OnStep | None = None,
    ) -> None:
        self.networks = networks
        self.name = networks.eager.config.name
        self._table, self._sampling, self._below = table, sampling, below
        self._on_step = on_step or (lambda name, done, total: None)

    @cached_property
    def eager(self) -> Tensor:
        """Return the images by eager in fp32, B C H W."""
        return torch.cat([batch["eager"] for batch in self._batches])

    @cached_property
    def engine(self) -> Sampled:
        """Return the images by the engine; NaN where it samples none."""
        return _sampled(self._batches, "engine")

    @cached_property
    def baseline(self) -> Sampled:
        """Return the images by the baseline; the stage before samples its own too."""
        stage = self.networks.baseline()
        below = None if self._below is None else self._below.baseline.images
        lows = [] if self._below is None or below is None else [self._below.eager, below]

        def batch(rows: slice) -> Values:
            predictions: list[Tensor] = []
            self._sample(self.networks.eager, rows, _part(lows, 0, rows), _Recorder(predictions))
            watch = _Watch(predictions)
            return {"baseline": self._sample(stage, rows, _part(lows, 1, rows), watch)} | watch.held

        return _sampled(self._all(f"{self.name}'s limits", "baseline", lows, batch), "baseline")

    @cached_property
    def _batches(self) -> list[Values]:
        lows = [] if self._below is None else [self._below.eager, self._below.engine.images]

        def batch(rows: slice) -> Values:
            predictions: list[Tensor] = []
            recorder, watch = _Recorder(predictions), _Watch(predictions)
            eager, engine = self.networks.eager, self.networks.engine
            images = {"eager": self._sample(eager, rows, _part(lows, 0, rows), recorder)}
            images["engine"] = self._sample(engine, rows, _part(lows, 1, rows), watch)
            return images | watch.held

        return self._all(self.name, "engine", lows, batch)

    def _all(
        self, told: str, who: str, lows: Sequence[Tensor], make: Callable[[slice], Values]
    ) -> list[Values]:
        """Return all batches, those that were kept and others made now."""
        made, batches = [], self._sampling.batches()
        for number, rows in enumerate(batches):
            self._on_step(told, number, len(batches))
            made.append(self._batch(who, rows, [low[rows] for low in lows], make))
            self._on_step(told, number + 1, len(batches))
        return made

    def _batch(
        self, who: str, rows: slice, lows: Sequence[Tensor], make: Callable[[slice], Values]
    ) -> Values:
        kept = self._sampling.kept
        if kept is None:
            return make(rows)
        text, null = self._texts(rows)
        sampler = self._sampling.samplers.get(self.name, self.networks.eager.config.sampler)
        settings = (who, sampler.model_dump_json(), str(list(self._sampling.seeds[rows])))
        inputs = (text.embedding, text.mask, null.embedding, null.mask, *lows)
        return kept.obtain(self.name, settings, inputs, lambda: make(rows))

    def _texts(self, rows: slice) -> tuple[TextEmbedding, TextEmbedding]:
        prompts = list(self._sampling.prompts[rows])
        return self._table.rows(prompts), self._table.rows([None] * len(prompts))

    def _sample(self, stage: Stage, rows: slice, low_res: Tensor | None, watch: "_Watch") -> Tensor:
        """Sample a batch's images; NaN where one beside the reference samples none."""
        noise = Noise([derive_seed(seed, self.name) for seed in self._sampling.seeds[rows]])
        sampler = self._sampling.samplers.get(self.name)
        try:
            return stage.sample(*self._texts(rows), noise, low_res, sampler, on_step=watch).cpu()
        except NoPictureError as error:
            if isinstance(watch, _Recorder):  # nothing can be compared with it
                raise
            return error.pictures.cpu()


class _Watch:
    """A measure of how far, after every step, a prediction is from the reference's."""

    def __init__(self, predictions: list[Tensor]) -> None:
        self.predictions = predictions
        self.deviations: list[float] = []

    def __call__(self, index: int, x: Tensor, denoised: Denoised) -> None:
        difference = denoised.x0.double().cpu() - self.predictions[index]
        self.deviations.append(rms(difference) * GREY_LEVELS)

    @property
    def held(self) -> Values:
        """Return the deviations as a batch keeps them."""
        return {"steps": torch.tensor(self.deviations, dtype=torch.float64)}


class _Recorder(_Watch):
    """A recorder of the reference's predictions, from which it does not deviate itself."""

    def __call__(self, index: int, x: Tensor, denoised: Denoised) -> None:
        self.predictions.append(denoised.x0.cpu())


def _part(lows: Sequence[Tensor], which: int, rows: slice) -> Tensor | None:
    """Return a batch of the stage before, by one of two networks; None in a base stage."""
    return lows[which][rows] if lows else None


def _sampled(batches: Sequence[Values], who: str) -> Sampled:
    # The largest deviation of each step, and NaN where there is one.
    steps = torch.stack([batch["steps"] for batch in batches]).amax(dim=0)
    return Sampled(torch.cat([batch[who] for batch in batches]), tuple(steps.tolist()))
