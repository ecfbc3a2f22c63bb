"""Settings of the guard against steps that would ruin a run."""

from typing import Annotated, Final, Literal

from pydantic import Field

from cascade.config.base import Count, Frozen

LONGEST_WINDOW: Final = 1000
GuardAction = Literal["stop", "skip", "rollback"]


class GuardConfig(Frozen):
    """What is done about a gradient that is not finite, or far longer than those before it.

    By default the run stops when a gradient is not finite at a status or a checkpoint. With any
    other setting the host looks at every step's gradient before the step is taken, which lets it
    run ahead of a GPU no further, and keeps the batch in `incidents/`.
    """

    action: GuardAction = Field(
        default="stop",
        description="end the run, leave the step out (skip), or also go back to the newest "
        "checkpoint, if there is one, and leave out the pictures since (rollback; Chowdhery et al. "
        "2022, section 5.1)",
    )
    spike: Annotated[float, Field(strict=True, gt=1.0, le=1e6)] | None = Field(
        default=None,
        description="a norm so many times the median of the latest ones is an incident too; none "
        "if left out",
    )
    window: Annotated[int, Field(strict=True, ge=1, le=LONGEST_WINDOW)] = Field(
        default=100, description="norms of which the median is taken"
    )
    most: Count = Field(
        default=3, description="incidents between two checkpoints; one more ends the run"
    )

    @property
    def is_active(self) -> bool:
        """Whether every step is looked at before it is taken."""
        return self.action != "stop" or self.spike is not None
