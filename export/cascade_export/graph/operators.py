"""ONNX forms of attention, norms and up-sampling, and decompositions of our own kernels.

Every engine gets the plainest form that is exact in every precision: the softmax is always in fp32.

Shapes: `B` batch, `H` heads, `N` queries, `K` keys, `d` channels of one head.
"""

from collections.abc import Callable
from typing import Any, Final

import onnx_ir as ir
import onnxscript
import torch

from cascade_kernels import group_norm_film_silu, joint_attention

# Untyped: its signatures ask for tensors, and what is built here are a graph's values.
op: Final[Any] = onnxscript.opset20

HIDDEN: Final = -1e30
"""Added to the logits of hidden keys: their weight is exactly 0, and no infinity arises."""


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the ONNX form of some of PyTorch's operators, in place of the exporter's."""
    aten = torch.ops.aten
    return {
        aten.addcmul.default: scaled_sum,
        aten.group_norm.default: group_norm,
        aten.scaled_dot_product_attention.default: attention,
        aten.upsample_nearest2d.vec: double,
    }


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Return what replaces our own kernels, which a network on a GPU is traced with."""
    return group_norm_film_silu.decompositions() | joint_attention.decompositions()


def attention(
    q: Any,
    k: Any,
    v: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Compute attention as two matrix products around a softmax in fp32.

    Args:
        q: B H N d.
        k: B H K d.
        v: B H K d.
        attn_mask: broadcast to B H N K; bool, True where a key is seen, or added to the logits. A
            row that sees nothing is zero, as from PyTorch's own attention.
        scale: of the logits, 1/sqrt(d) by default.

    Returns:
        B H N d.

    Raises:
        ValueError: an argument has a value that the networks here do not use.
    """
    if dropout_p or is_causal or enable_gqa:
        raise ValueError("attention is exported without dropout, causal masks and grouped queries")
    factor = q.shape[3] ** -0.5 if scale is None else scale
    # Scaled first: in fp16 the logits of wide heads could overflow.
    scaled = q if factor == 1 else op.Mul(q, op.CastLike(op.Constant(value_float=factor), q))
    logits = _float(op.MatMul(scaled, op.Transpose(k, perm=[0, 1, 3, 2])))
    seen = None
    if attn_mask is not None and attn_mask.dtype == ir.DataType.BOOL:
        seen = _float(attn_mask)
        hidden = op.Sub(op.Constant(value_float=1.0), seen)
        logits = op.Add(logits, op.Mul(hidden, op.Constant(value_float=HIDDEN)))
    elif attn_mask is not None:
        logits = op.Add(logits, _float(attn_mask))
    out = op.MatMul(op.CastLike(op.Softmax(logits, axis=-1), v), v)
    if seen is None:
        return out
    any_seen = op.ReduceMax(seen, op.Constant(value_ints=[-1]), keepdims=1)
    return op.Mul(out, op.CastLike(any_seen, v))


def group_norm(
    x: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """Normalise each group of channels of B C ..., in fp32, and scale and shift channels.

    ONNX has GroupNormalization for it, which ONNX Runtime takes apart into some ten passes over
    the image on a CPU; with a group as one channel of InstanceNormalization there are three.

    Args:
        weight: C, with `bias`; None: 1.
        bias: C.
    """
    groups = op.Reshape(_float(x), op.Constant(value_ints=[0, num_groups, -1]))
    one, zero = (op.Constant(value_floats=[value] * num_groups) for value in (1.0, 0.0))
    normal = op.InstanceNormalization(groups, one, zero, epsilon=eps)
    out = op.Reshape(normal, op.Shape(x))
    if weight is not None:
        after = op.Constant(value_ints=list(range(1, len(x.shape) - 1)))
        gain, offset = (op.Unsqueeze(_float(each), after) for each in (weight, bias))
        out = op.Add(op.Mul(out, gain), offset)
    return op.CastLike(out, x)


def scaled_sum(x: Any, factor: Any, other: Any, value: float = 1.0) -> Any:
    """Compute x + factor other.

    Raises:
        ValueError: the product has a factor of its own.
    """
    if value != 1:
        raise ValueError(f"addcmul is exported without a factor, not with {value}")
    return op.Add(x, op.Mul(factor, other))


def double(x: Any, output_size: Any, scale_factors: Any) -> Any:
    """Repeat every pixel of B C H W as 2x2.

    Raises:
        ValueError: another factor than 2 is asked for.
    """
    if output_size is not None or list(scale_factors) != [2.0, 2.0]:
        raise ValueError(f"nearest up-sampling is exported by 2 only, not by {scale_factors}")
    if x.dtype != ir.DataType.BFLOAT16:
        return op.Resize(
            x,
            None,
            op.Constant(value_floats=[1.0, 1.0, 2.0, 2.0]),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
    # TensorRT has no `Resize` in bf16; elsewhere it is much the faster form on CPUs.
    pixels = op.Unsqueeze(x, op.Constant(value_ints=[3, 5]))
    repeated = op.Expand(pixels, op.Constant(value_ints=[1, 1, 1, 2, 1, 2]))
    return op.Reshape(repeated, op.Mul(op.Shape(x), op.Constant(value_ints=[1, 1, 2, 2])))


def _float(x: Any) -> Any:
    return op.Cast(x, to=ir.DataType.FLOAT)
