"""What a graph computes in; imports no torch."""

from typing import Literal, TypeAlias

Precision: TypeAlias = Literal["fp32", "fp16", "bf16"]
Quantization: TypeAlias = Literal["none", "int8", "fp8"]
