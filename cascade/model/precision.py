"""The precision of a network's arithmetic, and which devices have the bf16 that it asks for."""

from functools import cache

import torch

from cascade.config.stage import Precision
from cascade.progress import warn


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context that a network computes in; weights stay in float32 in either."""
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bf16(precision, device))


def in_bf16(precision: Precision, device: torch.device) -> bool:
    """Return whether to compute in bf16; `auto` does where the device has instructions for it."""
    return precision == "bf16" or (precision == "auto" and computes_bf16(device))


def warn_if_emulated(precision: Precision, device: torch.device) -> None:
    """Say on the error stream that bf16 takes longer than fp32 on a device that emulates it."""
    if precision == "bf16" and not computes_bf16(device):
        _tell(device.type)


def computes_bf16(device: torch.device) -> bool:
    """Return whether a device has instructions for bf16 and PyTorch uses them."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return True
    has = torch.cpu.get_capabilities()
    # oneDNN takes bf16 on every CPU with AVX-512, and widens it there where the CPU has none.
    return convolves_bf16() and (
        has["architecture"] != "x86_64" or has["avx512_bf16"] or has["avx_ne_convert"]
    )


def convolves_bf16() -> bool:
    """Return whether oneDNN convolves in bf16 on this CPU; else PyTorch's plain loops do."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def _tell(device: str) -> None:
    warn(
        f"This {device} has no bf16 and emulates it, which takes longer than fp32: leave bf16 out."
    )
