"""What a run's speed is reckoned from."""

import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.data.stream import Samples
from cascade.environment import peak_memory
from cascade.training import report
from cascade.training.distributed import Processes
from cascade.training.flops import training_flops
from cascade.training.report import Throughput, peak_rate

CPU = torch.device("cpu")
TWO = Processes(0, 2, CPU)


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Stands in for the clock that speeds are measured by."""
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_images_a_second_leave_out_the_pauses(
    clock: Clock, samples: Samples, stage_config: StageConfig, train_config: TrainConfig
) -> None:
    speed = Throughput(stage_config, train_config, TWO)
    two_kinds = replace(samples.rows(range(6)), positions=3)  # DreamBooth: two rows a position
    for _ in range(4):
        with speed.waiting():
            clock.now += 0.2
        speed.add(two_kinds)
        clock.now += 0.3
    with speed.paused():
        clock.now += 1000
    clock.now += 1
    status = speed.status()
    assert status.keys() == {"images_per_second", "data_wait", "peak_memory_gib"}
    assert status["images_per_second"] == pytest.approx(3 * 4 * 2 / 3.0)
    assert status["data_wait"] == pytest.approx(0.8 / 3.0)
    clock.now += 2
    speed.add(two_kinds)
    status = speed.status()  # since the last one
    assert (status["images_per_second"], status["data_wait"]) == (3 * 2 / 2.0, 0)


def test_the_utilization_is_that_of_one_device(
    clock: Clock,
    samples: Samples,
    stage_config: StageConfig,
    train_config: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = training_flops(stage_config)
    monkeypatch.setattr(report, "peak_rate", lambda device, bf16: 8.0 * row)
    speed = Throughput(stage_config, train_config, TWO)
    speed.add(samples.rows(range(4)))
    clock.now += 2
    assert speed.status()["mfu"] == pytest.approx(4 / 2 / 8)


def test_memory_is_the_most_that_was_held_not_what_is_held_now() -> None:
    held = peak_memory(CPU)
    large = torch.ones(2**26)  # 256 MiB
    with_it = peak_memory(CPU)
    del large
    # The kernel counts pages of each processor in batches, and adds these up now and then.
    assert peak_memory(CPU) > with_it - 2**24
    assert with_it >= max(held, 2**28)


def test_memory_is_this_process_s_and_not_that_of_the_one_that_started_it() -> None:
    large = torch.ones(2**28)  # 1 GiB
    told = "import torch; from cascade.environment import peak_memory as peak; "
    told += "print(peak(torch.device('cpu')))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert 0 < int(done.stdout) < peak_memory(CPU) - 2**29  # torch itself is less than half of it
    del large


def test_no_peak_is_known_of_a_cpu_of_float32_and_of_unknown_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = torch.device("cuda", 0)
    assert peak_rate(CPU, bf16=True) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert peak_rate(cuda, bf16=True) == 989e12
    assert peak_rate(cuda, bf16=False) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 MIG 1g.18gb")
    assert peak_rate(cuda, bf16=True) is None
