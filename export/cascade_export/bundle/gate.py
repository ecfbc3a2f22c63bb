"""The parity gate of an export: which engines run it, and where the report goes."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Final

from cascade.config.stage import SamplerConfig
from cascade.environment import environment, usable_device
from cascade.pipeline import Cascade
from cascade.sampling import OnStep
from cascade.stage import Stage
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.manifest import BundleManifest, Proof, Subject
from cascade_export.engines import engine_class
from cascade_export.engines.base import Engine
from cascade_export.engines.opening import runner
from cascade_export.graph.graph import GRAPH
from cascade_export.parity.check import check
from cascade_export.parity.findings import ParityReport
from cascade_export.parity.kept import Kept
from cascade_export.parity.report import write_report
from cascade_export.parity.sampled import Sampling
from cascade_export.settings import Gate

_KEPT: Final = "compared"


def gate_device(gate: Gate, engine: type[Engine]) -> str:
    """Return where the gate runs an engine."""
    return engine.default_device() if gate.device is None else usable_device(gate.device)


def compare(
    cascade: Cascade,
    bundle: Bundle,
    subject: Subject | None,
    gate: Gate,
    folder: Path,
    on_step: OnStep | None = None,
) -> ParityReport:
    """Compare a bundle's engines with the cascade they come from, and write the report.

    A comparison that is cut short leaves the batches it has sampled beside the report, and goes on
    behind them.

    Args:
        cascade: eager, in float32.
        subject: whose weights the engines serve; the bundle's own by default.
    """
    manifest = bundle.manifest
    kind = runner(manifest.engine, manifest.precision)
    device = gate_device(gate, engine_class(kind)) if kind == manifest.engine else "cpu"
    engines = bundle.stages(subject, device, engine=kind)
    pairs = zip(cascade.stages, engines, strict=True)
    origins = {eager.config.name: _origin(eager, engine, manifest) for eager, engine in pairs}
    kept = Kept(folder / _KEPT, origins)
    report = check(
        cascade,
        Cascade(manifest.cascade, cascade.encoder, engines),
        manifest.numerics,
        Sampling(gate.prompts, gate.batch_size, _samplers(gate, cascade), kept),
        engine=manifest.engine,
        executed=kind == manifest.engine,
        # A plan has one size of image, and a largest batch.
        dynamic=not engine_class(kind).runs_plans,
        islands={name: entry.islands for name, entry in manifest.stages.items()},
        graphs={name: bundle.stage_folder(name) / GRAPH for name in manifest.stages},
        on_step=None if on_step is None else lambda name, *done: on_step(f"prove {name}", *done),
    )
    write_report(report, folder, gate.command)
    shutil.rmtree(kept.folder, ignore_errors=True)
    return report


def proof_of(report: ParityReport) -> Proof:
    """Summarize a report for a manifest."""
    findings = report.findings
    pictures = {one.stage: one.engine for one in findings.trajectories}
    return Proof(executed=findings.executed, pictures=pictures)


def _origin(eager: Stage, engine: Stage, manifest: BundleManifest) -> str:
    """Return all that the answers of a stage's three networks follow from."""
    runs = engine.denoiser.network
    assert isinstance(runs, Engine)
    name = eager.config.name
    machine = {key: value for key, value in environment().items() if key != "date"}
    values = [
        eager.fingerprint(),
        engine.fingerprint(),
        asdict(runs.info),
        manifest.numerics.model_dump(),
        manifest.stages[name].islands,
        machine,
    ]
    return json.dumps(values)


def _samplers(gate: Gate, cascade: Cascade) -> Mapping[str, SamplerConfig]:
    """Return each stage's sampler, where it is not the checkpoint's."""
    if gate.steps is None:
        return {}
    return {
        config.name: config.sampler.changed("the gate's settings", steps=gate.steps)
        for config in cascade.configs
    }
