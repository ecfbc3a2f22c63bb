"""Types of numbers that graphs compute in; imports no torch."""

from typing import Literal, TypeAlias

from cascade.config.base import Frozen

Precision: TypeAlias = Literal["fp32", "fp16", "bf16"]
Quantization: TypeAlias = Literal["none", "int8", "fp8"]
TextForm: TypeAlias = Literal["torch", "graph"]
"""What runs a bundle's text encoder: transformers, or ONNX Runtime."""


class Numerics(Frozen):
    """The types that a graph's numbers have.

    Attributes:
        precision: of weights and arithmetic.
        quantization: of the convolutions in the blocks.
    """

    precision: Precision = "fp32"
    quantization: Quantization = "none"
