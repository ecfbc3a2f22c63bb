"""The variables that `torchrun` sets for the processes that it starts."""

import os
from dataclasses import dataclass
from typing import Self

from cascade.errors import UserError

_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """This process's number among those of a run, and among those on its machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def read(cls) -> Self:
        """Read the environment; a process that was started alone is the only one."""
        if "WORLD_SIZE" not in os.environ:
            return cls()
        world = _number("WORLD_SIZE")
        if world == 1:
            return cls()
        missing = [name for name in _NEEDED if name not in os.environ]
        if missing:
            raise UserError(
                f"WORLD_SIZE is {world} but {missing[0]} is not set; start with torchrun, or unset "
                "WORLD_SIZE."
            )
        rank = _number("RANK")
        if rank >= world:
            raise UserError(
                f"RANK is {rank} and WORLD_SIZE is {world}; start with torchrun, or unset both."
            )
        return cls(rank, world, _number("LOCAL_RANK"))

    @property
    def is_main(self) -> bool:
        """Whether this is the process that reports and writes what exists once."""
        return self.rank == 0


def _number(name: str) -> int:
    text = os.environ[name]
    least = 1 if name == "WORLD_SIZE" else 0
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= least):
        raise UserError(
            f"{name} is '{text}', no number of processes; start with torchrun, or unset it."
        )
    return int(text)
