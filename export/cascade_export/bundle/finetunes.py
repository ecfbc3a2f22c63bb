"""Fine-tunes in a bundle: other weights for the same graphs."""

import re
from pathlib import Path

from cascade.config.base import NAME
from cascade.config.folders import read_stage_config
from cascade.errors import UserError
from cascade.files import new_folder
from cascade.pipeline import Cascade
from cascade.sampling import OnStep
from cascade.stage import Stage
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.gate import compare, proof_of
from cascade_export.bundle.lock import writing
from cascade_export.bundle.manifest import (
    ABOUT,
    Proof,
    Subject,
    SubjectStage,
    Weights,
    describe_weights,
    write_sealed,
)
from cascade_export.bundle.write import text_identity
from cascade_export.engines import engine_class
from cascade_export.graph.graph import GRAPH, Graph
from cascade_export.graph.weights import write_weights
from cascade_export.settings import Gate


def add_subject(
    bundle: Bundle, cascade: Cascade, name: str, gate: Gate, on_step: OnStep | None = None
) -> Subject:
    """Add a fine-tune of the exported cascade to a bundle.

    Stages that it has left as they were take no room. The gate compares the engines, with the
    fine-tune's weights in them, with the fine-tune; its report lies in the subject's folder.

    Args:
        cascade: the fine-tune, in float32 on the CPU.

    Raises:
        UserError: the name is taken or unusable, the cascade is of another architecture or reads
            another text encoder, another export writes into the bundle, or the engines do not
            sample what it samples.
    """
    check_subject_name(bundle, name)
    _check_fits(bundle, cascade)
    with writing(bundle.folder):
        check_subject_name(bundle, name)  # another export may just have ended
        return _add(bundle, cascade, name, gate, on_step)


def _add(
    bundle: Bundle, cascade: Cascade, name: str, gate: Gate, on_step: OnStep | None
) -> Subject:
    folder = subject_folder(bundle, name)
    with new_folder(folder):
        stages = {
            stage.config.name: SubjectStage(
                config=stage.config, weights=_write(bundle, stage, folder, on_step)
            )
            for stage in cascade.stages
        }
    moved = {
        "stages": bundle.manifest.cascade.stages,
        "text_encoder": bundle.manifest.cascade.text_encoder,
    }
    subject = Subject(
        name=name,
        cascade=cascade.manifest.model_copy(update=moved),
        stages=stages,
        proof=Proof(executed=False, pictures={}),
    )
    engine = engine_class(bundle.manifest.engine)
    for files in bundle.files(subject) if engine.runs_plans else ():
        engine.prepare(files)
    report = compare(cascade, bundle, subject, gate, folder / "report", on_step)
    report.require()
    proven = subject.model_copy(update={"proof": proof_of(report)})
    write_sealed(proven, folder / ABOUT)
    return proven


def subject_folder(bundle: Bundle, name: str) -> Path:
    """Return the folder of a subject's weights and report."""
    return bundle.folder / "subjects" / name


def _write(bundle: Bundle, stage: Stage, folder: Path, on_step: OnStep | None) -> Weights:
    """Write a stage's weights for the bundle's graph, if they are not the bundle's own."""
    name = stage.config.name
    graph = Graph.open(bundle.stage_folder(name) / GRAPH)
    path = folder / f"{name}.safetensors"
    sha256 = write_weights(stage.network.state_dict(), path, graph)
    if on_step is not None:
        on_step(f"write {name}", 1, 1)
    own = bundle.manifest.stages[name].weights
    if sha256 == own.sha256:
        path.unlink()
        return own
    return describe_weights(bundle.folder, path, sha256)


def check_subject_name(bundle: Bundle, name: object) -> None:
    """Refuse a name that is no component of a path, or is taken."""
    if not isinstance(name, str) or not re.fullmatch(NAME, name) or len(name) > 100:
        raise UserError(
            f"{name!r} is no name for a subject; use at most 100 letters, digits, '-' and '_'."
        )
    if name in bundle.subjects():
        raise UserError(
            f"{bundle.folder} has a subject '{name}' already; choose another name, or delete "
            f"{subject_folder(bundle, name)} first."
        )


def _check_fits(bundle: Bundle, cascade: Cascade) -> None:
    manifest = bundle.manifest
    own, others = list(manifest.stages), [stage.config.name for stage in cascade.stages]
    if own != others:
        raise UserError(
            f"{bundle.folder} has the stages {', '.join(own)} and the cascade {', '.join(others)}; "
            "a bundle takes fine-tunes of the cascade that it was made from."
        )
    for stage in cascade.stages:
        name = stage.config.name
        if stage.config.unet != read_stage_config(bundle.stage_folder(name)).unet:
            raise UserError(
                f"Stage '{name}' is not of the architecture that {bundle.folder} was exported "
                "from; export the cascade as a bundle of its own."
            )
    if text_identity(cascade.encoder) != (manifest.text.model, manifest.text.tokenizer):
        raise UserError(
            f"The cascade reads another text encoder than {bundle.folder} holds; export it as a "
            "bundle of its own."
        )
