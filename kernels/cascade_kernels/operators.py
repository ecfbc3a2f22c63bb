"""Operators of PyTorch for what a compiler, an export or a mode must see as one call.

Defined without `torch.library.custom_op`, which checks at every call what its results share memory
with.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch._ops import OpOverload

_NAMESPACE: Final = "cascade"
_LIBRARY: Final = torch.library.Library(_NAMESPACE, "FRAGMENT")
# Kernels take any strides, but those that a call was traced with.
_TAGS: Final = (torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag)


def operator(
    schema: str,
    run: Callable[..., Any],
    fake: Callable[..., Any],
    differentiate: tuple[Callable[..., Any], Callable[..., None]] | None = None,
) -> OpOverload:
    """Define an operator that changes none of its inputs.

    Args:
        schema: its name, arguments and results.
        run: computes it, on any device.
        fake: makes empty results of the same shapes, types and strides.
        differentiate: its backward pass, and what saves for it; None: it is an error.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema, tags=_TAGS)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    full = f"{_NAMESPACE}::{name}"
    torch.library.register_fake(full, fake, lib=_LIBRARY)
    backward, save = differentiate or (partial(_refuse, name), None)
    torch.library.register_autograd(full, backward, setup_context=save, lib=_LIBRARY)
    packet = getattr(getattr(torch.ops, _NAMESPACE), name)
    overload: OpOverload = packet.default
    return overload


def _refuse(name: str, *_: Any) -> None:
    raise RuntimeError(f"{name} has no derivative; where one is needed, take the reference.")
