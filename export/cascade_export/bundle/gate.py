"""The gate of an export: which engines run it, what they draw, and where the report goes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field

from cascade.config.base import AtOnce, Frozen
from cascade.config.stage import SamplerConfig, Steps
from cascade.pipeline import Cascade
from cascade.text.cleaning import clean
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.manifest import Proof, Subject
from cascade_export.engines import engine_class
from cascade_export.engines.opening import runner
from cascade_export.graph.graph import GRAPH
from cascade_export.parity.check import PROMPTS, check
from cascade_export.parity.findings import ParityReport
from cascade_export.parity.report import write_report

OnPart = Callable[[str, int, int], None]
"""Called with (what is done, parts of it done, of how many)."""


def _readable(text: str) -> str:
    clean(text, "none")
    return text


Prompts = Annotated[tuple[Annotated[str, AfterValidator(_readable)], ...], Field(min_length=1)]
"""Texts that an encoder can read."""


class Gate(Frozen):
    """What the gate draws.

    Attributes:
        prompts: one picture of each.
        steps: of each stage's sampler, in place of the checkpoint's.
        command: what to type to make the report again.
    """

    prompts: Prompts = PROMPTS
    steps: Steps | None = None
    batch_size: AtOnce = 2
    device: str = "cpu"
    command: str = "cascade export"

    def samplers(self, cascade: Cascade) -> Mapping[str, SamplerConfig]:
        """Each stage's sampler, where it is not the checkpoint's."""
        if self.steps is None:
            return {}
        return {
            config.name: config.sampler.changed("the gate's settings", steps=self.steps)
            for config in cascade.configs
        }


def compare(
    cascade: Cascade,
    bundle: Bundle,
    subject: Subject | None,
    gate: Gate,
    folder: Path,
    on_part: OnPart | None = None,
) -> ParityReport:
    """Compare a bundle's engines with the cascade they come from, and write the report.

    Args:
        cascade: eager, in float32.
        subject: whose weights the engines serve; the bundle's own by default.

    Raises:
        UserError: an engine cannot be opened.
    """
    manifest = bundle.manifest
    kind = runner(manifest.engine, manifest.precision)
    device = gate.device if kind == manifest.engine else "cpu"
    engines = bundle.stages(subject, device, engine=kind)
    report = check(
        cascade,
        Cascade(manifest.cascade, cascade.encoder, engines),
        manifest.numerics,
        engine=manifest.engine,
        executed=kind == manifest.engine,
        # A plan has one size of picture, and a largest batch.
        dynamic=not engine_class(kind).runs_plans,
        islands={name: entry.islands for name, entry in manifest.stages.items()},
        graphs={name: bundle.stage_folder(name) / GRAPH for name in manifest.stages},
        prompts=gate.prompts,
        samplers=gate.samplers(cascade),
        batch_size=gate.batch_size,
        on_step=None if on_part is None else lambda name, *done: on_part(f"prove {name}", *done),
    )
    write_report(report, folder, gate.command)
    return report


def proof_of(report: ParityReport) -> Proof:
    """What a manifest says of a report."""
    findings = report.findings
    pictures = {one.stage: one.engine for one in findings.trajectories}
    return Proof(executed=findings.executed, pictures=pictures)
