"""Compile a kernel for a GPU that need not be there, and see what it takes.

Triton must not be in its interpreter's mode, in which not even its own functions can be compiled.
"""

import contextlib
import io
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cascade_kernels.launch_table import Launch

# Shared memory that one program may have, KiB: what an NVIDIA device grants on request (CUDA C++
# programming guide, "Technical specifications per compute capability"), an AMD device's LDS.
SHARED_KIB = {
    "sm_80": 163,
    "sm_86": 99,
    "sm_87": 163,
    "sm_89": 99,
    "sm_90": 227,
    "sm_100": 227,
    "sm_103": 227,
    "sm_110": 227,
    "sm_120": 99,
    "sm_121": 99,
    "gfx942": 64,
    "gfx950": 160,
}


@dataclass(frozen=True)
class Variant:
    """One compilation of a Triton kernel, as one row of a launch table asks for.

    Attributes:
        name: the kernel's name in the table and what tells this variant from its siblings, such as
            "joint_attention_forward/bf16/d64/BLOCK_M128/BLOCK_N64/w8s2".
        kernel: the function under `triton.jit`.
        arguments: type of every argument that is no constexpr, by name: "*bf16", "*fp32", "*i32",
            "i32", "fp32".
        constants: value of every constexpr argument, by name. An optional pointer that is absent
            is a constant None.
        multiples: integer arguments that a launch finds to be multiples of 16, as most strides
            are. Pointers always are; without both, loads are neither vectorised nor asynchronous.
        launch: its launch configuration.
        fusion: a product and a sum may be rounded once instead of twice.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, str]
    constants: Mapping[str, Any]
    multiples: frozenset[str]
    launch: Launch
    fusion: bool = True


@dataclass(frozen=True)
class Compiled:
    """A compiled kernel.

    Attributes:
        texts: what every stage of the compiler wrote: "ttir", "ttgir", and "ptx" or "amdgcn".
        log: the assembler's.
        registers: of one thread, 32 bits each.
        spill: what did not fit into the registers, bytes of one thread.
        shared: shared memory of one program, bytes.
        excess: what it takes that is not there, in words.
    """

    texts: Mapping[str, Any]
    log: str
    registers: int
    spill: int
    shared: int
    excess: tuple[str, ...]


def compile_variant(variant: Variant, architecture: str) -> Compiled:
    """Compile a variant with no device.

    Raises:
        RuntimeError: Triton is in its interpreter's mode.
        ValueError: the architecture is unknown, or the variant leaves out an argument.
    """
    kernel, log = _compile(variant, architecture)
    if architecture.startswith("sm_"):
        registers = _number(r"Used (\d+) registers", log)
        spill = _number(r"(\d+) bytes spill stores", log)
    else:
        registers = _number(r"\.vgpr_count:\s+(\d+)", kernel.asm["amdgcn"])
        spill = 4 * _number(r"\.vgpr_spill_count:\s+(\d+)", kernel.asm["amdgcn"])
    shared, most = int(kernel.metadata.shared), SHARED_KIB[architecture]
    excess = [f"spills {spill} bytes"] if spill else []
    if shared > most * 1024:
        excess.append(f"needs {shared} bytes of {most} KiB of shared memory")
    return Compiled(kernel.asm, log, registers, spill, shared, tuple(excess))


def resident(registers: int, shared: int, num_warps: int, architecture: str) -> int:
    """Return how many programs a multiprocessor holds, by their registers and shared memory.

    CUDA C++ programming guide, "Technical specifications per compute capability": 64 Ki registers,
    which warps take by 256, 64 warps, and 1 KiB of every program's shared memory for the system. An
    AMD compute unit has four SIMDs of 512 registers for 64 lanes (CDNA 3 ISA, "Vector GPRs"), each
    with room for eight wavefronts.
    """
    on_amd = architecture.startswith("gfx")
    taken = -(-max(registers, 1) // 8) * 8 * num_warps
    by_registers = 4 * 512 // taken if on_amd else 2**16 // (32 * taken)
    by_warps = (32 if on_amd else 64) // num_warps
    by_memory = (SHARED_KIB[architecture] + 1) * 1024 // (shared + 1024)
    return min(by_registers, by_warps, by_memory)


def _compile(variant: Variant, architecture: str) -> tuple[Any, str]:
    """Return Triton's `CompiledKernel` and the assembler's log."""
    import triton
    from triton import knobs
    from triton.compiler import ASTSource

    if knobs.runtime.interpret:
        raise RuntimeError("the interpreter's mode compiles nothing; unset TRITON_INTERPRET.")
    source = ASTSource(
        variant.kernel, _signature(variant), dict(variant.constants), _sixteens(variant)
    )
    options = {
        "num_warps": variant.launch.num_warps,
        "num_stages": variant.launch.num_stages,
        "enable_fp_fusion": variant.fusion,
    }
    log = io.StringIO()
    with (
        tempfile.TemporaryDirectory() as folder,
        knobs.cache.scope(),
        knobs.nvidia.scope(),
        contextlib.redirect_stdout(log),
    ):
        knobs.cache.dir = folder  # a kernel found in a cache comes without its log
        knobs.nvidia.dump_ptxas_log = True
        kernel = triton.compile(source, target=_target(architecture), options=options)
    return kernel, log.getvalue()


def _target(architecture: str) -> Any:
    from triton.backends.compiler import GPUTarget

    if architecture not in SHARED_KIB:
        raise ValueError(f"{architecture} is unknown; known are {', '.join(SHARED_KIB)}.")
    if architecture.startswith("gfx"):
        return GPUTarget("hip", architecture, 64)
    return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)


def _signature(variant: Variant) -> dict[str, str]:
    """Return the type of every argument in the kernel's order."""
    names: list[str] = variant.kernel.arg_names
    missing = set(names) - variant.arguments.keys() - variant.constants.keys()
    if missing:
        raise ValueError(f"{variant.name} does not describe {', '.join(sorted(missing))}.")
    return {n: "constexpr" if n in variant.constants else variant.arguments[n] for n in names}


def _sixteens(variant: Variant) -> dict[tuple[int], list[list[Any]]]:
    """Return the arguments that are multiples of 16, as a launch would find the pointers to be."""
    names: list[str] = variant.kernel.arg_names
    known = variant.multiples | {n for n, kind in variant.arguments.items() if kind[0] == "*"}
    return {(names.index(name),): [["tt.divisibility", 16]] for name in known}


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(
            f"the compiler's output lacks {pattern!r}; its version is not known here."
        )
    return int(match[1])
