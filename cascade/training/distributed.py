"""The processes of a run. Started by `torchrun`, or one process alone."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Final, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.nn.parallel import DistributedDataParallel

from cascade.launch import Launch


@dataclass(frozen=True)
class Processes:
    """This process's place among those of the run, and the device it works on."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that reports and writes what exists once."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """Make the network's gradients the mean over all processes."""
        if self.world_size == 1:
            return network
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=devices, gradient_as_bucket_view=True)

    def no_sync(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Return a context whose backward passes leave the exchange of gradients to a later one."""
        if isinstance(wrapped, DistributedDataParallel):
            return cast(AbstractContextManager[None], wrapped.no_sync())
        return nullcontext()

    def full_state_dict(self, network: nn.Module) -> dict[str, Tensor]:
        """Gather the full weights of a network, wrapped or not, on the CPU; a collective call.

        Only the first process has all of them.
        """
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return {
            name: cast(Tensor, value)
            for name, value in get_model_state_dict(network, options=options).items()
        }

    def indices_of(self, count: int) -> list[int]:
        """Return the indices of this process's share of `count` items, as many as every other's.

        The last ones of all are the last thing again, where the number does not divide.
        """
        each = -(-count // self.world_size)
        return [min(self.rank * each + place, count - 1) for place in range(each)]

    def all_gather(self, part: Tensor, count: int) -> Tensor:
        """Put the parts of `indices_of` together, on the CPU: count ...; every process asks."""
        if self.world_size == 1:
            return part
        parts = [torch.empty_like(part) for _ in range(self.world_size)]
        dist.all_gather(parts, part.contiguous())
        return torch.cat(parts)[:count]

    def all_reduce_mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over all processes."""
        if self.world_size > 1:
            dist.all_reduce(value)
            value = value / self.world_size
        return value

    def all_reduce_max(self, value: int) -> int:
        """Return the largest of the processes' values; the hosts agree, no device is waited for."""
        if self.world_size == 1:
            return value
        values = torch.tensor(value)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return int(values)

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()


ALONE: Final = Processes(0, 1, torch.device("cpu"))
"""One process on the CPU."""


@contextmanager
def process_group() -> Iterator[Processes]:
    """Join the process group that `torchrun` announces, for the length of the block."""
    launch = Launch.read()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", launch.local_rank) if cuda else None
    if device is not None:
        torch.cuda.set_device(device)
    joins = launch.world_size > 1 and not dist.is_initialized()
    if joins:
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield Processes(launch.rank, launch.world_size, device or torch.device("cpu"))
    finally:
        if joins:
            dist.destroy_process_group()
