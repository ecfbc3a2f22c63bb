"""How the processes of a run share its network."""

from typing import Literal, Self

from pydantic import Field, model_validator

from cascade.config.base import Count, Frozen, Positive

Strategy = Literal["ddp", "fsdp", "hsdp"]


class ParallelConfig(Frozen):
    """How the processes of a run share its network; torchrun says how many there are."""

    strategy: Strategy = Field(
        default="ddp",
        description="each process holds the whole network (ddp) or a share of its weights, "
        "gradients, moments and averages (fsdp); hsdp shares within groups that are copies of each "
        "other",
    )
    replicas: Count | None = Field(
        default=None, description="groups of hsdp; one on each machine if left out"
    )
    reshard_after_forward: bool = Field(
        default=True,
        description="free a block's gathered weights between its forward and its backward pass; "
        "kept they cost memory and save a gathering",
    )
    offload: bool = Field(
        default=False,
        description="keep shared weights, gradients and moments in the machines' memory and take "
        "the optimizer's step there",
    )
    offload_averages: bool = Field(
        default=False, description="keep the averages in the machines' memory"
    )
    timeout_minutes: Positive = Field(
        default=10.0, description="a process that waits longer for the others' gradients ends"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.replicas is not None and self.strategy != "hsdp":
            raise ValueError(f"replicas are of hsdp and strategy is {self.strategy}; leave one out")
        if self.offload and self.strategy == "ddp":
            raise ValueError("offload needs shared weights; take strategy fsdp or hsdp")
        return self
