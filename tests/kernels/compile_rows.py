"""Compile the rows of an architecture's shipped launch tables, with no GPU, and look for defects.

    python tests/kernels/compile_rows.py sm_90 [REGULAR EXPRESSION FOR NAMES]

prints a JSON object per variant: what it takes, how many of its programs a multiprocessor holds,
the instructions by which it multiplies matrices, whether it loads 16 bytes at once, the fewest
bytes of an image that the norm does, whether Hopper's matrix instructions wait for one another (a
loss of speed only), and its defects.
"""

import inspect
import json
import re
import sys

from ir_lint import defects

from cascade_bench.kernels.compiling import compile_variant, resident
from cascade_bench.kernels.variants import variants
from cascade_kernels.dispatch import ARCHITECTURES, shipped_table
from cascade_kernels.group_norm_film_silu.tiles import load_tile

_MATRIX = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_mfma|v_wmma)")
# The instructions that take 16 bytes of one thread, or more, from global memory at once.
_WIDE_LOAD = re.compile(
    r"\bld\.global[\w.:]*\.(v4\.\w32|v2\.\w64)|cp\.async\.(cg|bulk)|_load_dwordx4"
)
_COPY = re.compile(r"cp\.async\.c[ag]\.shared\.global[^;]*?\], *(0x[0-9a-f]+|\d+)")
_LINE = re.compile(r"\.loc\s+\d+ (\d+)")
_LOAD = re.compile(r"\bld\.global[\w.:]*?(?:\.v(\d))?\.[bufs](\d+)\b")
_SERIALISED = "wgmma.mma_async instructions are serialized"  # ptxas, advisory C7515


def main(architecture: str, only: str = "") -> None:
    """Report on the variants whose names match."""
    for variant in variants(shipped_table(ARCHITECTURES[architecture])):
        if not re.search(only, variant.name):
            continue
        compiled = compile_variant(variant, architecture)
        code = compiled.texts["ptx" if architecture.startswith("sm_") else "amdgcn"]
        row = {
            "variant": variant.name,
            "registers": compiled.registers,
            "spill": compiled.spill,
            "shared": compiled.shared,
            "matrix": sorted(set(_MATRIX.findall(code))),
            "programs": resident(
                compiled.registers, compiled.shared, variant.launch.num_warps, architecture
            ),
            "wide loads": _WIDE_LOAD.search(code) is not None,
            "image load": image_load(code) if variant.name.startswith("group_norm") else None,
            "serialised": _SERIALISED in compiled.log,
            "defects": defects(variant, architecture, compiled),
        }
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


def image_load(code: str) -> int | None:
    """The fewest bytes that one thread takes of an image of the norm's at once.

    A loop copies images asynchronously, and the single pixel ahead of it may be read by less. What
    has no loop loads them in `load_tile`, as the line numbers in its code tell.
    """
    copied = [int(size, 0) for size in _COPY.findall(code)]
    if copied:
        return min(copied)
    lines, start = inspect.getsourcelines(load_tile.fn)
    sizes, inside = [], False
    for line in code.splitlines():
        if at := _LINE.search(line):
            inside = start <= int(at[1]) < start + len(lines)
        if (load := _LOAD.search(line)) and inside:
            sizes.append(int(load[1] or 1) * int(load[2]) // 8)
    return min(sizes, default=None)


if __name__ == "__main__":
    main(*sys.argv[1:])
