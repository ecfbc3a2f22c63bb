"""A guard against steps that would ruin a run: gradients that are not finite, or far too long.

Shapes: `B` rows of a micro-batch, `W` norms of the window.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from cascade.config.guard import LONGEST_WINDOW, GuardConfig
from cascade.data.batch import Batch
from cascade.data.images import grid, to_pil, write_png
from cascade.errors import UserError
from cascade.files import write_json
from cascade.progress import warn
from cascade.training.distributed import Processes
from cascade.training.state import Progress

INCIDENTS: Final = "incidents"
"""In a run's folder: the batches of steps that were not taken."""
_COLUMNS: Final = 8


@dataclass(frozen=True)
class _Part:
    """One of this process's micro-batches in the step under way, with the losses of its rows."""

    positions: range
    batch: Batch
    losses: Mapping[str, Tensor]

    def rows(self) -> list[dict[str, Any]]:
        """Tell everything about the rows but their pictures."""
        batch, losses = self.batch, {name: loss.tolist() for name, loss in self.losses.items()}
        return [
            {
                "position": self.positions[row % len(self.positions)],
                "prompt": prompt,
                "seed": batch.seeds[row],
                "term": batch.terms[row],
                "weight": float(batch.weights[row]),
                "losses": {name: values[row] for name, values in losses.items()},
            }
            for row, prompt in enumerate(batch.prompts)
        ]


class Guard:
    """Looks at each step's gradient before the step is taken; see `GuardConfig`.

    The norm is the same in every process, and so is what each of them decides.

    Attributes:
        kept: what is part of a checkpoint: the latest norms, NaN where there were fewer; as many
            as any window takes, so that a run goes on with another guard.
    """

    def __init__(self, config: GuardConfig, run_dir: Path, processes: Processes) -> None:
        self.kept: dict[str, Tensor] = {"norms": torch.full((LONGEST_WINDOW,), math.nan)}
        self._config, self._run_dir, self._processes = config, run_dir, processes
        self._parts: list[_Part] = []
        self._incidents = 0

    @property
    def rolls_back(self) -> bool:
        """Whether the run goes back to a checkpoint after an incident."""
        return self._config.action == "rollback"

    def note(self, positions: range, batch: Batch, losses: Mapping[str, Tensor]) -> None:
        """Keep one of the step's micro-batches until its gradient is known.

        Args:
            positions: of its rows in the stream.
            losses: of its rows, B, by name.
        """
        if self._config.is_active:
            detached = {name: loss.detach() for name, loss in losses.items()}
            self._parts.append(_Part(positions, batch, detached))

    def accepts(self, norm: Tensor, progress: Progress) -> bool:
        """Return whether a step is to be taken, given its gradient's norm.

        Args:
            progress: before the step.

        Raises:
            UserError: it is not, and the run ends.
        """
        if not self._config.is_active:
            return True
        value, median = float(norm), float(self.kept["norms"][-self._config.window :].median())
        spike = self._config.spike
        # Until the window is full the median is NaN, and no number is above it.
        sound = math.isfinite(value) and not (spike is not None and value > spike * median)
        if sound:
            self.kept["norms"].copy_(self.kept["norms"].roll(-1))
            self.kept["norms"][-1] = value
        else:
            self._report(value, median, progress)
        self._parts.clear()
        return sound

    def saved(self) -> None:
        """Count incidents anew: a checkpoint was written."""
        self._incidents = 0

    def _report(self, value: float, median: float, progress: Progress) -> None:
        step, self._incidents = progress.step + 1, self._incidents + 1
        place = self._run_dir / INCIDENTS / f"step-{step:06d}-images-{progress.images}"
        self._write(place, {**progress._asdict(), "grad_norm": value, "median": median})
        told = f"The gradient's norm is {value:.3g} at step {step} (the median of the latest is "
        told += f"{median:.3g}); its batch is in {place}"
        if self._config.action == "stop" or self._incidents > self._config.most:
            raise UserError(
                f"{told}; look at it, lower the learning rate or train in fp32, and start again "
                "from the newest checkpoint."
            )
        if self._processes.is_main:
            back = " and the run goes back to its newest checkpoint" if self.rolls_back else ""
            warn(f"{told}, which is left out{back}.")

    def _write(self, place: Path, incident: dict[str, object]) -> None:
        """Write the batch: each process the rows that it worked on."""
        name = f"rank-{self._processes.rank}"
        rows = [row for part in self._parts for row in part.rows()]
        write_json({**incident, "rows": rows}, place / f"{name}.json")
        batches = [part.batch for part in self._parts]
        shown = {name: [batch.images for batch in batches]}
        if batches[0].low_res is not None:
            shown[f"{name}-low"] = [b.low_res for b in batches if b.low_res is not None]
        for label, pictures in shown.items():
            drawn = to_pil(torch.cat([one.cpu() for one in pictures]))
            write_png(grid(drawn, min(len(drawn), _COLUMNS)), place / f"{label}.png")
