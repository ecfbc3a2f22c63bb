"""The processes of a run. Started by `torchrun`, or one process alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cascade.launch import Launch


@dataclass(frozen=True)
class Processes:
    """This process's place among those of the run, and the device it works on."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that reports and writes what exists once."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """Make the network's gradients the mean over all processes."""
        if self.world == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes."""
        if self.world > 1:
            dist.all_reduce(value)
            value = value / self.world
        return value

    def largest(self, value: int) -> int:
        """The largest of the processes' values; the hosts agree, no device is waited for."""
        if self.world == 1:
            return value
        values = torch.tensor(value)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def processes() -> Iterator[Processes]:
    """Join the process group that `torchrun` announces, for the length of the block."""
    launch = Launch.read()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", launch.local_rank) if cuda else None
    if device is not None:
        torch.cuda.set_device(device)
    joins = launch.world > 1 and not dist.is_initialized()
    if joins:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield Processes(launch.rank, launch.world, device or torch.device("cpu"))
    finally:
        if joins:
            dist.destroy_process_group()
