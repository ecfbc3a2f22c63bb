"""GPUs by name, and the machines that `cascade train --plan` reckons with."""

from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from pydantic import Field

from cascade.config.base import Frozen, Share

GpuName = Literal[
    "a100-40gb",
    "a100-40gb-pcie",
    "a100-80gb",
    "a100-80gb-pcie",
    "b200",
    "h100",
    "h100-pcie",
    "h200",
    "l4",
    "l40s",
    "rtx3090",
    "rtx4090",
]


class Gpu(NamedTuple):
    """A GPU, from its maker's data sheet.

    Attributes:
        memory: GiB; what the driver keeps of it is part of a plan's workspace.
        bf16: dense operations a second, accumulated in float32.
        tf32: the same of float32 in tensor cores.
        bandwidth: of its memory, bytes a second.
        link: to the other GPUs of a node, one way, bytes a second: NVLink, or else PCIe.
        host: to the machine's memory, one way, bytes a second: PCIe.
        device: name that the driver gives it, whole: a slice of a GPU has another peak.
    """

    memory: int
    bf16: float
    tf32: float
    bandwidth: float
    link: float
    host: float
    device: str


_GEN4, _GEN5 = 32e9, 64e9  # PCIe, 16 lanes
GPUS: Final[dict[GpuName, Gpu]] = {
    "a100-40gb": Gpu(40, 312e12, 156e12, 1.555e12, 300e9, _GEN4, "NVIDIA A100-SXM4-40GB"),
    "a100-40gb-pcie": Gpu(40, 312e12, 156e12, 1.555e12, _GEN4, _GEN4, "NVIDIA A100-PCIE-40GB"),
    "a100-80gb": Gpu(80, 312e12, 156e12, 2.039e12, 300e9, _GEN4, "NVIDIA A100-SXM4-80GB"),
    "a100-80gb-pcie": Gpu(80, 312e12, 156e12, 1.935e12, _GEN4, _GEN4, "NVIDIA A100 80GB PCIe"),
    "b200": Gpu(180, 2250e12, 1125e12, 8e12, 900e9, _GEN5, "NVIDIA B200"),
    "h100": Gpu(80, 989e12, 494e12, 3.35e12, 450e9, _GEN5, "NVIDIA H100 80GB HBM3"),
    "h100-pcie": Gpu(80, 756e12, 378e12, 2e12, _GEN5, _GEN5, "NVIDIA H100 PCIe"),
    "h200": Gpu(141, 989e12, 494e12, 4.8e12, 450e9, _GEN5, "NVIDIA H200"),
    "l4": Gpu(24, 121e12, 60e12, 300e9, _GEN4, _GEN4, "NVIDIA L4"),
    "l40s": Gpu(48, 362e12, 183e12, 864e9, _GEN4, _GEN4, "NVIDIA L40S"),
    "rtx3090": Gpu(24, 71e12, 35.6e12, 936e9, _GEN4, _GEN4, "NVIDIA GeForce RTX 3090"),
    "rtx4090": Gpu(24, 165e12, 82.6e12, 1.008e12, _GEN4, _GEN4, "NVIDIA GeForce RTX 4090"),
}
"""GPUs by the name that a plan takes."""

MOST_GPUS: Final = 4096

_Gpus = Annotated[int, Field(strict=True, gt=0, le=MOST_GPUS)]
_Rate = Annotated[float, Field(strict=True, gt=0.0, le=1e5)]


class MachineConfig(Frozen):
    """The machines of a planned run. What is not from the GPU's data sheet is assumed."""

    gpus: _Gpus = Field(default=8, description="GPUs in all, a process on each")
    gpu: GpuName = Field(default="h200", description="which GPU")
    gpus_per_node: _Gpus = Field(
        default=8, description="GPUs of a machine, that NVLink or PCIe connects"
    )
    utilization: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = Field(
        default=0.35, description="share of the GPU's peak that a step's operations reach"
    )
    log: Path | None = Field(
        default=None, description="log.jsonl of a run whose utilization is taken instead"
    )
    workspace: Share = Field(
        default=0.1,
        description="share of a GPU's memory for CUDA, NCCL, convolutions' workspaces and what "
        "the allocator loses",
    )
    network: _Rate = Field(
        default=400.0, description="network between machines, of each GPU, Gbit a second"
    )
    disk: _Rate = Field(
        default=5.0, description="writing of checkpoints, all processes together, GB a second"
    )
