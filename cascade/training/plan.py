"""A run planned for a machine: memory, time, traffic and checkpoints, by arithmetic alone.

Memory is counted, operations are counted; how fast a machine works on them is assumed
(`cascade.config.machine`).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Final, Self

import torch
from torch import nn

from cascade.config.machine import GPUS, Gpu, MachineConfig
from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.errors import UserError
from cascade.model.memory import FLOAT32
from cascade.stage import meta_network
from cascade.training.checkpoint import written_aside
from cascade.training.distributed import Processes
from cascade.training.flops import training_flops
from cascade.training.footprint import (
    Footprint,
    activation_bytes,
    checkpoint_bytes,
    held,
    shards_of,
    shares,
)
from cascade.training.parallel import batch_share, is_shared
from cascade.training.report import read_log

_PASSES: Final = 10  # of the optimizer's step and the clipping over weights, gradients and moments
_PASSES_OF_AVERAGE: Final = 3
_HOST_BANDWIDTH: Final = 20e9  # assumed: bytes a second that a process moves in the host's memory


@dataclass(frozen=True)
class Exchange:
    """One gathering or one reduction among processes, by rings that pass each byte once.

    Attributes:
        size: bytes of the whole.
        ranks: that take part.
        beside: of them on one machine.
        times: in an optimizer step.
    """

    size: float
    ranks: int
    beside: int
    times: int = 1

    @property
    def link(self) -> float:
        """Bytes a step that a GPU receives over its machine's links."""
        apart = 1 - 1 / self.ranks
        return self.times * self.size * apart if self.beside > 1 else 0.0

    @property
    def network(self) -> float:
        """Bytes a step that a GPU receives over the network: what its machine lacks, shared out."""
        return self.times * self.size * (1 / self.beside - 1 / self.ranks)

    def seconds(self, gpu: Gpu, network: float) -> float:
        """Return the time of a step's; links and network work at once."""
        return max(self.link / gpu.link, self.network / network)


@dataclass(frozen=True)
class Plan:
    """A run on a machine.

    Attributes:
        activations: bytes, of one process.
    """

    stage: StageConfig
    run: TrainConfig
    machine: MachineConfig
    activations: int

    @classmethod
    def make(cls, stage: StageConfig, run: TrainConfig, machine: MachineConfig) -> Self:
        """Count a run's activations.

        Raises:
            UserError: the batch or the processes do not divide, or the log tells no utilization.
        """
        if machine.log is not None:
            measured = measured_utilization(machine.log)
            machine = machine.model_copy(update={"utilization": measured})
        processes = processes_of(machine)
        rows = batch_share(run, processes).micro_batch
        return cls(stage, run, machine, activation_bytes(stage, run, processes, rows))

    @property
    def gpu(self) -> Gpu:
        """What is known of the GPU."""
        return GPUS[self.machine.gpu]

    @property
    def rows(self) -> int:
        """Rows of one pass of one process."""
        return batch_share(self.run, processes_of(self.machine)).micro_batch

    @cached_property
    def footprint(self) -> Footprint:
        """Bytes of one process, by part."""
        return held(self.stage, self.run, processes_of(self.machine), self.activations)

    @property
    def workspace(self) -> int:
        """Bytes of a GPU that are left for all that is not counted."""
        return round(self.machine.workspace * self.capacity)

    @property
    def capacity(self) -> int:
        """Bytes of a GPU."""
        return self.gpu.memory * 2**30

    @property
    def fits(self) -> bool:
        """Whether a GPU has room for a process."""
        return self.footprint.device + self.workspace <= self.capacity

    @property
    def operations(self) -> int:
        """Operations of a process in a step."""
        row = training_flops(self.stage, self.run.gradient_checkpointing)
        return row * self.rows * self.run.gradient_accumulation_steps

    @property
    def peak(self) -> float:
        """Operations a second that a GPU can reach in the run's precision."""
        return self.gpu.tf32 if self.run.precision == "fp32" else self.gpu.bf16

    @property
    def compute_seconds(self) -> float:
        """Time of a step's operations."""
        return self.operations / (self.peak * self.machine.utilization)

    @cached_property
    def exchanges(self) -> tuple[Exchange, ...]:
        """What processes exchange in a step."""
        return tuple(_exchanges(self.stage, self.run, processes_of(self.machine)))

    @property
    def exchange_seconds(self) -> float:
        """Time of a step's exchanges, and of what goes to the host and back."""
        network = self.machine.network * 1e9 / 8
        return self._offloaded / self.gpu.host + sum(
            exchange.seconds(self.gpu, network) for exchange in self.exchanges
        )

    @property
    def update_seconds(self) -> float:
        """Time of the optimizer's step and the averages, which only move memory."""
        passes = _PASSES + _PASSES_OF_AVERAGE * len(self.run.average_labels)
        bandwidth = _HOST_BANDWIDTH if self._offloaded else self.gpu.bandwidth
        return passes * self._share / bandwidth

    @property
    def step_seconds(self) -> float:
        """Time of a step: operations and exchanges at once, then the optimizer."""
        return max(self.compute_seconds, self.exchange_seconds) + self.update_seconds

    @property
    def seconds(self) -> float:
        """Time of all steps."""
        return self.run.steps * self.step_seconds

    @property
    def images_per_second(self) -> float:
        """Rows of a step that all processes work on in a second."""
        return self.run.batch_size / self.step_seconds

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint."""
        return checkpoint_bytes(self.stage, self.run)

    @property
    def write_seconds(self) -> float:
        """Time that a checkpoint takes to be written."""
        return self.checkpoint / (self.machine.disk * 1e9)

    @property
    def pause_seconds(self) -> float:
        """Time that a run stands still for a checkpoint: for its copy, or until it is written."""
        if not written_aside(self.run):
            return self.write_seconds
        on_device = self.footprint.device - self.footprint.gradients - self.activations
        return on_device / self._copies / self.gpu.host

    @property
    def host(self) -> int:
        """Bytes of a machine's memory: what lies there, and the copy of a checkpoint's share."""
        processes = processes_of(self.machine)
        parts = shards_of(self.run, processes) * self._copies
        share = self.checkpoint / parts * written_aside(self.run)
        return round(processes.local_world_size * (self.footprint.host + share))

    @property
    def _copies(self) -> int:
        """Processes that part a checkpoint among them since each holds all of it."""
        shared = is_shared(self.run.parallel, processes_of(self.machine))
        return 1 if shared else self.machine.gpus

    @cached_property
    def _share(self) -> int:
        """Bytes of a process's weights, wherever they lie."""
        shapes = shares(self.stage, self.run, processes_of(self.machine))
        return FLOAT32 * sum(shape.numel() for shape in shapes)

    @property
    def _offloaded(self) -> int:
        """Bytes that come from the host for the passes of a step, and go back."""
        parallel = self.run.parallel
        if not (parallel.offload and is_shared(parallel, processes_of(self.machine))):
            return 0
        gatherings = 2 if parallel.reshard_after_forward else 1
        return (gatherings + 1) * self.run.gradient_accumulation_steps * self._share


def measured_utilization(log: Path) -> float:
    """Return the median share of a GPU's peak that a run has noted in its log.

    Raises:
        UserError: it has noted none.
    """
    # A plan's operations are those of the hardware too: what is recomputed counts.
    shares = [status.get("hfu", status["mfu"]) for status in read_log(log) if "mfu" in status]
    if not shares:
        raise UserError(
            f"{log} has no line with mfu, which a run in bf16 on a known GPU writes; give the "
            "log.jsonl of one, or --utilization."
        )
    return median(shares)


def processes_of(machine: MachineConfig) -> Processes:
    """Return the first process of a machine's run."""
    beside = min(machine.gpus, machine.gpus_per_node)
    return Processes(0, machine.gpus, torch.device("cpu"), beside)


def _exchanges(stage: StageConfig, run: TrainConfig, processes: Processes) -> Iterator[Exchange]:
    """Yield what is gathered and reduced in a step."""
    network = meta_network(stage)
    values = _values(network)
    gradients = FLOAT32 * values
    beside = processes.local_world_size
    if not is_shared(run.parallel, processes):
        # Both halves of an all-reduce, once a step.
        yield Exchange(gradients, processes.world_size, beside, times=2)
        return
    passes = run.gradient_accumulation_steps
    ranks = shards_of(run, processes)
    near = math.gcd(ranks, beside)
    blocks = sum(_values(block) for block in network.blocks)
    width = FLOAT32 if run.precision == "fp32" else 2
    gatherings = 2 if run.parallel.reshard_after_forward else 1
    yield Exchange(width * blocks, ranks, near, gatherings * passes)
    yield Exchange(FLOAT32 * (values - blocks), ranks, near, passes)
    yield Exchange(gradients, ranks, near, passes)
    replicas = processes.world_size // ranks
    if replicas > 1:
        yield Exchange(gradients / ranks, replicas, max(1, beside // ranks), times=2)


def _values(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
