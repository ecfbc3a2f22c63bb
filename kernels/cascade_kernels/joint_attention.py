"""Attention of image tokens over two sources of keys, the text and the image, in one softmax.

Imagen concatenates the text to the keys and values of every self-attention layer (Saharia et al.
2022, appendix D.3.1). Here the two sources stay apart in the signature, so that a fused kernel
need not copy them into one tensor.

Shapes: `B` batch, `H` heads, `N` image tokens, `L` text tokens, `d` channels of one head.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def joint_attention(
    q: Tensor,
    k: Tensor | None,
    v: Tensor | None,
    text_k: Tensor | None,
    text_v: Tensor | None,
    text_mask: Tensor | None,
) -> Tensor:
    """Return softmax(q [text_k; k]^T / sqrt(d)) [text_v; v], the plain PyTorch reference.

    Args:
        q: queries of the image, B H N d.
        k: keys of the image, B H N d; None leaves the image out (cross-attention).
        v: values of the image, given together with `k`.
        text_k: keys of the text, B H L d; None leaves the text out (self-attention).
        text_v: values of the text, given together with `text_k`.
        text_mask: B L, True at real tokens; the others receive no attention. None: all are real.

    Returns:
        B H N d. A row with nothing to attend to (no image, every token masked) is zero.

    Raises:
        ValueError: no keys at all, or keys without their values.
    """
    if (k is None) != (v is None) or (text_k is None) != (text_v is None):
        raise ValueError("keys and values must be given together")
    keys = [source for source in (text_k, k) if source is not None]
    values = [source for source in (text_v, v) if source is not None]
    if not keys:
        raise ValueError("attention needs the image's keys, the text's, or both")
    mask = None
    if text_k is not None and text_mask is not None:
        mask = _visible(text_mask, 0 if k is None else k.shape[2])
    # A single source is passed as it is: `cat` of one tensor would copy it.
    key = keys[0] if len(keys) == 1 else torch.cat(keys, dim=2)
    value = values[0] if len(values) == 1 else torch.cat(values, dim=2)
    return F.scaled_dot_product_attention(q, key, value, attn_mask=mask)


def _visible(text_mask: Tensor, image_tokens: int) -> Tensor:
    """The mask over all keys, B 1 1 (L + image_tokens): every image token is visible."""
    return F.pad(text_mask, (0, image_tokens), value=True)[:, None, None, :]
