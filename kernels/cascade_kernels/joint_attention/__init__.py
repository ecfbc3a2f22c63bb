"""Attention of image tokens over two sources of keys, the text and the image, in one softmax."""

from cascade_kernels.joint_attention.op import decompositions, joint_attention

__all__ = ["decompositions", "joint_attention"]
