"""The tensors of one call of joint attention.

Shapes: `B` batch, `H` heads, `N` image tokens, `L` text tokens, `d` channels of one head.
"""

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """Queries, and the keys and values of both sources; None for an absent source."""

    q: Tensor  # B H N d
    k: Tensor | None  # B H N d
    v: Tensor | None
    text_k: Tensor | None  # B H L d
    text_v: Tensor | None
    text_length: Tensor | None  # B


def check(inputs: Inputs) -> None:
    """Check that keys and values fit together.

    Raises:
        ValueError: they do not.
    """
    q, k, v, text_k, text_v, text_length = inputs
    if (k is None) != (v is None) or (text_k is None) != (text_v is None):
        raise ValueError("keys and values must be given together")
    if k is None and text_k is None:
        raise ValueError("attention needs the image's keys, the text's, or both")
    for name, x, rows in (
        ("k", k, q),
        ("v", v, q),
        ("text_k", text_k, text_k),
        ("text_v", text_v, text_k),
    ):
        if x is None or rows is None:
            continue
        expected = (q.shape[0], q.shape[1], rows.shape[2], q.shape[3])
        if tuple(x.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(x.shape)}; expected {expected}")
    if text_length is not None and text_length.shape != q.shape[:1]:
        raise ValueError(
            f"text_length has shape {tuple(text_length.shape)}; expected one per image"
        )


def sizes(inputs: Inputs) -> dict[str, int]:
    """Return what rows and routes of a launch table may bound."""
    q, text_k = inputs.q, inputs.text_k
    return {
        "head": q.shape[3],
        "queries": q.shape[2],
        "tokens": 0 if text_k is None else text_k.shape[2],
        "bytes": q.element_size(),
    }
