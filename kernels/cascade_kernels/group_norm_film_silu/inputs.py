"""The inputs of GroupNorm with FiLM and activation, and arithmetic that its PyTorch paths share.

Shapes: `B` batch, `C H W` channels, height and width, `G` groups; `C = C1 + C2` where an image of
C1 channels and a skip of C2 are stacked.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Activation = Literal["silu", "gelu", "none"]
ACTIVATIONS = get_args(Activation)


class Inputs(NamedTuple):
    """The arguments of the registered operation."""

    x: Tensor  # B C1 H W
    skip: Tensor | None  # B C2 H W
    weight: Tensor  # C
    bias: Tensor  # C
    scale: Tensor | None  # B C
    shift: Tensor | None  # B C
    groups: int
    eps: float
    activation: Activation
    skip_scale: float


class Call(NamedTuple):
    """What a backward pass is given: the gradient of the output, what was saved, the inputs."""

    dy: Tensor  # B C H W, in any layout: a compiled graph's has another than the output
    mean: Tensor  # B G
    rstd: Tensor  # B G
    x: Tensor
    skip: Tensor | None
    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    shift: Tensor | None
    groups: int
    eps: float
    activation: Activation
    skip_scale: float

    @property
    def inputs(self) -> Inputs:
        """Those of the forward pass."""
        return Inputs(*self[3:])


def check(inputs: Inputs) -> None:
    """Check that the inputs fit together.

    Raises:
        ValueError: they do not, or the activation is unknown.
    """
    x, skip, channels = inputs.x, inputs.skip, sizes(inputs)["channels"]
    if (inputs.scale is None) != (inputs.shift is None):
        raise ValueError("scale and shift must be given together")
    if inputs.activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(f"unknown activation {inputs.activation!r}; known are {known}")
    if channels % inputs.groups:
        raise ValueError(f"{inputs.groups} groups do not divide {channels} channels")
    if skip is not None:
        if (skip.shape[0], *skip.shape[2:]) != (x.shape[0], *x.shape[2:]):
            raise ValueError(
                f"skip {tuple(skip.shape)} and x {tuple(x.shape)} differ in more than channels"
            )
        if skip.dtype != x.dtype:
            raise ValueError(f"skip is {skip.dtype} and x is {x.dtype}; they must be alike")


def sizes(inputs: Inputs) -> dict[str, int]:
    """Return what rows and routes of a launch table may bound."""
    x, skip = inputs.x, inputs.skip
    channels = x.shape[1] + (0 if skip is None else skip.shape[1])
    return {
        "channels": channels,
        "group": channels // inputs.groups,
        "pixels": x.shape[2] * x.shape[3],
        "bytes": x.element_size(),
    }


def stacked(inputs: Inputs) -> Tensor:
    """Return [x, skip * skip_scale] in the type of the arithmetic, B C H W."""
    x, skip = inputs.x, inputs.skip
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    if skip is None:
        return (x if torch.compiler.is_compiling() else _as_itself(x)).to(dtype)
    return torch.cat([x.to(dtype), scaled(skip.to(dtype), inputs.skip_scale)], dim=1)


def _as_itself(x: Tensor) -> Tensor:
    """Return a view of a batch of one with the stride that PyTorch's norm takes; it may have any.

    A graph's batch is not looked at.
    """
    step = x[0].numel()
    if x.shape[0] != 1 or x.stride(0) == step:
        return x
    return x.as_strided(x.shape, (step, *x.stride()[1:]))


def scaled(x: Tensor, factor: float) -> Tensor:
    """Multiply, without the pass over the image that a factor of one would cost."""
    return x if factor == 1 else x * factor


def folded(inputs: Inputs, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the norm's affine map and FiLM's as one, gain and offset, each B C; without FiLM C."""
    gain, offset = inputs.weight.to(dtype), inputs.bias.to(dtype)
    if inputs.scale is None or inputs.shift is None:
        return gain, offset
    factor = 1 + inputs.scale.to(dtype)
    return gain * factor, torch.addcmul(inputs.shift.to(dtype), factor, offset)


def pixels(values: Tensor) -> Tensor:
    """Give values of channels the pixels' two dimensions, to broadcast over an image."""
    return values[..., None, None]
