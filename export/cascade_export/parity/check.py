"""The gate: an engine must answer and sample as eager does, or the export does not finish.

Three networks are compared at every stage: eager in fp32 (the reference), the engine, and, where
the engine is not within the floor, the baseline: eager in fp64 for an engine in fp32, and eager
cast to the engine's precision otherwise. Tensors are compared call by call; then each samples the
same prompts from the same seeds through all stages, every stage on what the same network's stage
before it has sampled. How far the engine may deviate follows from the baseline (`.limits`).

Shapes: `B` images, `C H W` pixels in [-1, 1].
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cascade.environment import environment
from cascade.pipeline import Cascade
from cascade.sampling import OnStep
from cascade.stage import Stage
from cascade_export.graph.graph import feeds
from cascade_export.graph.numerics import Numerics, Precision
from cascade_export.graph.precision import DEFAULT_ISLANDS, cast
from cascade_export.graph.probe import Case, tensor_cases
from cascade_export.parity.compare import (
    TensorResult,
    TrajectoryResult,
    compare_pictures,
    compare_tensors,
)
from cascade_export.parity.divergence import Divergence, first_divergence
from cascade_export.parity.findings import Findings, Pair, ParityReport
from cascade_export.parity.sampled import Networks, Sampling, Trajectory


def check(
    cascade: Cascade,
    bundled: Cascade,
    numerics: Numerics,
    sampling: Sampling,
    *,
    engine: str,
    executed: bool = True,
    dynamic: bool = True,
    islands: Mapping[str, Sequence[str]] | None = None,
    graphs: Mapping[str, Path] | None = None,
    on_step: OnStep | None = None,
) -> ParityReport:
    """Compare a bundle's engines with the cascade that they were exported from.

    Args:
        executed: whether they are the engines themselves, and not others in their place.
        dynamic: whether they take any batch and side.
        graphs: by stage, the `graph.onnx` in which to look for the first layer that diverges, where
            a stage's tensors fail.
    """
    tensors: list[TensorResult] = []
    trajectories: list[TrajectoryResult] = []
    divergences: list[Divergence] = []
    pictures: dict[str, Pair] = {}
    below: Trajectory | None = None
    for eager in cascade.stages:
        name = eager.config.name
        measure = partial(_baseline_stage, eager, numerics, (islands or {}).get(name, ()))
        networks = Networks(eager, bundled.stage(name), measure)
        table = cascade.prompts(sampling.prompts, name)
        cases = list(tensor_cases(eager.config, table, sampling.prompts, dynamic=dynamic))
        results = compare_tensors(networks, cases, numerics)
        tensors += results
        divergences += _divergence(networks, cases, results, numerics, (graphs or {}).get(name))
        below = Trajectory(networks, table, sampling, below, on_step)
        trajectories.append(compare_pictures(below, numerics))
        pictures[name] = Pair(below.eager, below.engine.images)
    findings = Findings(
        engine=engine,
        precision=numerics.precision,
        quantisation=numerics.quantization,
        executed=executed,
        prompts=tuple(sampling.prompts),
        seeds=tuple(sampling.seeds),
        environment=environment(),
        tensors=tuple(tensors),
        trajectories=tuple(trajectories),
        departures=tuple(divergences),
    )
    return ParityReport(findings, pictures)


def _divergence(
    networks: Networks,
    cases: Sequence[Case],
    results: Sequence[TensorResult],
    numerics: Numerics,
    graph: Path | None,
) -> list[Divergence]:
    """Find the layer at fault, where the worst case fails.

    Not for bf16, which ONNX Runtime has not on a CPU, nor in quantized graphs, where all diverge.
    """
    worst = max(range(len(cases)), key=lambda index: results[index].excess)
    searched = numerics.precision != "bf16" and numerics.quantization == "none"
    if graph is None or not searched or results[worst].passed:
        return []
    found = first_divergence(
        networks.eager, networks.baseline().network, graph, cases[worst], numerics
    )
    return [] if found is None else [found]


class _Double(nn.Module):
    """A network in fp64, called with fp32 tensors."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).double()

    def forward(self, *positional: Any, **named: Any) -> Tensor:
        call = feeds(*positional, **named)
        wide = {name: call[name].double() for name in ("x", "text", "low_res") if name in call}
        out: Tensor = self.network(**(call | wide))
        return out.float()


def baseline(network: nn.Module, precision: Precision, islands: Sequence[str] = ()) -> nn.Module:
    """Return eager in an engine's precision; for fp32 in fp64, beside which fp32 is measured."""
    if precision == "fp32":
        return _Double(network).eval()
    return cast(network, precision, (*DEFAULT_ISLANDS, *islands))


def _baseline_stage(eager: Stage, numerics: Numerics, islands: Sequence[str]) -> Stage:
    return eager.with_network(baseline(eager.network, numerics.precision, islands))
