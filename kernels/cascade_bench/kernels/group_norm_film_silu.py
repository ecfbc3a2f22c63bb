"""`group_norm_film_silu` against the chain a person would write, compiled and not.

Shapes: `B` batch, `C H W` channels, height and width; `C = C1 + C2` where a skip is concatenated.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade.config.unet import Activation
from cascade_bench.kernels.problem import (
    OURS,
    REFERENCE,
    Function,
    KernelProblem,
    Operation,
    Space,
    compiled,
)
from cascade_bench.kernels.shapes import BATCHES, levels
from cascade_bench.problem import CannotError
from cascade_bench.records import Mode, Work
from cascade_kernels.group_norm_film_silu import group_norm_film_silu
from cascade_kernels.names import Backend

SKIP_SCALE = 0.7071067811865476
EPS = 1e-5
# Up to this many pixels a group's slab stays on chip: one pass over the image instead of two.
ONE_PASS = 1024


@dataclass(frozen=True)
class Case:
    """One shape; FiLM is scale and shift from the conditioning."""

    name: str
    batch: int
    channels: int  # C1
    side: int  # H and W
    skip: int = 0  # C2; 0 without a skip
    film: bool = True
    activation: Activation = "silu"
    groups: int = 32

    @property
    def description(self) -> str:
        """The sizes, for tables."""
        skip = f" + {self.skip}" if self.skip else ""
        film = ", FiLM" if self.film else ""
        return f"B{self.batch} C{self.channels}{skip} {self.side}x{self.side}{film}"


class Options(NamedTuple):
    """The leaves by what they are; what a case has not is None."""

    x: Tensor
    skip: Tensor | None
    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    shift: Tensor | None


def cases() -> tuple[Case, ...]:
    """List every level of the networks, under FiLM, and an up block's first norm over a skip."""
    return tuple(case for network, batch in BATCHES.items() for case in _of(network, batch))


def dry_cases() -> tuple[Case, ...]:
    """Shapes small enough for an interpreter."""
    return (
        Case("tiny", 2, 8, 4, groups=2),
        Case("tiny skip", 2, 8, 4, skip=4, film=False, groups=2),
    )


def problem(case: Case, dtype: torch.dtype, device: torch.device) -> KernelProblem:
    """Draw a case's inputs: images in channels_last, scale and shift halves of one tensor."""
    leaves = _leaves(case, dtype, device)
    image = leaves[0].shape
    gradient = torch.randn(
        image[0], case.channels + case.skip, *image[2:], dtype=dtype, device=device
    ).contiguous(memory_format=torch.channels_last)
    providers: dict[str, Callable[[], Function]] = {
        OURS: lambda: _fused(case, "triton"),
        "native": lambda: lambda *given: _native(case, given),
        "native compiled": lambda: compiled(lambda *given: _native(case, given), device),
        "apex": lambda: _apex(case, dtype, device),
        "reference compiled": lambda: compiled(_fused(case, "reference"), device),
        REFERENCE: lambda: _fused(case, "reference"),
    }
    return KernelProblem.of(
        leaves=leaves,
        gradient=gradient,
        plain=lambda *given: _native(case, given),
        providers=providers,
        work=_work(gradient.numel() * dtype.itemsize),
    )


def _of(network: str, batch: int) -> Iterator[Case]:
    for level in levels(network):
        case = Case(
            level.name,
            batch,
            level.channels,
            level.side,
            activation=level.activation,
            groups=level.groups,
        )
        yield case
        if network in ("mini-base64", "if-i-m", "imagen-base64", "imagen-sr1024"):
            yield replace(case, name=f"{case.name} skip", skip=case.channels, film=False)


def _leaves(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    def image(channels: int) -> Tensor:
        shape = (case.batch, channels, case.side, case.side)
        drawn = torch.randn(shape, dtype=dtype, device=device)
        return drawn.contiguous(memory_format=torch.channels_last)

    channels = case.channels + case.skip
    skip = (image(case.skip),) if case.skip else ()
    affine = torch.randn(2, channels, dtype=dtype, device=device).unbind()
    film = torch.randn(case.batch, 2 * channels, dtype=dtype, device=device).chunk(2, dim=1)
    return (image(case.channels), *skip, *affine, *(film if case.film else ()))


def _given(case: Case, leaves: tuple[Tensor, ...]) -> Options:
    x, *rest = leaves
    skip = rest.pop(0) if case.skip else None
    weight, bias, *film = rest
    scale, shift = film if case.film else (None, None)
    return Options(x, skip, weight, bias, scale, shift)


def _fused(case: Case, backend: Backend) -> Function:
    def norm(*leaves: Tensor) -> Tensor:
        x, skip, weight, bias, scale, shift = _given(case, leaves)
        return group_norm_film_silu(
            x,
            weight,
            bias,
            case.groups,
            EPS,
            scale,
            shift,
            case.activation,
            skip=skip,
            skip_scale=SKIP_SCALE,
            backend=backend,
        )

    return norm


def _native(case: Case, leaves: tuple[Tensor, ...]) -> Tensor:
    given = _given(case, leaves)
    y = F.group_norm(_stacked(given), case.groups, given.weight, given.bias, EPS)
    return _activated(case, _modulated(given, y))


def _apex(case: Case, dtype: torch.dtype, device: torch.device) -> Function:
    """Fuse the activation where it follows the norm at once; under FiLM that is left outside."""
    if find_spec("apex") is None:
        raise CannotError("apex is not installed")
    from apex.contrib.group_norm import GroupNorm

    channels = case.channels + case.skip
    known = GroupNorm.SUPPORTED_GROUPS, GroupNorm.SUPPORTED_CHANNELS
    if case.groups not in known[0] or channels not in known[1]:
        raise CannotError(f"it has no kernel for {channels} channels in {case.groups} groups")
    fused = case.activation == "silu" and not case.film
    act = "silu" if fused else ""
    norm = GroupNorm(case.groups, channels, eps=EPS, device=device, dtype=dtype, act=act)
    del norm.weight, norm.bias  # these are leaves, and no parameters of its own

    def chain(*leaves: Tensor) -> Tensor:
        given = _given(case, leaves)
        norm.weight, norm.bias = given.weight, given.bias
        y: Tensor = norm(_stacked(given))
        return y if fused else _activated(case, _modulated(given, y))

    return chain


def _stacked(given: Options) -> Tensor:
    return given.x if given.skip is None else torch.cat([given.x, given.skip * SKIP_SCALE], dim=1)


def _modulated(given: Options, y: Tensor) -> Tensor:
    if given.scale is None or given.shift is None:
        return y
    return y * (1 + given.scale[:, :, None, None]) + given.shift[:, :, None, None]


def _activated(case: Case, y: Tensor) -> Tensor:
    return F.silu(y) if case.activation == "silu" else F.gelu(y)


def _work(image: int) -> dict[Mode, Work]:
    """Bytes: x and y forward; x, dy and dx backward. Arithmetic counts for nothing beside them."""
    least: dict[Mode, int] = {"forward": 2 * image, "backward": 3 * image, "both": 5 * image}
    return {mode: Work(bytes=moved, flops=0) for mode, moved in least.items()}


def _limits(case: Case, dtype: torch.dtype) -> dict[str, int]:
    channels = case.channels + case.skip
    return {
        "channels": channels,
        "group": channels // case.groups,
        "pixels": case.side**2,
        "bytes": dtype.itemsize,
    }


def _two_passes(mode: Mode) -> Space:
    blocks = {"BLOCK_HW": (16, 32, 64, 128), "BLOCK_C": (64, 128)}
    return Space(
        mode, ("bytes", "channels", "pixels"), blocks, used=lambda shape: shape["pixels"] > ONE_PASS
    )


def _one_pass(kernel: str, mode: Mode) -> Space:
    return Space(
        mode,
        ("bytes", "group", "pixels"),
        {"BLOCK_HW": (8, 16, 32, 64)},
        used=lambda shape: shape["pixels"] <= ONE_PASS and not _held(f"{kernel}slab", shape),
    )


def _slab(kernel: str, mode: Mode) -> Space:
    limits = ("bytes", "group", "pixels")
    return Space(mode, limits, {}, used=lambda shape: _held(f"{kernel}slab", shape))


def _held(kernel: str, shape: Mapping[str, int]) -> bool:
    """Return whether a program of a kernel holds all pixels of a shape."""
    from cascade_kernels.group_norm_film_silu.plan import Plan  # imports triton

    plan = Plan(torch.device("cpu"), dict(shape), 1, (), shape["channels"])
    return plan.slab(kernel) is not None


SPACES = {
    "group_norm_film_silu_statistics": _two_passes("forward"),
    "group_norm_film_silu_apply": _two_passes("forward"),
    "group_norm_film_silu_one_pass": _one_pass("", "forward"),
    "group_norm_film_silu_slab": _slab("", "forward"),
    "group_norm_film_silu_backward_reduce": _two_passes("backward"),
    "group_norm_film_silu_backward_apply": _two_passes("backward"),
    "group_norm_film_silu_backward_one_pass": _one_pass("backward_", "backward"),
    "group_norm_film_silu_backward_slab": _slab("backward_", "backward"),
}
OPERATION = Operation("group_norm_film_silu", cases, dry_cases, problem, _limits, SPACES)
