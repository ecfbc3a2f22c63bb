"""Compile kernels for a GPU that need not be there, and see what they cost and what is wrong.

    python -m cascade_kernels.ahead_of_time --architecture sm_90

prints for every row of an architecture's launch table the registers, spills and shared memory of
its kernels, the matrix instructions they use and every defect, and fails if there is one. Triton
must not be in its interpreter's mode, in which not even its own functions can be compiled.
"""

import argparse
import contextlib
import io
import json
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from cascade_kernels.dispatch import ARCHITECTURES
from cascade_kernels.ir_lint import defects
from cascade_kernels.launch_table import Table, read_table, shipped_table
from cascade_kernels.variant import Variant

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
_MATRIX = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_mfma|v_wmma)")
# The instructions that take 16 bytes of one thread, or more, from global memory at once.
_WIDE_LOAD = re.compile(
    r"\bld\.global[\w.:]*\.(v4\.\w32|v2\.\w64)|cp\.async\.(cg|bulk)|_load_dwordx4"
)
_SERIALISED = "wgmma.mma_async instructions are serialized"  # ptxas, advisory C7515


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes.

    Attributes:
        variant: the name of what was compiled.
        architecture: what for.
        registers: of one thread, 32 bits each.
        spill: what did not fit into the registers, bytes of one thread.
        shared: shared memory of one program, bytes.
        matrix: the matrix unit's instruction; "" if the kernel multiplies no matrices.
        wide_loads: some load takes 16 bytes at once.
        serialised: on Hopper, matrix instructions wait for one another; a loss of speed only.
        defects: what no shipped kernel may have.
    """

    variant: str
    architecture: str
    registers: int
    spill: int
    shared: int
    matrix: str
    wide_loads: bool
    serialised: bool
    defects: tuple[str, ...]


def variants(table: Table) -> Iterator[Variant]:
    """Yield every compilation that the rows of a table ask for."""
    from cascade_kernels.triton_code import group_norm_film_silu, joint_attention, sampler_step

    for operation in (joint_attention, group_norm_film_silu, sampler_step):
        yield from operation.variants(table)


def resources(variant: Variant, architecture: str) -> Resources:
    """Compile a variant and report on it.

    Args:
        variant: what to compile.
        architecture: what for, a key of `SHARED_KIB`.

    Raises:
        RuntimeError: Triton is in its interpreter's mode.
        ValueError: the architecture is unknown, or the variant leaves out an argument.
    """
    kernel, log = compile_variant(variant, architecture)
    nvidia = architecture.startswith("sm_")
    code = kernel.asm["ptx" if nvidia else "amdgcn"]
    if nvidia:
        registers = _number(r"Used (\d+) registers", log)
        spill = _number(r"(\d+) bytes spill stores", log)
    else:
        registers = _number(r"\.vgpr_count:\s+(\d+)", code)
        spill = 4 * _number(r"\.vgpr_spill_count:\s+(\d+)", code)
    shared = int(kernel.metadata.shared)
    found = list(defects(kernel.asm, pipelined=nvidia and variant.asynchronous))
    if nvidia and not variant.fusion and "fma.rn" in code:
        found.append("rounds a product and a sum at once")
    if spill:
        found.append(f"spills {spill} bytes")
    if shared > SHARED_KIB[architecture] * 1024:
        found.append(f"needs {shared} bytes of {SHARED_KIB[architecture]} KiB of shared memory")
    matrix = _MATRIX.search(code)
    return Resources(
        variant=variant.name,
        architecture=architecture,
        registers=registers,
        spill=spill,
        shared=shared,
        matrix=matrix[1] if matrix else "",
        wide_loads=_WIDE_LOAD.search(code) is not None,
        serialised=_SERIALISED in log,
        defects=tuple(found),
    )


def compile_variant(variant: Variant, architecture: str) -> tuple[Any, str]:
    """Compile a variant with no device.

    Args:
        variant: what to compile.
        architecture: what for, a key of `SHARED_KIB`.

    Returns:
        Triton's `CompiledKernel`, whose `asm` holds the texts of every stage and the binary, and
        the assembler's log.

    Raises:
        RuntimeError: Triton is in its interpreter's mode.
        ValueError: the architecture is unknown, or the variant leaves out an argument.
    """
    import triton
    from triton import knobs
    from triton.compiler import ASTSource

    if knobs.runtime.interpret:
        raise RuntimeError("the interpreter's mode compiles nothing; unset TRITON_INTERPRET.")
    target = _target(architecture)
    source = ASTSource(
        variant.kernel, _signature(variant), dict(variant.constants), _sixteens(variant)
    )
    options = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
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
        kernel = triton.compile(source, target=target, options=options)
    return kernel, log.getvalue()


def _target(architecture: str) -> Any:
    from triton.backends.compiler import GPUTarget

    if architecture not in SHARED_KIB:
        raise ValueError(f"{architecture} is unknown; known are {', '.join(SHARED_KIB)}.")
    if architecture.startswith("gfx"):
        return GPUTarget("hip", architecture, 64)
    return GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)


def _signature(variant: Variant) -> dict[str, str]:
    """The type of every argument in the kernel's order."""
    names: list[str] = variant.kernel.arg_names
    missing = set(names) - variant.arguments.keys() - variant.constants.keys()
    if missing:
        raise ValueError(f"{variant.name} does not describe {', '.join(sorted(missing))}.")
    return {n: "constexpr" if n in variant.constants else variant.arguments[n] for n in names}


def _sixteens(variant: Variant) -> dict[tuple[int], list[list[Any]]]:
    """The arguments that are multiples of 16, as a launch would find the pointers to be."""
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


def main() -> int:
    """Report on every row of one architecture's table; return the number of defective ones."""
    parser = argparse.ArgumentParser(prog="python -m cascade_kernels.ahead_of_time")
    parser.add_argument("--architecture", default="sm_90", choices=list(ARCHITECTURES))
    parser.add_argument("--only", default="", help="regular expression for variants' names")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    arguments = parser.parse_args()
    table = read_table(shipped_table(ARCHITECTURES[arguments.architecture]))
    defective = 0
    for variant in variants(table):
        if not re.search(arguments.only, variant.name):
            continue
        row = resources(variant, arguments.architecture)
        defective += bool(row.defects)
        sys.stdout.write((json.dumps(asdict(row)) if arguments.json else _line(row)) + "\n")
        sys.stdout.flush()
    return defective


def _line(row: Resources) -> str:
    remarks = [row.matrix, "" if row.wide_loads else "narrow loads"]
    remarks += ["serialised" if row.serialised else "", *(f"DEFECT {x}" for x in row.defects)]
    return (
        f"{row.architecture:7} {row.variant:64} {row.registers:3} registers {row.spill:5} B spilled"
        f" {row.shared:6} B shared  {', '.join(filter(None, remarks))}"
    )


if __name__ == "__main__":
    sys.exit(min(main(), 1))
