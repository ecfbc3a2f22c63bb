"""A process that works alone for long is waited for; one that is late in a step is not."""

import subprocess
import sys

import pytest

LATE = """
import time
from pathlib import Path
import torch
from cascade.training.distributed import process_group

with process_group(timeout_minutes=0.02, run_dir=Path("none")) as processes:
    for alone in range(2):
        if processes.rank == alone:
            time.sleep(3)
        processes.barrier()
    assert processes.all_gather(torch.tensor([processes.rank]), 2).tolist() == [0, 1]
    assert processes.all_reduce_max(processes.rank) == 1
    if processes.is_main:
        time.sleep(3)
    else:
        try:
            processes.all_reduce_max(0)
        except RuntimeError as error:
            assert "timed out" in str(error).lower(), error
            print("late", flush=True)
"""


@pytest.mark.slow
@pytest.mark.dist
def test_only_a_step_has_a_time_out() -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [*torchrun, "--nproc-per-node=2", "--no-python", sys.executable, "-c", LATE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout == "late\n", done.stderr
    assert done.returncode == 0, done.stderr
