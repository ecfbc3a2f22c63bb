"""Settings of `cascade info --memory`."""

from pydantic import Field

from cascade.config.base import Frozen, Rows, Side
from cascade.config.optimizer import OptimizerName
from cascade.config.stage import Precision


class MemoryConfig(Frozen):
    """A batch and its arithmetic, whose memory is told."""

    batch_size: Rows = Field(default=1, description="pictures worked on at once")
    size: Side | None = Field(
        default=None,
        description="side of the pictures; if left out the stage's, or that of its training crops",
    )
    precision: Precision = Field(
        default="fp32", description="of the arithmetic; weights stay in float32"
    )
    optimizer: OptimizerName = Field(default="adamw", description="of the fine-tuning")
