"""GPUs that TensorRT plans are built for, their arithmetic, and the module that builds.

TensorRT for RTX compiles ahead of time for a list of compute capabilities and needs no GPU for it;
TensorRT tunes a plan on the GPU that it will run on. The capabilities are those of TensorRT for
RTX 1.7 (support matrix; `ComputeCapability`): data-centre GPUs such as SM90 are not among them.
"""

import importlib
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final, Literal, NamedTuple

import torch

from cascade.config.base import Frozen
from cascade.errors import UserError
from cascade_export.graph.numerics import Numerics

Kind = Literal["tensorrt", "tensorrt-rtx"]


class Flavor(NamedTuple):
    """In what the two runtimes differ.

    Attributes:
        oldest: version with weights from memory and, for RTX, their unloading.
        ahead_of_time: whether it builds without a GPU, for targets. Such plans hold their weights,
            which the runtime can take away and bring back; others are sent all of theirs.
    """

    package: str
    oldest: tuple[int, int]
    ahead_of_time: bool


FLAVORS: Final[dict[Kind, Flavor]] = {
    "tensorrt": Flavor("tensorrt", (10, 13), ahead_of_time=False),
    "tensorrt-rtx": Flavor("tensorrt_rtx", (1, 7), ahead_of_time=True),
}
_DRIVER = Path("/proc/driver/nvidia/version")
RTX_TARGETS = (75, 80, 86, 89, 120, 121)
DEFAULT_TARGETS = (80, 86, 89, 120)
"""What TensorRT for RTX builds for by itself: Turing must be asked for."""

_NEEDS: dict[str, int] = {"fp32": 75, "fp16": 75, "bf16": 80, "none": 75, "int8": 75, "fp8": 89}


class Gpu(Frozen):
    """A GPU as a tuned plan depends on it; capability and builder are said elsewhere.

    Attributes:
        driver: its version, or 'unknown' where the system does not tell.
        cuda: version of the runtime.
    """

    model: str
    driver: str
    cuda: str

    def __str__(self) -> str:
        """Describe it in a sentence."""
        return f"{self.model} (driver {self.driver}, CUDA {self.cuda})"


def this_gpu(device: torch.device | None = None) -> Gpu | None:
    """Return the GPU of a device, or None on a machine without one."""
    if not torch.cuda.is_available():
        return None
    told = _DRIVER.read_text(encoding="utf-8") if _DRIVER.is_file() else ""
    found = re.search(r"\d+\.\d+(\.\d+)?", told)
    return Gpu(
        model=torch.cuda.get_device_name(device),
        driver=found.group() if found else "unknown",
        cuda=torch.version.cuda or "unknown",
    )


def resolve_targets(kind: Kind, asked: Sequence[int], numerics: Numerics) -> tuple[int, ...]:
    """Return the compute capabilities to build for, all of which can run the plan.

    Args:
        asked: none is the kind's default.
    """
    targets = _of_rtx(asked) if FLAVORS[kind].ahead_of_time else _of_this_gpu(asked)
    for wanted in (numerics.precision, numerics.quantization):
        short = [target for target in targets if target < _NEEDS[wanted]]
        if short:
            raise UserError(
                f"sm{short[0]} cannot compute in {wanted}, which needs sm{_NEEDS[wanted]} or "
                "newer; leave that target out or take another precision."
            )
    return targets


def gpu_target(device: torch.device | None = None) -> int | None:
    """Return a GPU's compute capability, 89 for 8.9, or None on a machine without one."""
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def load_module(kind: Kind) -> ModuleType:
    """Import the package of a kind: both have the same interface where this project uses it."""
    name, oldest, _ = FLAVORS[kind]
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: the wheel without its shared library
        raise UserError(
            f"The package {name} cannot be loaded ({error}); install it: "
            f"pip install 'dreamcascade[{kind}]'."
        ) from None
    if tuple(int(part) for part in module.__version__.split(".")[:2]) < oldest:
        needed = ".".join(map(str, oldest))
        raise UserError(f"{name} {module.__version__} is too old; install {needed} or newer.")
    return module


def _of_this_gpu(asked: Sequence[int]) -> tuple[int, ...]:
    here = gpu_target()
    if here is None:
        raise UserError(
            "TensorRT tunes a plan on the GPU that will run it, and this machine has none; export "
            "there, or take --engine tensorrt-rtx."
        )
    other = [target for target in asked if target != here]
    if other:
        raise UserError(
            f"TensorRT builds for this machine's GPU, sm{here}, not for sm{other[0]}; leave "
            "--target out, or export on that GPU."
        )
    return (here,)


def _of_rtx(asked: Sequence[int]) -> tuple[int, ...]:
    unknown = [target for target in asked if target not in RTX_TARGETS]
    if unknown:
        known = ", ".join(f"sm{target}" for target in RTX_TARGETS)
        raise UserError(
            f"TensorRT for RTX does not build for sm{unknown[0]}; choose among {known}, or take "
            "--engine tensorrt on that GPU."
        )
    return tuple(sorted(set(asked))) or DEFAULT_TARGETS
