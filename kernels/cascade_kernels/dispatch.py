"""The path that a call of an operation takes, and its launch configuration.

A kernel is taken by default only where a table says that it was checked and measured on that very
architecture and is the faster path for the shape. Timing never decides at run time: ranks that
choose differently would add in different orders (NVIDIA/Megatron-LM#6966).
"""

import os
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor

from cascade_kernels.interpreter import interpreter_fault
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
# The fields of each `launch_table.Route`. Plain tuples are what a compiler can hold as constants.
_Routes = tuple[tuple[tuple[tuple[str, int], ...], bool | None, bool | None, str], ...]
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
        require(op, x)
        return True
    if backend != "auto":
        raise ValueError(f"unknown backend {backend!r}; known are auto, triton, reference.")
    if x.device.type != "cuda" or x.dtype not in _DTYPES:
        return False
    return route(op, x.device, training, shape) == "triton"


def require(op: str, x: Tensor) -> None:
    """Refuse a call whose kernel cannot run on its first input.

    Raises:
        ValueError: it cannot.
    """
    reason = unsupported_reason(x.device, x.dtype)
    if reason:
        raise ValueError(f"{op} cannot run its Triton kernel: {reason}.")


def route(op: str, device: torch.device, training: bool, shape: Mapping[str, int]) -> str | None:
    """Return the path that was measured to be the fastest for a call, as its route names it.

    Args:
        op: the routes' name in the tables.
        device: where it runs.
        training: a backward pass belongs to it.
        shape: the sizes that the limits of a route may bound.

    Returns:
        None without a route for the shape, or without a table measured on this very architecture.
    """
    routes: _Routes = _routes(op, device)
    if not routes:
        return None
    eager = not (torch.compiler.is_compiling() or _capturing(device))
    # These comparisons are traced: a compiled graph is guarded by the limits that it relies on.
    for limits, when, how, path in routes:
        holds = when in (None, training) and how in (None, eager)
        if holds and all(shape[name] <= bound for name, bound in limits):
            return path
    return None


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


def _capturing(device: torch.device) -> bool:
    # Asked of a build of torch without CUDA, `is_current_stream_capturing` is an error.
    initialized = device.type == "cuda" and torch.cuda.is_initialized()
    return initialized and torch.cuda.is_current_stream_capturing()


@_constant
def unsupported_reason(device: torch.device, dtype: torch.dtype) -> str:
    """Return why no kernel can run on tensors of a device and type; empty where one can."""
    if dtype not in _DTYPES:
        return f"it has no kernel for {str(dtype).removeprefix('torch.')}"
    if not _triton_installed():
        return "triton is not installed; install dreamcascade[gpu]"
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return interpreter_fault()
        return "the tensors are on a CPU; set TRITON_INTERPRET=1 to have it interpreted, slowly"
    if device.type != "cuda":
        return f"there is none for {device.type} devices"
    name = architecture(device)
    if not _has_table(name):
        return f"no launch table for {name}; write one to {user_table(name)}"
    return ""


@_constant
def _routes(op: str, device: torch.device) -> _Routes:
    """Return an operation's routes, none where nothing was measured on this very architecture."""
    name = architecture(device)
    if not _triton_installed() or not _has_table(name):
        return ()
    held = table(device)
    return _plain(held, op) if held.measured is not None and held.architecture == name else ()


@cache
def _plain(held: Table, op: str) -> _Routes:
    return tuple((r.limits, r.training, r.eager, r.path) for r in held.routes.get(op, ()))


def _has_table(name: str) -> bool:
    return name in ARCHITECTURES or user_table(name).is_file()


@cache
def _triton_installed() -> bool:
    return find_spec("triton") is not None
