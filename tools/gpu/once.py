"""Run one operation's kernel once, forward and backward: what a memory checker is given.

compute-sanitizer --tool memcheck python tools/gpu/once.py joint_attention
"""

import os
import sys

# Every tensor gets an allocation of its own: inside the allocator's blocks no access is out of
# bounds. Torch reads it when it first allocates.
os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"

import torch

from bench.problem import Gate
from bench.results import OURS
from bench.run import OPERATIONS


def main() -> int:
    """Return 0 if every one of its small cases was computed correctly."""
    (operation,) = (known for known in OPERATIONS if known.name == sys.argv[1])
    for case in operation.dry_cases():
        problem = operation.problem(case, torch.bfloat16, torch.device("cuda"))
        if not Gate(problem).excess(problem.providers[OURS]()) <= 1:
            return 1
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
