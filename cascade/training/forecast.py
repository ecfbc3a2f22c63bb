"""A forecast of a run: what it is going to do, and about how long that takes, by short probes."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import torch
from rich import box, get_console
from rich.table import Table
from torch import nn

from cascade.config.optimizer import OptimizerConfig
from cascade.config.stage import Precision, SamplerConfig, StageConfig
from cascade.config.train import Recomputation, TrainConfig
from cascade.data.batch import crop_sides
from cascade.diffusion.denoiser import Conditioning
from cascade.diffusion.noise import Noise
from cascade.model.example import example_inputs
from cascade.model.precision import autocast
from cascade.model.recompute import set_recomputation
from cascade.model.unet import UNet
from cascade.progress import say, spell
from cascade.stage import Stage, meta_network
from cascade.training.objective import make_objective


@dataclass(frozen=True)
class Work:
    """One part of a run.

    Attributes:
        name: the stage that is trained, or what is drawn.
        size: side of its pictures, pixels.
        seconds: that it is likely to take.
        steps: how many optimizer steps, and how many of them are done.
        batch: rows of a step, in words.
        rate: the learning rate, in words.
        before: what is drawn before it, in words.
    """

    name: str
    size: int
    seconds: float
    steps: str = ""
    batch: str = ""
    rate: str = ""
    before: str = ""


def micro_batch(run: TrainConfig, world: int) -> int:
    """Positions in one pass of one of so many processes; what does not divide is refused later."""
    return max(1, run.batch_size // (run.gradient_accumulation_steps * world))


def training(
    stage: StageConfig, run: TrainConfig, done: int, seconds: float, batch: str, before: str = ""
) -> Work:
    """Describe the training of a stage.

    Args:
        seconds: of the others, and of what is drawn before.
        batch: rows of a step, in words.
        before: what is drawn before, in words.
    """
    return Work(
        name=stage.name,
        size=stage.size,
        seconds=seconds,
        steps=f"{run.steps} ({done} done)" if done else str(run.steps),
        batch=batch,
        rate=_rate(run.optimizer),
        before=before,
    )


def tell(works: Sequence[Work], device: torch.device) -> None:
    """Log the table, and how long it will take in all."""
    rows = {
        "pixels": [str(work.size) for work in works],
        "steps": [work.steps for work in works],
        "batch": [work.batch for work in works],
        "learning rate": [work.rate for work in works],
        "drawn before": [work.before for work in works],
        "about": [spell(work.seconds) for work in works],
    }
    table = Table("", *(work.name for work in works), box=box.SIMPLE_HEAD)
    for title, cells in rows.items():
        if any(cells):
            table.add_row(title, *cells)
    console = get_console()
    with console.capture() as drawn:
        console.print(table, markup=False, highlight=False)
    say(drawn.get().rstrip())
    say(f"About {spell(sum(work.seconds for work in works))} in all on {device}, by a probe.")


def _rate(config: OptimizerConfig) -> str:
    parts = [f"{config.learning_rate:g} {config.schedule}"]
    if config.warmup_steps:
        parts.append(f"after {config.warmup_steps} steps of warm-up")
    return ", ".join(parts)


_LONG: Final = 2.0  # seconds of a first try, from which on no second one is worth its time


class Pace(Protocol):
    """Seconds of the two things that a run spends its time on."""

    def step(self, stage: StageConfig, run: TrainConfig, rows: int) -> float:
        """Return the seconds of one optimizer step whose micro-batches have so many rows."""
        ...

    def evaluation(self, stage: StageConfig, precision: Precision, rows: int) -> float:
        """Return the seconds of one call without gradients on a batch of so many rows."""
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
            torch.stack(list(losses.terms.values())).sum().backward()

        return run.gradient_accumulation_steps * _seconds(micro_batch, self.device)

    @torch.no_grad()
    def evaluation(self, stage: StageConfig, precision: Precision, rows: int) -> float:
        """Call the network."""
        network = self._blank(stage).eval()
        with self.device:
            inputs = example_inputs(stage.unet, rows, stage.size, stage.text.max_length)
        with autocast(precision, self.device):
            return _seconds(lambda: network(**inputs), self.device)

    def _blank(self, stage: StageConfig, recomputation: Recomputation = "none") -> UNet:
        network = meta_network(stage).to_empty(device=self.device)
        for parameter in network.parameters():
            nn.init.zeros_(parameter)  # memory that was never written is full of slow numbers
        set_recomputation(network, recomputation)
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
        * pace.evaluation(stage, sampler.precision, rows if sampler.guidance == 1 else 2 * rows)
        for stage, sampler in zip(stages, samplers, strict=True)
    )


def _calls(sampler: SamplerConfig) -> int:
    """Return the number of network evaluations of a sampler."""
    return 2 * sampler.count if sampler.name == "heun" else sampler.count
