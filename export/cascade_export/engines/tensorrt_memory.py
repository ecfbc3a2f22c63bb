"""What the TensorRT engines of one GPU share: a stream, buffers, and a budget for weights.

A cascade's stages run one after another, so one set of buffers as large as the largest stage's
serves all, and the weights of those that wait need not lie on the GPU. Nothing here has been
executed on a GPU yet; see `tools/gpu_suite.py --part export`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from cascade.errors import UserError


class Workspace:
    """Buffers by name; whoever's turn it is may use all of them.

    Args:
        device: where they lie.

    Attributes:
        generation: rises when a buffer moves, after which captured addresses are void.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.generation = 0
        self._buffers: dict[str, Tensor] = {}

    def reserve(self, sizes: Mapping[str, int]) -> None:
        """Make each named buffer at least so many bytes large."""
        for name, size in sizes.items():
            held = self._buffers.get(name)
            if held is None or held.numel() < size:
                self._buffers[name] = torch.empty(size, dtype=torch.uint8, device=self.device)
                self.generation += 1

    def view(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return the beginning of a buffer as a tensor.

        Raises:
            ValueError: fewer bytes were reserved.
        """
        size = math.prod(shape) * dtype.itemsize
        if size > self._buffers[name].numel():
            raise ValueError(f"{name} needs {size} bytes and fewer were reserved")
        return self._buffers[name][:size].view(dtype).view(*shape)


class Resident(Protocol):
    """Something whose weights can leave the GPU and come back."""

    @property
    def weight_bytes(self) -> int:
        """What its weights take on the GPU."""

    def load(self) -> None:
        """Bring the weights to the GPU."""

    def unload(self) -> None:
        """Free what they take."""


class Residency:
    """Keeps the weights on a GPU within a budget; the longest unused leave first.

    Args:
        budget: bytes for weights; None is no limit.
    """

    def __init__(self, budget: int | None = None) -> None:
        self._budget = math.inf if budget is None else budget
        self._loaded: list[Resident] = []  # the longest unused first

    def check(self, one: Resident) -> None:
        """Refuse what does not fit even alone.

        Raises:
            UserError: its weights are larger than the budget.
        """
        if one.weight_bytes > self._budget:
            raise UserError(
                f"One stage's weights take {one.weight_bytes / 1e6:.0f} MB and the limit is "
                f"{self._budget / 1e6:.0f} MB; raise the limit or take a smaller precision."
            )

    def use(self, one: Resident) -> None:
        """Load weights if they are not there, after unloading others that leave them no room."""
        if one in self._loaded:
            self._loaded.remove(one)
        else:
            self.check(one)
            while self._taken() + one.weight_bytes > self._budget:
                self._loaded.pop(0).unload()
            one.load()
        self._loaded.append(one)

    def forget(self, one: Resident) -> None:
        """Unload what is not to be used again."""
        if one in self._loaded:
            self._loaded.remove(one)
            one.unload()

    def _taken(self) -> int:
        return sum(each.weight_bytes for each in self._loaded)


class Lane:
    """A CUDA stream of the engines' own, ordered with whatever the caller does on theirs.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    @property
    def handle(self) -> int:
        """The stream's address, as TensorRT takes it."""
        return self._stream.cuda_stream

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Queue work on the stream: after what the caller queued, before what it queues next."""
        caller = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(caller)
        with torch.cuda.stream(self._stream):
            yield
        caller.wait_stream(self._stream)

    def capture(self, queue: Callable[[], None]) -> Callable[[], None]:
        """Record what a function queues as a CUDA graph and return what replays it.

        Args:
            queue: run once before, since a first run may allocate, and once while recording.
        """
        queue()
        self.finish()
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the GPU meanwhile.
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            queue()
        return graph.replay

    def finish(self) -> None:
        """Wait until everything on the stream is done."""
        self._stream.synchronize()
