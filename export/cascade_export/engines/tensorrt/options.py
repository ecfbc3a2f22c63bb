"""Settings of TensorRT plans; imports no torch."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from cascade.config.base import AtOnce, Frozen


class PlanOptions(Frozen):
    """For which batches plans are built, and how long those that nothing refers to are kept."""

    max_batch: AtOnce = Field(4, description="most images at a time of a TensorRT plan")
    usual_batch: AtOnce = Field(
        1, description="images at a time for which a TensorRT plan is tuned"
    )
    plan_days: Annotated[int, Field(strict=True, gt=0, le=10**5)] = Field(
        30,
        description="days without use after which a TensorRT plan of no bundle and no fine-tune is "
        "removed",
    )
    plan_gib: Annotated[int, Field(strict=True, gt=0, le=10**6)] = Field(
        64, description="GiB of TensorRT plans in a bundle above which such plans go earlier"
    )

    @model_validator(mode="after")
    def _usual_is_possible(self) -> Self:
        if self.usual_batch > self.max_batch:
            raise ValueError(
                f"usual_batch is {self.usual_batch} and max_batch {self.max_batch}; a plan is "
                "tuned for a batch that it takes"
            )
        return self
