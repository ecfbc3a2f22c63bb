"""Launch tables: for one GPU architecture, the block sizes of every kernel, and its routes.

Every operation ships its rows in its `table.py`. A user's own table is a JSON file:

    {"architecture": "sm_90",
     "measured": null,
     "launches": {"joint_attention_forward": [
         {"limits": {"head": 64, "bytes": 2},
          "blocks": {"BLOCK_M": 128, "BLOCK_N": 64}, "num_warps": 8, "num_stages": 2}]},
     "routes": {"joint_attention": [
         {"limits": {"queries": 256}, "training": null, "eager": false, "path": "triton"}]}}

Limits are inclusive upper bounds on the sizes of a call; the first row whose every limit holds
answers. `measured` is null, or says on which GPU, when and with which versions the kernels'
numerics passed and the routes were timed.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Launch:
    """A launch configuration of a kernel.

    Attributes:
        blocks: constexpr block sizes by the names of the kernel's parameters.
        num_warps: warps of one program.
        num_stages: software pipeline depth of its loops.
    """

    blocks: Mapping[str, int]
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int]:
        """Keyword arguments of the launch."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class LaunchRow:
    """A launch configuration and the shapes it is for."""

    limits: Mapping[str, int]
    launch: Launch


Launches: TypeAlias = Mapping[str, tuple[LaunchRow, ...]]
"""Rows by the kernel's name."""


def rows(
    blocks: Sequence[str], *values: tuple[Mapping[str, int], Sequence[int], int, int]
) -> tuple[LaunchRow, ...]:
    """Return rows of limits, sizes of the named blocks, warps and stages."""
    return tuple(
        LaunchRow(limits, Launch(dict(zip(blocks, sizes, strict=True)), warps, stages))
        for limits, sizes, warps, stages in values
    )


@dataclass(frozen=True)
class Route:
    """The fastest path of an operation for the shapes within some limits.

    Attributes:
        limits: inclusive upper bounds on the shape, as pairs so that a route is hashable.
        training: True or False where the answer holds only with or without a backward pass.
        eager: True or False where it holds only for calls that Python launches one by one, or only
            inside a compiled or captured graph, which hides what a launch costs.
        path: its name; of an operation "triton" or "reference".
    """

    limits: tuple[tuple[str, int], ...]
    training: bool | None
    eager: bool | None
    path: str


@dataclass(frozen=True, eq=False)
class Table:
    """The launch configurations and routes of one architecture; a key of caches, by identity.

    Attributes:
        architecture: "sm_90", "gfx942", ...
        source: where it is from, for messages.
        measured: GPU, date, commit and versions of the measurement; None if there was none.
        launches: rows by the kernel's name.
        routes: routes by the operation's name.
    """

    architecture: str
    source: str
    measured: Mapping[str, str] | None
    launches: Launches
    routes: Mapping[str, tuple[Route, ...]]

    def launch(self, kernel: str, shape: Mapping[str, int]) -> Launch:
        """Return the first launch configuration of a kernel whose every limit holds.

        Raises:
            RuntimeError: the table has no row for the kernel or the shape, or limits a size that
                the kernel does not know.
        """
        self.rows(kernel)
        found = self.find(kernel, shape)
        if found is None:
            raise RuntimeError(
                f"{self.source} has no row for {kernel} with {dict(shape)}; add one."
            )
        return found

    def find(self, kernel: str, shape: Mapping[str, int]) -> Launch | None:
        """Return the same, or None where no row holds: for kernels that another can stand in for.

        Raises:
            RuntimeError: a row limits a size that the kernel does not know.
        """
        for row in self.launches.get(kernel, ()):
            unknown = row.limits.keys() - shape.keys()
            if unknown:
                raise RuntimeError(
                    f"{self.source} limits {', '.join(sorted(unknown))} for {kernel}, which knows "
                    f"{', '.join(sorted(shape))}; correct the row."
                )
            if all(shape[name] <= bound for name, bound in row.limits.items()):
                return row.launch
        return None

    def rows(self, kernel: str) -> tuple[LaunchRow, ...]:
        """Return every row of a kernel.

        Raises:
            RuntimeError: the table does not know the kernel.
        """
        if kernel not in self.launches:
            raise RuntimeError(f"{self.source} has no rows for the kernel {kernel}; add some.")
        return self.launches[kernel]


def user_table(architecture: str) -> Path:
    """Return the path of a user's own table, which `cascade bench kernels --tune` writes."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "dreamcascade" / "kernels" / f"{architecture}.json"


def read_table(path: Path) -> Table:
    """Read and check a user's own table.

    Raises:
        ValueError: the file is no table; the message names the file and what is wrong in it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        measured = content["measured"]
        return Table(
            architecture=_typed(content["architecture"], str),
            source=str(path),
            measured=None if measured is None else _typed(measured, dict),
            launches={
                kernel: tuple(_launch_row(row) for row in _typed(rows, list))
                for kernel, rows in _typed(content["launches"], dict).items()
            },
            routes={
                op: tuple(_route(row) for row in _typed(rows, list))
                for op, rows in _typed(content["routes"], dict).items()
            },
        )
    except KeyError as error:
        raise ValueError(f"{path} is no launch table: {error} is missing.") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} is no launch table: {error}") from error


def _launch_row(row: Mapping[str, Any]) -> LaunchRow:
    launch = Launch(
        blocks=_sizes(row["blocks"]),
        num_warps=_size(row["num_warps"]),
        num_stages=_size(row["num_stages"]),
    )
    return LaunchRow(_sizes(row["limits"]), launch)


def _route(row: Mapping[str, Any]) -> Route:
    if "triton" in row:
        raise ValueError(
            "its routes say 'triton' as those of older versions do, instead of 'eager' and 'path'; "
            "remove it, and 'cascade bench kernels --tune' measures a new one."
        )
    return Route(
        limits=tuple(_sizes(row["limits"]).items()),
        training=_condition(row["training"]),
        eager=_condition(row["eager"]),
        path=_typed(row["path"], str),
    )


def _condition(value: Any) -> bool | None:
    return None if value is None else _typed(value, bool)


def _sizes(value: Any) -> dict[str, int]:
    return {name: _size(size) for name, size in _typed(value, dict).items()}


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} should be a whole number of at least 1.")
    return value


def _typed(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} should be a {kind.__name__}.")
    return value
