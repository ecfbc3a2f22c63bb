"""Where a run is told beside its own log."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from cascade.config.base import Frozen

TrackerName = Literal["tensorboard", "wandb"]
WandbMode = Literal["online", "offline"]

Trackers = Annotated[
    tuple[TrackerName, ...],
    Field(description="who is told each status and each validation picture, beside log.jsonl"),
]
LoggingDir = Annotated[
    Path,
    Field(
        description="folder of TensorBoard's files, in the run's own unless it is absolute; each "
        "stage has one of its name in it"
    ),
]


class WandbConfig(Frozen):
    """A run of Weights & Biases."""

    project: str = Field(default="dreamcascade", min_length=1, description="that the run is in")
    name: str | None = Field(
        default=None, min_length=1, description="of the run; the stage's if left out"
    )
    mode: WandbMode | None = Field(
        default=None,
        description="offline keeps the run in its folder, for 'wandb sync'; the environment's "
        "WANDB_MODE, else online, if left out",
    )
