"""What one process of a run holds in memory, part by part, by arithmetic alone."""

from dataclasses import dataclass
from functools import cache

import torch

from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.config.unet import UNetConfig
from cascade.data.batch import crop_sides
from cascade.model.memory import FLOAT32, optimizer_bytes, training_bytes
from cascade.model.unet import UNet
from cascade.training.distributed import ALONE, Processes
from cascade.training.parallel import is_shared, mesh_shape


@dataclass(frozen=True)
class Footprint:
    """Bytes of one process: the first, whose share of the weights is the largest.

    Attributes:
        activations: at their peak, with the weights that are gathered or cast for them.
        host: in the machine's memory, of what does not lie on the device.
    """

    weights: int = 0
    gradients: int = 0
    moments: int = 0
    averages: int = 0
    activations: int = 0
    host: int = 0

    @property
    def device(self) -> int:
        """Bytes of the device's memory."""
        return self.weights + self.gradients + self.moments + self.averages + self.activations


def held(
    stage: StageConfig, run: TrainConfig, processes: Processes, activations: int = 0
) -> Footprint:
    """Count what a process holds, to which its activations are given.

    Raises:
        UserError: the processes do not divide into replicas.
    """
    shapes = shares(stage, run, processes)
    weights = FLOAT32 * sum(shape.numel() for shape in shapes)
    moments = optimizer_bytes(shapes, run.optimizer.name)
    averages = len(run.average_labels) * weights
    if run.parallel.offload and is_shared(run.parallel, processes):
        return Footprint(activations=activations, host=2 * weights + moments + averages)
    away = averages if run.parallel.offload_averages else 0
    return Footprint(weights, weights, moments, averages - away, activations, away)


def activation_bytes(stage: StageConfig, run: TrainConfig, processes: Processes, rows: int) -> int:
    """Count the activations of a pass over so many rows at their peak, as kernels keep them."""
    shared = is_shared(run.parallel, processes)
    return _counted(
        stage.unet,
        rows,
        crop_sides(stage)[0],
        stage.text.max_length,
        "fp32" if run.precision == "fp32" else "bf16",
        unrolled=False,
        recomputation=run.gradient_checkpointing,
        gathered=shared,
        reshard=run.parallel.reshard_after_forward or not shared,
    )


_counted = cache(training_bytes)


def shards_of(run: TrainConfig, processes: Processes) -> int:
    """Return the number of processes that share one copy of the weights."""
    return mesh_shape(run.parallel, processes)[-1] if is_shared(run.parallel, processes) else 1


def shares(stage: StageConfig, run: TrainConfig, processes: Processes) -> list[torch.Size]:
    """Return the shapes of what the first process holds of each parameter: its part of the rows."""
    parts = shards_of(run, processes)
    return [torch.Size((-(-first // parts), *rest)) for first, *rest in _shapes(stage.unet)]


@cache
def _shapes(config: UNetConfig) -> tuple[torch.Size, ...]:
    with torch.device("meta"):
        return tuple(parameter.shape for parameter in UNet(config).parameters())


def checkpoint_bytes(stage: StageConfig, run: TrainConfig) -> int:
    """Return the size of a run's checkpoint: weights, moments and averages of all processes."""
    whole = held(stage, run, ALONE)
    return whole.weights + whole.moments + whole.averages + whole.host
