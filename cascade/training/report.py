"""Reports of a run: a progress bar for people, one JSON line a status for programs."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch
from rich.progress import TaskID

from cascade.config.machine import GPUS
from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.data.batch import Batch
from cascade.environment import peak_memory
from cascade.files import write_bytes
from cascade.model.precision import in_bf16
from cascade.progress import progress_bar, say
from cascade.training.distributed import Processes
from cascade.training.flops import training_flops
from cascade.training.losses import QUARTERS
from cascade.training.trackers import Tracker, open_trackers
from cascade.training.validation import Figures, Pictures

_WAITS: Final = 0.05  # of the time, waited for data: worth telling
LOG: Final = "log.jsonl"
"""The file of a run's statuses, in its folder."""


def read_log(path: Path) -> list[dict[str, float]]:
    """Read the statuses of a run so far; a last line cut short by a crash is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


class Report:
    """Shows and writes the statuses of one run; silent where `shown` is false.

    A status is the mean since the one before: `step`, `images` (positions of the stream seen),
    `loss`, one `loss/TERM` per term, `loss/t0` to `loss/t3` by quarters of the timesteps,
    `learning_rate`, `grad_norm`, and the speed (`Throughput`). The figures of a look stand in a
    line of their own, with its step.

    Args:
        run_dir: gets `log.jsonl`, and what the run's trackers keep there.
        start: the step that the run goes on after.
    """

    def __init__(
        self, stage: StageConfig, run: TrainConfig, run_dir: Path, start: int, shown: bool
    ) -> None:
        self._stage, self._run, self._run_dir = stage, run, run_dir
        self._path = run_dir / LOG
        self._start, self._shown = start, shown
        self._trackers: list[Tracker] = []
        self._progress = progress_bar()
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        """Start the bar; drop the statuses written after the checkpoint gone on from."""
        if self._shown:
            self._forget(self._start)
            self._trackers = open_trackers(self._stage, self._run, self._run_dir, self._start)
            self._progress.start()
            self._task = self._progress.add_task(
                self._stage.name, total=self._run.steps, completed=self._start, details=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the bar and the trackers."""
        if self._shown:
            self._progress.stop()
        for tracker in self._trackers:
            tracker.close(failed=error is not None)

    def advance(self) -> None:
        """Count one optimizer step."""
        if self._task is not None:
            self._progress.advance(self._task)

    def rewind(self, step: int) -> None:
        """Go on from an earlier step."""
        if self._task is not None:
            self._forget(step)
            self._progress.update(self._task, completed=step)
        for tracker in self._trackers:
            tracker.rewind(step)

    def _forget(self, step: int) -> None:
        """Drop the statuses after a step."""
        kept = [line for line in read_log(self._path) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_bytes(text.encode(), self._path)

    def status(self, values: Mapping[str, float]) -> None:
        """Show and append one status."""
        if self._task is None:
            return
        self._tell(values)
        terms = {
            name.removeprefix("loss/"): value
            for name, value in values.items()
            if name.startswith("loss") and name not in QUARTERS
        }
        shown = " ".join(f"{name} {value:.4f}" for name, value in terms.items())
        speed = f"{values['images_per_second']:.1f} images/s"
        if "mfu" in values:
            speed += f", MFU {values['mfu']:.0%}"
        if values.get("data_wait", 0.0) > _WAITS:
            speed += f", waiting for data {values['data_wait']:.0%}"
        self._progress.update(self._task, details=f"{shown}  {speed}")

    def figures(self, done: Mapping[str, int], figures: Figures) -> None:
        """Say and append the figures of a look, in a line of their own.

        Args:
            done: `step` and `images` so far.
        """
        if self._task is None or not figures:
            return
        step = done["step"]
        if step == self._start and self._has(step, figures):
            return  # by the run that had done this step, of the same weights
        self._tell({**done, **figures})
        said = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        say(f"Step {step}: {said}.")

    def pictures(self, step: int, pictures: Pictures) -> None:
        """Tell the trackers of pictures that were drawn at a step."""
        for name, picture in pictures.items():
            for tracker in self._trackers:
                tracker.picture(step, name, picture)

    def _has(self, step: int, figures: Figures) -> bool:
        """Return whether the log has these figures of a step."""
        return any(
            line["step"] == step and figures.keys() <= line.keys() for line in read_log(self._path)
        )

    def _tell(self, values: Mapping[str, float]) -> None:
        """Append a line, and tell the trackers what it holds."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**values, "time": time.time()}) + "\n")
        for tracker in self._trackers:
            tracker.status(int(values["step"]), values)


class Throughput:
    """Counts the rows worked on and the time spent on them, since the last status."""

    def __init__(self, stage: StageConfig, config: TrainConfig, processes: Processes) -> None:
        self._device, self._world = processes.device, processes.world_size
        self._peak = peak_rate(processes.device, in_bf16(config.precision, processes.device))
        self._row_flops: dict[str, int] = {}
        if self._peak is not None:
            self._row_flops["mfu"] = training_flops(stage)
            if config.gradient_checkpointing != "none":
                self._row_flops["hfu"] = training_flops(stage, config.gradient_checkpointing)
        self._clear()

    def add(self, batch: Batch) -> None:
        """Count one micro-batch of this process."""
        self._positions += batch.positions
        self._rows += len(batch.images)
        self._skipped += len(batch.skipped)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Note the time of what happens inside as waited for data; the device is not asked."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - since

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens inside: a checkpoint, pictures drawn on the way."""
        self._measure()
        try:
            yield
        finally:
            self._since = time.perf_counter()

    def status(self) -> dict[str, float]:
        """Return the figures since the last call, and begin anew.

        Returns:
            `images_per_second`, positions of the stream over all processes; `data_wait`, the share
            of the time that this process waited for batches; `skipped`, if there were any, its
            rows whose pictures were of no use; `peak_memory_gib` of its device since it began; and,
            where its peak is known and the run computes in bfloat16, `mfu`, the model FLOP/s
            utilization of that device (0 to 1; Chowdhery et al. 2022, appendix B), and of a run
            that recomputes `hfu`, which counts that as well.
        """
        self._measure()
        values = {
            "images_per_second": self._positions * self._world / self._seconds,
            "data_wait": self._waited / self._seconds,
        }
        for name, flops in self._row_flops.items():
            assert self._peak is not None, "operations are counted where there is a peak"
            values[name] = self._rows * flops / self._seconds / self._peak
        if self._skipped:
            values["skipped"] = self._skipped
        values["peak_memory_gib"] = peak_memory(self._device) / 2**30
        self._clear()
        return values

    def _measure(self) -> None:
        """Add the time since the clock was started, up to the end of what the device has to do."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._seconds += time.perf_counter() - self._since

    def _clear(self) -> None:
        self._positions = self._rows = self._skipped = 0
        self._seconds = self._waited = 0.0
        self._since = time.perf_counter()


def peak_rate(device: torch.device, bf16: bool) -> float | None:
    """Operations a second that a device can reach, or None where that is not known.

    In float32 the rate depends on which operations take TF32, so that none is given.
    """
    if device.type != "cuda" or not bf16:
        return None
    name = torch.cuda.get_device_name(device)
    return next((gpu.bf16 for gpu in GPUS.values() if gpu.device == name), None)
