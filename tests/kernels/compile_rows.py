"""Compile the rows of an architecture's shipped launch tables, with no GPU, and look for defects.

    python tests/kernels/compile_rows.py sm_90 [REGULAR EXPRESSION FOR NAMES]

prints a JSON object per variant: what it takes, the instruction by which it multiplies matrices,
whether it loads 16 bytes at once, whether Hopper's matrix instructions wait for one another (a loss
of speed only), and its defects.
"""

import json
import re
import sys

from ir_lint import defects

from cascade_bench.kernels.compiling import compile_variant
from cascade_bench.kernels.variants import variants
from cascade_kernels.dispatch import ARCHITECTURES, shipped_table

_MATRIX = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync|v_mfma|v_wmma)")
# The instructions that take 16 bytes of one thread, or more, from global memory at once.
_WIDE_LOAD = re.compile(
    r"\bld\.global[\w.:]*\.(v4\.\w32|v2\.\w64)|cp\.async\.(cg|bulk)|_load_dwordx4"
)
_SERIALISED = "wgmma.mma_async instructions are serialized"  # ptxas, advisory C7515


def main(architecture: str, only: str = "") -> None:
    """Report on the variants whose names match."""
    for variant in variants(shipped_table(ARCHITECTURES[architecture])):
        if not re.search(only, variant.name):
            continue
        compiled = compile_variant(variant, architecture)
        code = compiled.texts["ptx" if architecture.startswith("sm_") else "amdgcn"]
        matrix = _MATRIX.search(code)
        row = {
            "variant": variant.name,
            "registers": compiled.registers,
            "spill": compiled.spill,
            "shared": compiled.shared,
            "matrix": matrix[1] if matrix else "",
            "wide loads": _WIDE_LOAD.search(code) is not None,
            "serialised": _SERIALISED in compiled.log,
            "defects": defects(variant, architecture, compiled),
        }
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
