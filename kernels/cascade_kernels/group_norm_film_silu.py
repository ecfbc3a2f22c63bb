"""GroupNorm, a feature-wise affine map from the conditioning (FiLM), and the activation, at once.

The two norms of every residual block have this form (Dhariwal & Nichol 2021, section 3, "adaptive
group normalization"). Unfused it is most of a wide-image network's memory traffic.

Shapes: `B` batch, `C H W` channels, height and width.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def group_norm_film_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: Literal["silu", "gelu", "none"] = "silu",
) -> Tensor:
    """Return activation(group_norm(x) * (1 + scale) + shift), the plain PyTorch reference.

    Args:
        x: B C H W.
        weight: the norm's gain, C.
        bias: the norm's offset, C.
        groups: number of groups; divides C.
        eps: added to the variance.
        scale: B C, given together with `shift`; None for a norm without conditioning.
        shift: B C.
        activation: applied last; "gelu" is the exact one.

    Returns:
        B C H W in the dtype of `x`. Statistics and arithmetic are in fp32 (fp64 for fp64 input).

    Raises:
        ValueError: one of `scale` and `shift` is missing, or the activation is unknown.
    """
    if (scale is None) != (shift is None):
        raise ValueError("scale and shift must be given together")
    wide = x.double() if x.dtype == torch.float64 else x.float()
    gain, offset = weight.to(wide.dtype), bias.to(wide.dtype)
    if scale is None or shift is None:
        y = F.group_norm(wide, groups, gain, offset, eps)
    else:
        # Both affine maps fold into one of B C numbers: one pass over the image instead of three.
        factor = 1 + scale.to(wide.dtype)
        gain, offset = gain * factor, torch.addcmul(shift.to(wide.dtype), factor, offset)
        normal = F.group_norm(wide, groups, eps=eps)
        y = torch.addcmul(offset[:, :, None, None], normal, gain[:, :, None, None])
    return _activate(y, activation).to(x.dtype)


def _activate(y: Tensor, activation: str) -> Tensor:
    match activation:
        case "silu":
            return F.silu(y)
        case "gelu":
            return F.gelu(y)
        case "none":
            return y
        case _:
            raise ValueError(f"unknown activation {activation!r}; known are silu, gelu, none")
