"""Whether Triton's interpreter, which runs kernels on CPUs, works with what is installed."""

import numpy as np
from packaging.version import Version


def interpreter_fault() -> str:
    """Return why Triton can interpret no kernel here; empty where it can.

    Before 3.7 it converts arrays of one element into numbers, which NumPy refuses from 2.4 on
    (triton-lang/triton#9171).
    """
    import triton

    if Version(triton.__version__).release >= (3, 7) or Version(np.__version__).release < (2, 4):
        return ""
    return (
        f"the interpreter of triton {triton.__version__} does not run with numpy {np.__version__}; "
        "install triton>=3.7 or numpy<2.4"
    )
