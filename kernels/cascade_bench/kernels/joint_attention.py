"""`joint_attention` against attention over concatenated keys, each path of PyTorch pinned.

The alternatives get their mask ready made: in a network it is made once per step and serves every
layer. The concatenation is theirs to pay, since it is what the operation saves.

Shapes: `B` batch, `H` heads, `N` image tokens, `L` text tokens, `S = N + L` keys, `d` channels of
one head.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from cascade_bench.kernels.problem import (
    OURS,
    REFERENCE,
    Function,
    KernelProblem,
    Operation,
    Space,
    compiled,
    variant,
)
from cascade_bench.kernels.shapes import BATCHES, levels
from cascade_bench.problem import CannotError
from cascade_bench.records import Mode, Work
from cascade_kernels.joint_attention import joint_attention
from cascade_kernels.names import Backend, BackwardPath

PINNED = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "mem-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
_PATHS: Final[tuple[BackwardPath, ...]] = ("cudnn", "flash")


@dataclass(frozen=True)
class Case:
    """One shape; where it is ragged, 10 to 40 tokens of each text are real instead of all L."""

    name: str
    batch: int
    heads: int
    queries: int  # N
    head: int  # d
    text: int  # L, padded
    kind: Literal["cross", "joint"] = "joint"  # what the image attends to
    ragged: bool = False

    @property
    def description(self) -> str:
        """The sizes, for tables."""
        image = f"{self.queries} + " if self.kind == "joint" else ""
        text = f"{min(10, self.text)}..{min(40, self.text)}" if self.ragged else str(self.text)
        return f"B{self.batch} {self.queries} q, {image}{text} k, {self.heads}x{self.head}"


class Sources(NamedTuple):
    """The leaves by what they are; an absent source is None."""

    q: Tensor
    k: Tensor | None
    v: Tensor | None
    text_k: Tensor
    text_v: Tensor


def cases() -> tuple[Case, ...]:
    """List the project's networks, and those of the most used implementation; each also ragged.

    "lucidrains" are the widths of that implementation of Imagen: eight heads at every level and up
    to 256 tokens.
    """
    whole = [
        *(case for network, batch in BATCHES.items() for case in _of(network, batch)),
        *(Case(f"lucidrains base {s}x{s}", 64, 8, s * s, 64, 256) for s in (32, 16, 8)),
        Case("lucidrains sr256 16x16", 16, 8, 256, 64, 256),
        Case("lucidrains sr1024 64x64", 2, 8, 4096, 64, 256, "cross"),
        Case("lucidrains sr1024 crop 16x16", 16, 8, 256, 64, 256, "cross"),
    ]
    return tuple(one for case in whole for one in (case, _ragged(case)))


def dry_cases() -> tuple[Case, ...]:
    """Shapes small enough for an interpreter."""
    return (
        Case("tiny joint", 2, 1, 20, 16, 7),
        Case("tiny cross ragged", 2, 1, 20, 16, 7, "cross", ragged=True),
    )


def problem(case: Case, dtype: torch.dtype, device: torch.device) -> KernelProblem:
    """Draw a case's inputs, strided as slices of the network's fused projections are."""
    length = _lengths(case, device) if case.ragged else None
    leaves = _leaves(case, dtype, device)
    providers: dict[str, Callable[[], Function]] = {
        OURS: lambda: _fused(case, length, "triton", "own"),
        **{variant(path): partial(_fused, case, length, "triton", path) for path in _PATHS},
        **{name: partial(_pinned, case, length, backend) for name, backend in PINNED.items()},
        "xformers": lambda: _xformers(case, length, dtype),
        "flex": lambda: _flex(case, length, device),
        "reference compiled": lambda: compiled(_fused(case, length, "reference"), device),
        REFERENCE: lambda: _fused(case, length, "reference"),
    }
    return KernelProblem.of(
        leaves=leaves,
        gradient=torch.randn_like(leaves[0]),
        plain=lambda *given: _plain(case, length, given),
        providers=providers,
        work=_work(case, case.batch * case.text if length is None else int(length.sum()), dtype),
    )


def _of(network: str, batch: int) -> list[Case]:
    return [
        Case(x.name, batch, x.channels // x.head, x.side**2, x.head, x.text, x.attention)
        for x in levels(network)
        if x.attention in ("cross", "joint")
    ]


def _ragged(case: Case) -> Case:
    return replace(case, name=f"{case.name} ragged", ragged=True)


def _lengths(case: Case, device: torch.device) -> Tensor:
    low, high = min(10, case.text), min(40, case.text)
    return torch.randint(low, high + 1, (case.batch,), device=device, dtype=torch.int32)


def _leaves(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    def projected(tokens: int, parts: int) -> tuple[Tensor, ...]:
        fused = torch.randn(
            case.batch, tokens, parts, case.heads, case.head, dtype=dtype, device=device
        )
        return fused.permute(2, 0, 3, 1, 4).unbind()

    image = projected(case.queries, 1 if case.kind == "cross" else 3)
    return (*image, *projected(case.text, 2))


def _sources(case: Case, leaves: tuple[Tensor, ...]) -> Sources:
    q, *image, text_k, text_v = leaves
    k, v = image if case.kind == "joint" else (None, None)
    return Sources(q, k, v, text_k, text_v)


def _fused(
    case: Case, length: Tensor | None, backend: Backend, backward: BackwardPath = "auto"
) -> Function:
    def attend(*leaves: Tensor) -> Tensor:
        sources = _sources(case, leaves)
        return joint_attention(*sources, length, backend=backend, backward=backward)

    return attend


def _concatenated(case: Case, leaves: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v, text_k, text_v = _sources(case, leaves)
    if k is None or v is None:
        return q, text_k, text_v
    return q, torch.cat([text_k, k], dim=2), torch.cat([text_v, v], dim=2)


def _visible(case: Case, length: Tensor) -> Tensor:
    """B 1 1 S, True at real tokens of the text and at the image's."""
    real = torch.arange(case.text, device=length.device) < length[:, None]
    image = 0 if case.kind == "cross" else case.queries
    return F.pad(real, (0, image), value=True)[:, None, None]


def _pinned(case: Case, length: Tensor | None, backend: SDPBackend) -> Function:
    if backend == SDPBackend.FLASH_ATTENTION and length is not None:
        raise CannotError("it takes no mask; the case with full-length text has its time")
    mask = None if length is None else _visible(case, length)

    def attend(*leaves: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(*_concatenated(case, leaves), attn_mask=mask)

    return attend


def _xformers(case: Case, length: Tensor | None, dtype: torch.dtype) -> Function:
    if find_spec("xformers") is None:
        raise CannotError("xformers is not installed")
    from xformers.ops import memory_efficient_attention

    bias = None if length is None else _bias(case, length, dtype)

    def attend(*leaves: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in _concatenated(case, leaves))  # it takes B N H d
        out: Tensor = memory_efficient_attention(q, k, v, attn_bias=bias)
        return out.transpose(1, 2)

    return attend


def _bias(case: Case, length: Tensor, dtype: torch.dtype) -> Tensor:
    """B H N S, -inf where a key is hidden; the kernels want its rows to begin at 16 bytes."""
    visible = _visible(case, length)
    keys = visible.shape[-1]
    padded = torch.zeros(case.batch, 1, 1, -(-keys // 8) * 8, dtype=dtype, device=length.device)
    bias = padded[..., :keys].masked_fill_(~visible, -torch.inf)
    return bias.expand(case.batch, case.heads, case.queries, keys)


def _flex(case: Case, length: Tensor | None, device: torch.device) -> Function:
    kernel = compiled(flex_attention, device)
    blocks = None
    if length is not None:

        def visible(b: Tensor, _h: Tensor, _q: Tensor, key: Tensor) -> Tensor:
            return (key >= case.text) | (key < length[b])

        keys = case.text + (case.queries if case.kind == "joint" else 0)
        blocks = create_block_mask(visible, case.batch, None, case.queries, keys, device=device)

    def attend(*leaves: Tensor) -> Tensor:
        out: Tensor = kernel(*_concatenated(case, leaves), block_mask=blocks)
        return out

    return attend


def _plain(case: Case, length: Tensor | None, leaves: tuple[Tensor, ...]) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, sample after sample: scores in float64 fill the memory."""
    mask = None if length is None else _visible(case, length)[:, 0]

    def one(sample: int, *given: Tensor) -> Tensor:
        q, k, v = _concatenated(case, tuple(leaf[None] for leaf in given))
        scores = q @ k.mT / case.head**0.5
        if mask is not None:
            scores = scores.masked_fill(~mask[sample], -torch.inf)
        out: Tensor = scores.softmax(dim=-1) @ v
        return out

    samples = zip(*(leaf.unbind() for leaf in leaves), strict=True)
    return torch.cat(
        [checkpoint(one, b, *given, use_reentrant=False) for b, given in enumerate(samples)]
    )


def _work(case: Case, real_tokens: int, dtype: torch.dtype) -> dict[Mode, Work]:
    """Bytes and operations: 4 per query, key and channel forward, 2.5 times that backward.

    The convention is FlashAttention's; keys that are only padding do not count.
    """
    width = case.heads * case.head
    queries = case.batch * case.queries
    image = 0 if case.kind == "cross" else queries
    q, kv = queries * width * dtype.itemsize, 2 * (image + real_tokens) * width * dtype.itemsize
    pairs = case.queries * (image + real_tokens)
    flops = 4 * pairs * width
    forward, backward = 2 * q + kv, 4 * q + 2 * kv
    return {
        "forward": Work(bytes=forward, flops=flops),
        "backward": Work(bytes=backward, flops=5 * flops // 2),
        "both": Work(bytes=forward + backward, flops=7 * flops // 2),
    }


def _limits(case: Case, dtype: torch.dtype) -> dict[str, int]:
    return {
        "head": case.head,
        "queries": case.queries,
        "tokens": case.text,
        "bytes": dtype.itemsize,
    }


_TELLING = ("bytes", "head", "queries")
SPACES = {
    "joint_attention_forward": Space(
        "forward", _TELLING, {"BLOCK_M": (64, 128), "BLOCK_N": (32, 64, 128)}, num_stages=(2, 3)
    ),
    "joint_attention_backward_q": Space(
        "backward", _TELLING, {"BLOCK_M": (64, 128), "BLOCK_N": (32, 64)}, num_stages=(2, 3)
    ),
    "joint_attention_backward_kv": Space(
        "backward", _TELLING, {"BLOCK_M": (32, 64), "BLOCK_N": (64, 128)}, num_stages=(2, 3)
    ),
}
OPERATION = Operation("joint_attention", cases, dry_cases, problem, _limits, SPACES)
