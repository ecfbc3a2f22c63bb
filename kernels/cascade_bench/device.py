"""The device under the benchmark: its versions, its present state, its ceilings."""

import hashlib
import os
import shutil
import statistics
import subprocess
from collections.abc import Callable

import torch

from cascade.training.report import peak_rate
from cascade_bench.records import Peaks
from cascade_bench.timing import ClockStopwatch, EventStopwatch, Stopwatch
from cascade_kernels.dispatch import architecture, table

_STATE = (
    "clocks.sm",
    "clocks.mem",
    "power.draw",
    "temperature.gpu",
    "clocks_event_reasons.active",
)
_UNKNOWN = "not readable"
_COPY_BYTES = 2**30  # far more than any cache holds
_MATMUL = 8192
_READINGS = 20


def facts(device: torch.device) -> dict[str, str]:
    """Return the version of everything that makes or runs a kernel, and who else is running."""
    found = {"load average": f"{os.getloadavg()[0]:.1f}"}
    if device.type == "cuda":
        found["architecture"] = architecture(device)
        found["launches"] = _digest(device)
        found["cuda"] = str(torch.version.cuda or torch.version.hip)
        found["cudnn"] = str(torch.backends.cudnn.version())
        found["driver"] = _query("driver_version")
    return found


def state(device: torch.device) -> str:
    """Return clocks, power, temperature and what holds the clocks down, as the driver tells it."""
    if device.type != "cuda":
        return _UNKNOWN
    return _query(",".join(_STATE))


def peaks(device: torch.device) -> Peaks:
    """Measure the ceilings: a large copy, and a large product of N(0, 1) matrices in bf16."""
    on_gpu = device.type == "cuda"
    size = _COPY_BYTES if on_gpu else 2**22
    source = torch.randint(-128, 128, (size,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copy = _median(lambda: target.copy_(source), device)
    side = _MATMUL if on_gpu else 128
    a, b = torch.randn(2, side, side, dtype=torch.bfloat16, device=device)
    product = _median(lambda: a @ b, device)
    return Peaks(
        copy_bandwidth=2e6 * size / copy,
        matmul_rate=2e6 * side**3 / product,
        nominal_rate=peak_rate(device, bf16=True),
    )


def _median(run: Callable[[], object], device: torch.device) -> float:
    watch: Stopwatch = (
        EventStopwatch(run, flush=lambda: None) if device.type == "cuda" else ClockStopwatch(run)
    )
    for _ in range(3):
        run()
    return statistics.median(watch.warm() for _ in range(_READINGS))


def _query(fields: str) -> str:
    """Query `nvidia-smi` about the current device."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return _UNKNOWN
    command = [program, f"--query-gpu={fields}", "--format=csv,noheader"]
    # The device's number would be another one under CUDA_VISIBLE_DEVICES.
    command.append(f"--id=GPU-{torch.cuda.get_device_properties().uuid}")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else _UNKNOWN


def _digest(device: torch.device) -> str:
    """Hash the launch configurations: results of other ones are no part of the same run."""
    held = repr(sorted(table(device).launches.items()))
    return hashlib.sha256(held.encode()).hexdigest()[:12]
