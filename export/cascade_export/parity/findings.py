"""The result of a comparison of an engine with eager."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from cascade.errors import UserError
from cascade_export.graph.numerics import Precision, Quantization
from cascade_export.graph.probe import Figures
from cascade_export.parity.compare import TensorResult, TrajectoryResult
from cascade_export.parity.divergence import Divergence

_NO_NUMBERS: Final = "NaN or infinite numbers"


class Findings(Figures):
    """Everything that was compared: what `parity.json` holds.

    Attributes:
        executed: False where the engine cannot run on this machine and another has run the same
            graph in its place.
    """

    engine: str
    precision: Precision
    quantisation: Quantization = "none"
    executed: bool
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    environment: dict[str, str]
    tensors: tuple[TensorResult, ...]
    trajectories: tuple[TrajectoryResult, ...]
    departures: tuple[Divergence, ...] = ()  # as the files of old reports have it

    @property
    def passed(self) -> bool:
        """Return whether every comparison passed."""
        tensors = all(result.passed for result in self.tensors)
        return tensors and all(result.passed for result in self.trajectories)


@dataclass(frozen=True)
class Pair:
    """The same images by eager in fp32 and by the engine, B C H W each."""

    eager: Tensor
    engine: Tensor


@dataclass(frozen=True)
class ParityReport:
    """The findings, and by stage the images in which to see them."""

    findings: Findings
    pictures: Mapping[str, Pair]

    @property
    def passed(self) -> bool:
        """Return whether the engine may take the network's place."""
        return self.findings.passed

    def failures(self) -> list[str]:
        """Describe each comparison that failed."""
        tensors = [
            f"stage '{one.stage}', {one.case}: {_tensor_words(one)}"
            for one in self.findings.tensors
            if not one.passed
        ]
        images = [
            f"pictures of stage '{one.stage}': {_image_words(one)}"
            for one in self.findings.trajectories
            if not one.passed
        ]
        layers = [divergence.sentence for divergence in self.findings.departures]
        return tensors + images + layers

    def require(self) -> None:
        """Refuse an engine that diverges too far."""
        if not self.passed:
            failed = "; ".join(self.failures())
            advice = (
                "export in fp32, or with --retry"
                if self.findings.quantisation == "none"
                else "export without --quantize, a fine-tune perhaps as a bundle of its own"
            )
            raise UserError(
                f"The {self.findings.engine} engine does not match eager in "
                f"{self.findings.precision} ({failed}); {advice}."
            )


def _tensor_words(one: TensorResult) -> str:
    if not math.isfinite(one.engine.relative):
        return _NO_NUMBERS
    return f"{one.engine.relative:.2g} relative deviation, {one.limit:.2g} allowed"


def _image_words(one: TrajectoryResult) -> str:
    if not math.isfinite(one.engine.rms):
        return _NO_NUMBERS
    return (
        f"{one.engine.psnr:.1f} dB, {one.engine.differing:.2%} of 8-bit values differ, by up to "
        f"{one.engine.greatest} ({one.limit.psnr:.1f} dB, {one.limit.differing:.2%} and "
        f"{one.limit.greatest} allowed)"
    )
