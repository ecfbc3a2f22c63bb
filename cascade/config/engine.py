"""Settings of an exported cascade's engines; none of them changes what an image shows."""

from typing import Annotated

from pydantic import Field

from cascade.config.base import MOST_THREADS, Frozen, Name


class EngineOptions(Frozen):
    """Settings of one engine on this machine."""

    threads: Annotated[int | None, Field(strict=True, gt=0, le=MOST_THREADS)] = Field(
        None,
        description="of each stage on the CPU. ONNX Runtime's default is the machine's cores, "
        "whatever OMP_NUM_THREADS and taskset say; PyTorch's are the process's: set "
        "OMP_NUM_THREADS",
    )
    spinning: Annotated[bool, Field(strict=True)] = Field(
        True,
        description="whether ONNX Runtime's idle threads wait busily, which answers some 10 % "
        "sooner and takes the cores from everybody else",
    )
    compiled: Annotated[bool, Field(strict=True)] = Field(
        False, description="compile the networks of engine torch"
    )


class BundleOptions(EngineOptions):
    """A fine-tune of a bundle, the engine that runs it, and that engine's settings."""

    subject: Name | None = Field(None, description="one of the bundle's fine-tunes")
    engine: Name | None = Field(None, description="run its graphs on another engine than its own")
    max_memory: Annotated[int | None, Field(strict=True, gt=0, le=10**9)] = Field(
        None,
        description="MB for the stages' weights; those of stages that wait leave, batch by batch",
    )
