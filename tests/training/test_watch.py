"""Of processes that wait for a late one, the first says which it is and where."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import logging
import sys
import time
from pathlib import Path

from cascade.training.distributed import process_group
from cascade.training.watch import Place, Watch

logging.basicConfig(format="%(message)s")
run = Path(sys.argv[1])
with process_group(5.0, run) as processes:
    with Watch(run, processes, limit=60.0) as watch:
        for turn in range(3):
            watch.at(turn, Place.DATA)
            time.sleep(0.2 if processes.rank == 1 else 0.01)
            watch.at(turn, Place.BACKWARD)
        status = watch.status(0.5)
        assert status["step_seconds"] == 0.5 and status["slowest_rank"] == 1, status
        assert status["slowest_ratio"] > 1, status
    assert not (run / "hangs").exists()
    with Watch(run, processes, limit=0.5) as watch:
        with watch.paused():
            time.sleep(1.5)
        watch.at(7, Place.DATA)
        if processes.rank == 1:
            time.sleep(4)
        watch.at(7, Place.BACKWARD)
        processes.barrier()
"""


@pytest.mark.slow
@pytest.mark.dist
def test_who_is_late_is_told(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    done = subprocess.run(
        [*torchrun, tmp_path / "late.py", tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("process 1 is the last, at step 7 (data)") == 1, done.stderr
    told = [(tmp_path / "hangs" / f"rank-{rank}.txt").read_text() for rank in range(3)]
    assert [text.partition("\n")[0] for text in told] == [
        "step 7, backward",
        "step 7, data",
        "step 7, backward",
    ]
    assert all("late.py" in text for text in told)
