"""Memory of a network on a device, found by running it on tensors that hold nothing.

Under `FakeTensorMode` every operation has its shapes, types, layouts and lifetimes, but no data. A
network of any size runs so in seconds, forward and backward; the bytes that are alive are counted
as tensors come and go. The tensors pretend to lie on a CPU, whose path keeps for the backward pass
what the kernels keep; PyTorch's own path on a GPU keeps more.

Not counted: what an operation takes and gives back inside (workspaces of convolutions, except those
of a CPU without bf16), what an allocator loses to fragments, and the few images that a sampler or
an objective holds.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cascade.config.optimizer import OptimizerName
from cascade.config.stage import Precision
from cascade.config.train import Recomputation
from cascade.config.unet import UNetConfig
from cascade.model.example import example_inputs
from cascade.model.gathering import gather_blocks
from cascade.model.precision import autocast, in_bf16
from cascade.model.recompute import set_recomputation
from cascade.model.unet import UNet

FLOAT32: Final = 4  # bytes; weights, gradients and averages are held so in every precision
_BLOCK: Final = 256  # values that share a scale in 8-bit AdamW
_CPU: Final = torch.device("cpu")
_QUANTISED: Final = 4096  # values from which on a tensor's moments are quantised


class LiveBytes(TorchDispatchMode):
    """While entered, counts the bytes of all storages that operations made and that are alive.

    Args:
        unrolled: whether convolutions in bf16 write out all windows of their input, as PyTorch's
            own do where oneDNN has none; see `cascade.model.precision.convolves_bf16`.

    Attributes:
        now: alive at the moment.
        peak: the most there were at any moment.
    """

    def __init__(self, *, unrolled: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._unrolled = unrolled
        self._alive: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operation and note what it returned."""
        out = func(*args, **(kwargs or {}))
        known = {id(x.untyped_storage()) for x in tree_leaves((args, kwargs)) if _is_tensor(x)}
        for tensor in tree_leaves(out):
            # A view or a result in place lives in a storage that was counted, or never shall be.
            if _is_tensor(tensor) and id(tensor.untyped_storage()) not in known:
                self._note(tensor.untyped_storage())
        if self._unrolled:
            self.peak = max(self.peak, self.now + _window_bytes(func, args, out))
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage in self._alive:
            return
        size = storage.nbytes()
        self._alive.add(storage)
        weakref.finalize(storage, self._forget, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, size: int) -> None:
        self.now -= size


def sampling_bytes(
    config: UNetConfig,
    rows: int,
    size: int,
    tokens: int,
    precision: Precision,
    *,
    unrolled: bool,
) -> int:
    """Return what one call without gradients takes beside the weights, at its peak.

    Args:
        rows: of the batch; guidance runs two for every picture.
        unrolled: see `LiveBytes`.
    """
    with FakeTensorMode():
        network = UNet(config).eval()
        inputs = example_inputs(config, rows, size, tokens)
        with LiveBytes(unrolled=unrolled) as live, torch.no_grad(), autocast(precision, _CPU):
            network(**inputs)
    return int(live.peak)


def training_bytes(
    config: UNetConfig,
    rows: int,
    size: int,
    tokens: int,
    precision: Precision,
    *,
    unrolled: bool,
    recomputation: Recomputation,
    gathered: bool = False,
    reshard: bool = True,
) -> int:
    """Return what a call and its backward pass take beside weights and their gradients.

    Args:
        recomputation: of what blocks keep.
        gathered: whether weights are shared among processes and gathered as blocks run. What is
            gathered is counted; a process's share of weights and gradients is not.
        reshard: see `gather_blocks`.
    """
    with FakeTensorMode():
        network = UNet(config).train()
        set_recomputation(network, recomputation)
        around = 0
        if gathered:
            dtype = torch.bfloat16 if in_bf16(precision, _CPU) else torch.float32
            around = gather_blocks(network, dtype, reshard=reshard)
        else:
            for parameter in network.parameters():
                # Gradients are counted whole by who asks; here they go as they come.
                parameter.register_post_accumulate_grad_hook(_drop)
        inputs = example_inputs(config, rows, size, tokens)
        with LiveBytes(unrolled=unrolled) as live:
            with autocast(precision, _CPU):
                loss = network(**inputs).float().square().mean()
            loss.backward()
    return around + int(live.peak)


def optimizer_bytes(shapes: Sequence[torch.Size], name: OptimizerName) -> int:
    """Return what an optimizer keeps for parameters of these shapes.

    Two moments in float32, or in 8 bits with a scale per block (Dettmers et al. 2022; torchao
    leaves small tensors in float32), or sums over rows and over columns (Shazeer & Stern 2018).
    """
    match name:
        case "adamw":
            return sum(2 * FLOAT32 * shape.numel() for shape in shapes)
        case "adamw8bit":
            return sum(2 * _moment_8bit(shape.numel()) for shape in shapes)
        case "adafactor":
            return sum(FLOAT32 * _factored(shape) for shape in shapes)


def _moment_8bit(values: int) -> int:
    if values < _QUANTISED or values % _BLOCK:
        return FLOAT32 * values
    return values + FLOAT32 * (values // _BLOCK + _BLOCK)


def _factored(shape: torch.Size) -> int:
    values = shape.numel()
    return values // shape[-1] + values // shape[-2] if len(shape) > 1 else values


def _window_bytes(func: object, args: Sequence[Any], out: Any) -> int:
    """Return what a convolution in bf16 writes out beside its results: 0 of all else.

    One pixel of the result takes a window of the input, as large as one filter; filters of one
    pixel read the input as it lies. Backward takes (gradient of the result, input, weight, ...).
    """
    if func is torch.ops.aten.convolution.default:
        image, weight = out, args[1]
    elif func is torch.ops.aten.convolution_backward.default:
        image, weight = args[0], args[2]
    else:
        return 0
    if weight.dtype != torch.bfloat16 or weight.shape[2:].numel() == 1:
        return 0
    pixels = image.shape[0] * image.shape[2:].numel()
    return int(pixels * weight[0].numel() * weight.itemsize)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)
