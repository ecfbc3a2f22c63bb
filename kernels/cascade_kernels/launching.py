"""Launches of Triton kernels, planned once for all calls of a kind.

`kernel[grid](...)` looks at every argument of every call to find the compilation that it asks for.
For the forty arguments of a kernel here that takes a CPU longer than an 8x8 attention takes a GPU.
All of it follows from the tensors' types, shapes, strides and alignments: an operation makes a plan
for each kind of call, and a plan launches what its first call has compiled.
"""

from collections.abc import Callable, Mapping
from functools import update_wrapper
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from cascade_kernels.dispatch import table
from cascade_kernels.launch_table import Launch, Table

_MOST: Final = 4096  # plans of an operation; a text of every length makes one
_SIXTEEN: Final = 16  # bytes: kernels are compiled apart for pointers that are multiples, and not

InputsT = TypeVar("InputsT", bound=tuple[Any, ...])
PlanT = TypeVar("PlanT")
ReturnT = TypeVar("ReturnT")
P = ParamSpec("P")


class Program:
    """A kernel with its grid and constants, launched with arguments of one kind.

    Args:
        kernel: a function under `triton.jit` whose constexpr parameters are its last.
        grid: programs along one, two or three axes.
        constants: values of constexpr parameters; those that the kernel lacks are left out.
        chosen: its launch configuration.
        fusion: a product and a sum may be rounded once instead of twice.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        constants: Mapping[str, Any],
        chosen: Launch,
        fusion: bool = True,
    ) -> None:
        self._kernel = kernel
        self._grid = (*grid, 1, 1)[:3]
        given = {**constants, **chosen.blocks, "STAGES": chosen.num_stages}
        self._constants = {name: given[name] for name in kernel.arg_names if name in given}
        self._options = {
            "num_warps": chosen.num_warps,
            "num_stages": chosen.num_stages,
            "enable_fp_fusion": fusion,
        }
        self._run: Callable[..., None] | None = None

    def __call__(self, *arguments: Any) -> None:
        """Launch on the current stream of the current device, which must be the tensors' own."""
        if self._run is not None:
            self._run(*arguments, *self._constants.values())
            return
        compiled = self._kernel[self._grid](*arguments, **self._constants, **self._options)
        if compiled is not None:  # an interpreter compiles nothing
            self._run = compiled[self._grid]


class Plans(Generic[InputsT, PlanT]):
    """The plans of an operation, by the kinds of its calls.

    Args:
        make: makes a plan of the inputs of the first call of its kind; it may refuse them.
    """

    def __init__(self, make: Callable[[InputsT], PlanT]) -> None:
        self._make = make
        self._made: dict[tuple[Any, ...], tuple[Table, PlanT]] = {}

    def of(self, inputs: InputsT) -> PlanT:
        """Return the plan of a call; its first input is a tensor, the others may be anything."""
        device = inputs[0].device
        kind = (
            device,
            *[
                (x.dtype, x.shape, x.stride(), x.data_ptr() % _SIXTEEN == 0)
                if isinstance(x, Tensor)
                else x
                for x in inputs
            ],
        )
        held = self._made.get(kind)
        # A plan is of the table that it was made by: tuning tries others.
        if held is not None and held[0] is table(device):
            return held[1]
        plan = self._make(inputs)
        if len(self._made) >= _MOST:
            self._made.clear()
        self._made[kind] = table(device), plan
        return plan


def traced(x: Tensor) -> bool:
    """Return whether something looks on that must see an operator: a compiler, an export, a mode.

    Selective checkpointing and counters of operations are such modes.
    """
    return (
        torch.compiler.is_compiling()
        or is_in_torch_dispatch_mode()
        or type(x) not in (Tensor, torch.nn.Parameter)
    )


def tracked(*tensors: Tensor | None) -> bool:
    """Return whether one of them takes a gradient."""
    for x in tensors:  # noqa: SIM110 - a generator takes twice as long
        if x is not None and x.requires_grad:
            return True
    return False


def on_its_device(
    run: Callable[Concatenate[InputsT, P], ReturnT],
) -> Callable[Concatenate[InputsT, P], ReturnT]:
    """Have a function's launches on the device of its inputs, of which the first is a tensor.

    Triton launches on the current one.
    """

    def launched(inputs: InputsT, /, *args: P.args, **kwargs: P.kwargs) -> ReturnT:
        x: Tensor = inputs[0]
        if not x.is_cuda or x.get_device() == torch.cuda.current_device():
            return run(inputs, *args, **kwargs)
        with torch.cuda.device_of(x):
            return run(inputs, *args, **kwargs)

    return update_wrapper(launched, run)
