"""The stream and the buffers that the TensorRT engines of one GPU share.

A cascade's stages run one after another, so one set of buffers as large as the largest stage's
serves all. Nothing here has been executed on a GPU yet.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class Workspace:
    """Buffers by name; whoever's turn it is may use all of them.

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
            buffer = self._buffers.get(name)
            if buffer is None or buffer.numel() < size:
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


class Lane:
    """A CUDA stream of the engines' own, ordered with whatever the caller does on theirs."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    @property
    def handle(self) -> int:
        """Return the stream's address, as TensorRT takes it."""
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
