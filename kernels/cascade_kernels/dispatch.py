"""The path that a call of an operation takes, and its launch configuration.

A kernel is taken by default only where a table says that it was checked and measured on that very
architecture and is the faster path for the shape. Timing never decides at run time: ranks that
choose differently would add in different orders (NVIDIA/Megatron-LM#6966).
"""

import os
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor

from cascade_kernels.launch_table import Launch, Table, read_table, user_table
from cascade_kernels.names import Backend

# The shipped rows that an architecture takes. Those of sm_80 fit into the 99 KiB of shared memory
# that sm_86 and its like have.
ARCHITECTURES = {
    "sm_80": "sm_80",
    "sm_86": "sm_80",
    "sm_87": "sm_80",
    "sm_89": "sm_80",
    "sm_90": "sm_90",
    "sm_100": "sm_90",
    "sm_103": "sm_90",
    "sm_110": "sm_90",
    "sm_120": "sm_80",
    "sm_121": "sm_80",
    "gfx942": "gfx942",
    "gfx950": "gfx942",
}
INTERPRETED = "sm_90"  # the table of a CPU, on which only Triton's interpreter runs kernels
# Of each: limits, training, triton (see `launch_table.Route`). Plain tuples are what a compiler can
# hold as constants.
_Routes = tuple[tuple[tuple[tuple[str, int], ...], bool | None, bool], ...]
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _constant(function: _Function) -> _Function:
    """Have a compiler call the function once and hold its result.

    As `torch.compiler.assume_constant_result`, which for this one mark imports all of the compiler:
    two seconds of every command.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def fused(op: str, x: Tensor, backend: Backend, training: bool, **shape: int) -> bool:
    """Return True where a call takes the operation's kernel, False where it takes the reference.

    Args:
        op: the operation's name.
        x: its first input; device and dtype matter.
        backend: "auto" takes the kernel where the architecture's table was measured and its route
            for the shape says so.
        training: a backward pass will follow.
        shape: the sizes that the limits of a route may bound.

    Raises:
        ValueError: the backend is unknown, or "triton" cannot run here.
    """
    if backend == "reference":
        return False
    if backend == "triton":
        reason = unsupported_reason(x.device, x.dtype)
        if reason:
            raise ValueError(f"{op} cannot run its Triton kernel: {reason}.")
        return True
    if backend != "auto":
        raise ValueError(f"unknown backend {backend!r}; known are auto, triton, reference.")
    if x.device.type != "cuda" or x.dtype not in _DTYPES:
        return False
    return _routed(op, x.device, training, shape)


def launch(kernel: str, device: torch.device, **shape: int) -> Launch:
    """Return the launch configuration of a kernel for a shape.

    Args:
        kernel: its name in the tables.
        device: where it runs; a CPU (the interpreter) takes the table of sm_90.
        shape: the sizes that the limits of the rows bound. `bytes` is the size of an element.

    Raises:
        RuntimeError: no table for the device, or no row in it for the kernel and shape.
        ValueError: the user's own table is broken.
    """
    return table(device).launch(kernel, shape)


@cache
def table(device: torch.device) -> Table:
    """Return the table that answers for a device: the user's own or the shipped one.

    Raises:
        RuntimeError: there is neither for this architecture.
        ValueError: the user's own table is broken.
    """
    name = architecture(device)
    own = user_table(name)
    if device.type != "cpu" and own.is_file():
        return read_table(own)
    if name not in ARCHITECTURES:
        raise RuntimeError(
            f"no launch table for {name}; write one to {own}, after the nearest of those shipped "
            f"({', '.join(sorted(set(ARCHITECTURES.values())))}), or take the reference."
        )
    return shipped_table(ARCHITECTURES[name])


def shipped_table(architecture: str) -> Table:
    """Gather the rows of every operation for one of the architectures that have some."""
    # Not ahead: the operations' packages import this module.
    from cascade_kernels.group_norm_film_silu import table as group_norm_film_silu
    from cascade_kernels.joint_attention import table as joint_attention
    from cascade_kernels.sampler_step import table as sampler_step

    return Table(
        architecture=architecture,
        source=f"the shipped table of {architecture}",
        measured=None,
        launches={
            **joint_attention.LAUNCHES[architecture],
            **group_norm_film_silu.LAUNCHES[architecture],
            **sampler_step.LAUNCHES[architecture],
        },
        routes={},
    )


@cache
def architecture(device: torch.device) -> str:
    """Return the name of a device's architecture, "sm_90" or "gfx942"."""
    if device.type == "cpu":
        return INTERPRETED
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"


def _routed(op: str, device: torch.device, training: bool, shape: dict[str, int]) -> bool:
    """Follow the measured routes of the device's architecture."""
    # These comparisons are traced: a compiled graph is guarded by the limits that it relies on.
    routes: _Routes = _routes(op, device)
    for limits, when, triton in routes:
        if when in (None, training) and all(shape[name] <= bound for name, bound in limits):
            return triton
    return False


@_constant
def unsupported_reason(device: torch.device, dtype: torch.dtype) -> str:
    """Return why no kernel can run on tensors of a device and type; empty where one can."""
    if dtype not in _DTYPES:
        return f"it has no kernel for {str(dtype).removeprefix('torch.')}"
    if find_spec("triton") is None:
        return "triton is not installed; install dreamcascade[gpu]"
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return ""
        return "the tensors are on a CPU; set TRITON_INTERPRET=1 to have it interpreted, slowly"
    if device.type != "cuda":
        return f"there is none for {device.type} devices"
    name = architecture(device)
    if name not in ARCHITECTURES and not user_table(name).is_file():
        return f"no launch table for {name}; write one to {user_table(name)}"
    return ""


@_constant
def _routes(op: str, device: torch.device) -> _Routes:
    """Return an operation's routes, none where nothing was measured on this very architecture."""
    name = architecture(device)
    known = name in ARCHITECTURES or user_table(name).is_file()
    if find_spec("triton") is None or not known:
        return ()
    own = table(device)
    if own.measured is None or own.architecture != name:
        return ()
    return tuple((r.limits, r.training, r.triton) for r in own.routes.get(op, ()))
