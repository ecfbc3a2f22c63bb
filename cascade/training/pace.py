"""About how long training and drawing take on a device, by a short probe of each."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import nn

from cascade.config.stage import Precision, SamplerConfig, StageConfig
from cascade.config.train import TrainConfig
from cascade.data.pairs import crop_sides
from cascade.diffusion.denoiser import Conditioning
from cascade.diffusion.noise import Noise
from cascade.model.example import example_inputs
from cascade.model.precision import autocast
from cascade.model.unet import UNet
from cascade.stage import Stage, skeleton
from cascade.training.objective import make_objective

_LONG: Final = 2.0  # seconds of a first try, from which on no second one is worth its time


class Pace(Protocol):
    """How long the two things take that a run spends its time on, in seconds."""

    def step(self, stage: StageConfig, run: TrainConfig, rows: int) -> float:
        """One optimizer step whose micro-batches have so many rows."""
        ...

    def answer(self, stage: StageConfig, precision: Precision, rows: int) -> float:
        """One call of the network without gradients on a batch of so many rows."""
        ...


@dataclass(frozen=True)
class Probe:
    """A pace that is measured: forward and backward once, uncompiled, by weights of zero.

    What a run spends on reading pictures, on the optimizer and on checkpoints is not in it.
    """

    device: torch.device

    def step(self, stage: StageConfig, run: TrainConfig, rows: int) -> float:
        """Run the micro-batches of one step, forward and backward."""
        built = Stage(stage, self._blank(stage, run.gradient_checkpointing).train())
        built.set_backend(run.kernels)
        objective = make_objective(built, run.objective)
        high, low = crop_sides(stage)
        length = stage.text.max_length
        with self.device:
            images = torch.zeros(rows, 3, high, high)
            cond = Conditioning(
                text=torch.zeros(rows, length, stage.unet.text_width),
                text_mask=torch.ones(rows, length, dtype=torch.bool),
                low_res=None if stage.low_res is None else torch.zeros(rows, 3, low, low),
            )

        def micro_batch() -> None:
            with autocast(run.precision, self.device):
                losses = objective(built.denoiser, images, cond, Noise(range(rows)))
                torch.stack(list(losses.values())).sum().backward()

        return run.gradient_accumulation_steps * _seconds(micro_batch, self.device)

    @torch.no_grad()
    def answer(self, stage: StageConfig, precision: Precision, rows: int) -> float:
        """Call the network."""
        network = self._blank(stage).eval()
        with self.device:
            inputs = example_inputs(stage.unet, rows, stage.size, stage.text.max_length)
        with autocast(precision, self.device):
            return _seconds(lambda: network(**inputs), self.device)

    def _blank(self, stage: StageConfig, checkpointing: bool = False) -> UNet:
        network = skeleton(stage).to_empty(device=self.device)
        for parameter in network.parameters():
            nn.init.zeros_(parameter)  # memory that was never written is full of slow numbers
        network.checkpointing = checkpointing
        return network


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of the second time, which no longer allocates or chooses algorithms."""
    spent = 0.0
    for _ in range(2):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        spent = time.perf_counter() - start
        if spent > _LONG:
            break
    return spent


def drawing_seconds(
    pace: Pace,
    stages: Sequence[StageConfig],
    samplers: Sequence[SamplerConfig],
    pictures: int,
    batch_size: int,
) -> float:
    """Seconds that a number of pictures take through all stages, batch by batch."""
    rows = min(pictures, batch_size)
    return sum(
        math.ceil(pictures / rows)
        * _calls(sampler)
        * pace.answer(stage, sampler.precision, rows if sampler.guidance == 1 else 2 * rows)
        for stage, sampler in zip(stages, samplers, strict=True)
    )


def _calls(sampler: SamplerConfig) -> int:
    """How often a sampler asks for a prediction."""
    return 2 * sampler.count if sampler.name == "heun" else sampler.count
