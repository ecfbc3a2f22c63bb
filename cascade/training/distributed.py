"""The processes of a run. Started by `torchrun`, or one process alone."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import rendezvous
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from cascade.launch import Launch
from cascade.progress import warn

_Made = TypeVar("_Made")

_FLIGHT_RECORDER: Final = {
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_FR_DUMP_TEMP_FILE": "{run_dir}/flight-recorder-rank-",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}
"""NCCL's; `torchfrtrace --prefix flight-recorder-rank- RUN` reads what it writes."""

_FOR_EVER: Final = timedelta(days=365)
"""A process that has ended is noticed at once all the same: its connections close."""


@dataclass(frozen=True)
class Processes:
    """This process's place among those of the run, and the device it works on.

    Attributes:
        hosts: the same processes, to wait for each other's long work on their CPUs.
        store: for their notes to each other, at any time and from any thread.
    """

    rank: int
    world_size: int
    device: torch.device
    local_world_size: int = 1
    hosts: dist.ProcessGroup | None = None
    store: dist.Store | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that reports and writes what exists once."""
        return self.rank == 0

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
        dist.all_gather(parts, part.contiguous(), group=self.hosts)
        return torch.cat(parts)[:count]

    def gathered(self, part: Sequence[str]) -> list[str]:
        """Return the texts of all processes, the first one's first; every process asks."""
        if self.world_size == 1:
            return list(part)
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, list(part), group=self.hosts)
        return [text for one in parts for text in one]

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

    def from_first(self, make: Callable[[], _Made]) -> _Made:
        """Return what the first process makes, on its CPU; every process gets a copy."""
        if self.world_size == 1:
            return make()
        made = [make()] if self.is_main else [None]
        dist.broadcast_object_list(made, src=0, group=self.hosts)
        return cast(_Made, made[0])

    def barrier(self) -> None:
        """Wait until every process is here, however long one of them works alone."""
        if self.world_size > 1:
            dist.barrier(group=self.hosts)


ALONE: Final = Processes(0, 1, torch.device("cpu"))
"""One process on the CPU."""


@contextmanager
def process_group(timeout_minutes: float, run_dir: Path) -> Iterator[Processes]:
    """Join the process group of a launched run, for the length of the block.

    Args:
        timeout_minutes: after which a process that waits for the others in a step ends. It may wait
            for ever for what one process does alone: embeddings, a stage's files.
        run_dir: gets NCCL's latest collectives from each process when one of them times out.
    """
    launch = Launch.read()
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", launch.local_rank) if cuda else None
    if device is not None:
        torch.cuda.set_device(device)
    joins = launch.world_size > 1 and not dist.is_initialized()
    notes: dist.Store | None = None
    if joins:
        store = _store(launch)
        notes = dist.PrefixStore("notes", cast(Any, store).clone())  # own connection
        for name, value in _FLIGHT_RECORDER.items():
            os.environ.setdefault(name, value.format(run_dir=run_dir.absolute()))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=store,
            rank=launch.rank,
            world_size=launch.world_size,
            timeout=timedelta(minutes=timeout_minutes),
        )
    hosts = dist.new_group(backend="gloo", timeout=_FOR_EVER) if dist.is_initialized() else None
    try:
        yield Processes(
            launch.rank,
            launch.world_size,
            device or torch.device("cpu"),
            launch.local_world_size,
            hosts,
            notes,
        )
    finally:
        if joins:
            dist.destroy_process_group()


def _store(launch: Launch) -> dist.Store:
    """Return the store in which the processes find each other.

    `torchrun` keeps its own over restarts, with the addresses of processes that have ended
    (pytorch#135712): those of another start are another's. On several machines the counts of
    restarts differ, so that torchrun must be told to make a new store each time.
    """
    store: dist.Store = next(rendezvous("env://"))[0]
    if launch.world_size == launch.local_world_size:
        return dist.PrefixStore(f"start-{launch.restarts}", store)
    if launch.is_main and launch.keeps_store:
        warn(
            "Processes that torchrun starts anew may look for those that have ended; set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for every torchrun of the run."
        )
    return store
