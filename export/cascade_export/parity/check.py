"""The gate: an engine must answer and draw as eager does, or the export does not finish.

Three networks are compared at every stage: eager in fp32 (the reference), the engine, and the
yardstick, which is eager in fp64 for an engine in fp32 and eager cast to the engine's precision
otherwise. Tensors are compared call by call; then each draws the same prompts from the same seeds
through all stages, every stage enlarging what the same network's stage before it has drawn. How
far the engine may depart follows from the yardstick (`cascade_export.parity.limits`).

Shapes: `B` pictures, `C H W` pixels in [-1, 1].
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from cascade.config.stage import SamplerConfig
from cascade.environment import environment
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade_export.graph.numerics import Precision, Quantization
from cascade_export.graph.precision import DEFAULT_ISLANDS, cast
from cascade_export.graph.probe import Figures, tensor_cases
from cascade_export.parity.compare import (
    Draw,
    Drawn,
    OnStep,
    TensorResult,
    TrajectoryResult,
    Trio,
    compare_pictures,
    compare_tensors,
)
from cascade_export.parity.divergence import Departure, first_departure

PROMPTS: Final = (
    "a photo of a dog on the beach",
    "a red backpack",
    "a cat in the snow, black and white",
    "",
)


_NO_NUMBERS: Final = "NaN or infinite numbers"


class Findings(Figures):
    """Everything that was compared: what `parity.json` holds.

    Attributes:
        engine: its kind, such as "onnxruntime".
        precision: what it computes in.
        quantisation: of its convolutions.
        executed: False where the engine cannot run on this machine and another has run the same
            graph in its place.
        environment: machine, versions, commit and date.
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
    departures: tuple[Departure, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every comparison passed."""
        tensors = all(result.passed for result in self.tensors)
        return tensors and all(result.passed for result in self.trajectories)


@dataclass(frozen=True)
class Pair:
    """The same pictures by eager in fp32 and by the engine, B C H W each."""

    eager: Tensor
    engine: Tensor


@dataclass(frozen=True)
class ParityReport:
    """What was found, and by stage the pictures in which to see it."""

    findings: Findings
    pictures: Mapping[str, Pair]

    @property
    def passed(self) -> bool:
        """Whether the engine may take the network's place."""
        return self.findings.passed

    def failures(self) -> list[str]:
        """Tell each comparison that failed in a few words."""
        tensors = [
            f"stage '{one.stage}', {one.case}: {_tensor_told(one)}"
            for one in self.findings.tensors
            if not one.passed
        ]
        drawn = [
            f"pictures of stage '{one.stage}': {_pictures_told(one)}"
            for one in self.findings.trajectories
            if not one.passed
        ]
        layers = [departure.sentence for departure in self.findings.departures]
        return tensors + drawn + layers

    def require(self) -> None:
        """Refuse an engine that departs too far.

        Raises:
            UserError: it does.
        """
        if not self.passed:
            told = "; ".join(self.failures())
            advice = (
                "export in fp32, or with --retry"
                if self.findings.quantisation == "none"
                else "export without --quantise, a fine-tune perhaps as a bundle of its own"
            )
            raise UserError(
                f"The {self.findings.engine} engine does not match eager in "
                f"{self.findings.precision} ({told}); {advice}."
            )


def _tensor_told(one: TensorResult) -> str:
    if not math.isfinite(one.engine.relative):
        return _NO_NUMBERS
    return f"{one.engine.relative:.2g} relative deviation, {one.limit:.2g} allowed"


def _pictures_told(one: TrajectoryResult) -> str:
    if not math.isfinite(one.engine.rms):
        return _NO_NUMBERS
    return (
        f"{one.engine.psnr:.1f} dB, {one.engine.differing:.2%} of 8-bit values differ, by up to "
        f"{one.engine.greatest} ({one.limit.psnr:.1f} dB, {one.limit.differing:.2%} and "
        f"{one.limit.greatest} allowed)"
    )


def check(
    cascade: Cascade,
    bundled: Cascade,
    precision: Precision,
    *,
    engine: str,
    quantisation: Quantization = "none",
    executed: bool = True,
    islands: Mapping[str, Sequence[str]] | None = None,
    graphs: Mapping[str, Path] | None = None,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] | None = None,
    samplers: Mapping[str, SamplerConfig] | None = None,
    batch_size: int = 2,
    on_step: OnStep | None = None,
) -> ParityReport:
    """Compare a bundle's engines with the cascade that they were exported from.

    Args:
        cascade: eager, in fp32.
        bundled: the same stages on engines.
        precision: the engines'.
        engine: their kind.
        quantisation: theirs; no layer is looked for in a quantised graph, where all depart.
        executed: whether they are the engines themselves, and not others in their place.
        islands: by stage, modules that were left in fp32 beside the default ones.
        graphs: by stage, the `graph.onnx` in which to look for the first layer that departs, where
            a stage's tensors fail; not for bf16, which ONNX Runtime has not on a CPU.
        prompts: drawn once each.
        seeds: one for each prompt; 0, 1, 2, ... by default.
        samplers: by stage, in place of the checkpoint's.
        batch_size: pictures drawn at once. The reference's predictions of a whole batch are held
            for all steps.
        on_step: told of the progress.
    """
    numbers = tuple(range(len(prompts)) if seeds is None else seeds)
    draw = Draw(tuple(prompts), numbers, batch_size, samplers or {})
    tensors: list[TensorResult] = []
    trajectories: list[TrajectoryResult] = []
    departures: list[Departure] = []
    pictures: dict[str, Pair] = {}
    drawn: Drawn | None = None
    # A plan of TensorRT's has one size of picture, and a largest batch.
    searched = graphs is not None and precision != "bf16" and quantisation == "none"
    dynamic = not (executed and engine.startswith("tensorrt"))
    for eager in cascade.stages:
        name = eager.config.name
        measure = yardstick(eager.network, precision, (islands or {}).get(name, ()))
        trio = Trio(eager, eager.with_network(measure), bundled.stage(name))
        table = cascade.prompts(draw.prompts, name)
        cases = list(tensor_cases(eager.config, table, draw.prompts, dynamic=dynamic))
        results = compare_tensors(trio, cases, precision, quantisation)
        tensors += results
        worst = max(range(len(cases)), key=lambda index: results[index].excess)
        if graphs is not None and searched and not results[worst].passed:
            found = first_departure(eager, measure, graphs[name], cases[worst], precision)
            departures += [found] if found is not None else []
        result, drawn = compare_pictures(trio, table, draw, drawn, precision, on_step, quantisation)
        trajectories.append(result)
        pictures[name] = Pair(drawn.eager, drawn.engine)
    findings = Findings(
        engine=engine,
        precision=precision,
        quantisation=quantisation,
        executed=executed,
        prompts=draw.prompts,
        seeds=numbers,
        environment=environment(),
        tensors=tuple(tensors),
        trajectories=tuple(trajectories),
        departures=tuple(departures),
    )
    return ParityReport(findings, pictures)


class _Double(nn.Module):
    """A network in fp64, called with fp32 tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).double()

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Tensor,
        low_res: Tensor | None = None,
        aug: Tensor | None = None,
    ) -> Tensor:
        low_res = None if low_res is None else low_res.double()
        out: Tensor = self.network(x.double(), t, text.double(), text_mask, low_res, aug)
        return out.float()


def yardstick(network: nn.Module, precision: Precision, islands: Sequence[str] = ()) -> nn.Module:
    """Eager in an engine's precision; for fp32 in fp64, beside which fp32 itself is measured.

    Args:
        network: in fp32; it stays as it is.
        precision: the engine's.
        islands: modules left in fp32 beside the default ones.
    """
    if precision == "fp32":
        return _Double(network).eval()
    return cast(network, precision, (*DEFAULT_ISLANDS, *islands))
