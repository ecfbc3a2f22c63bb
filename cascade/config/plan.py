"""Settings that `cascade train --plan` reads of a run."""

from pydantic import Field

from cascade.config.base import Frozen
from cascade.config.machine import MachineConfig
from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig


class PlannedRun(Frozen):
    """What a plan needs of a run: neither data nor text."""

    stage: StageConfig = Field(description="what is trained")
    train: TrainConfig = Field(description="how long and how")
    machine: MachineConfig = Field(default=MachineConfig(), description="on what")
