"""How a kernel describes one of its compilations to those who compile it without launching it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One compilation of a Triton kernel, as one row of a launch table asks for.

    Each module of `triton_code` offers `variants(table) -> Iterator[Variant]`: every row of its
    kernels, with the switches (masks, optional inputs) that its launcher may set for that row.

    Attributes:
        name: the kernel's name in the table and what tells this variant from its siblings, such as
            "joint_attention_forward/d64/M128N64/w8s2".
        kernel: the function under `triton.jit`.
        arguments: type of every argument that is no constexpr, by name: "*bf16", "*fp32", "*i32",
            "i32", "i64", "fp32".
        constants: value of every constexpr argument, by name. An optional pointer that is absent
            is a constant None.
        multiples: integer arguments that a launch finds to be multiples of 16, as most strides
            are. Pointers always are; without both, loads are neither vectorised nor asynchronous.
        num_warps: warps of one program.
        num_stages: software pipeline depth of its loops.
        asynchronous: its loops are meant to be pipelined: on an NVIDIA device, that no asynchronous
            copy is found in it is a defect.
        fusion: a product and a sum may be rounded once instead of twice.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, str]
    constants: Mapping[str, Any]
    multiples: frozenset[str]
    num_warps: int
    num_stages: int
    asynchronous: bool = False
    fusion: bool = True
