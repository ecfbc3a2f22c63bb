"""What a run tells: a progress bar for people, one JSON line a status for programs."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.progress import TaskID

from cascade.files import write_bytes
from cascade.progress import progress_bar


def read_log(path: Path) -> list[dict[str, float]]:
    """The statuses of a run so far; a last line cut short by a crash is left out."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]


class Report:
    """Shows and writes the statuses of one run; silent where `shown` is false.

    A status is the mean since the one before: `step`, `images` (positions of the stream seen),
    `loss`, one `loss/TERM` per term, `learning_rate`, `grad_norm`, and the speed (`Throughput`).
    """

    def __init__(self, name: str, path: Path, start: int, steps: int, shown: bool) -> None:
        self._path = path
        self._shown = shown
        self._start, self._steps = start, steps
        self._name = name
        self._progress = progress_bar()
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        """Start the bar; drop the statuses written after the checkpoint gone on from."""
        if self._shown:
            kept = [line for line in read_log(self._path) if line["step"] <= self._start]
            text = "".join(json.dumps(line) + "\n" for line in kept)
            write_bytes(text.encode(), self._path)
            self._progress.start()
            self._task = self._progress.add_task(
                self._name, total=self._steps, completed=self._start, details=""
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the bar."""
        if self._shown:
            self._progress.stop()

    def advance(self) -> None:
        """Count one optimizer step."""
        if self._task is not None:
            self._progress.advance(self._task)

    def status(self, values: Mapping[str, float]) -> None:
        """Show and append one status."""
        if self._task is None:
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**values, "time": time.time()}) + "\n")
        terms = {k.removeprefix("loss/"): v for k, v in values.items() if k.startswith("loss")}
        shown = " ".join(f"{name} {value:.4f}" for name, value in terms.items())
        speed = f"{values['images_per_second']:.1f} images/s"
        if "peak_share" in values:
            speed += f", {values['peak_share']:.0%} of the peak"
        self._progress.update(self._task, details=f"{shown}  {speed}")
