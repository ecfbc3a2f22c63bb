"""From a cascade to a bundle: graphs, weights, text encoder, plans, and the gate before the end.

Everything that can be refused is refused before the first graph is traced. `bundle.json` comes
last, so a folder with it is whole and has passed the gate.
"""

from functools import cache, partial
from pathlib import Path
from typing import Final

from cascade.errors import UserError
from cascade.files import copy_file
from cascade.formats.weights import write_encoder
from cascade.pipeline import Cascade
from cascade.sampling import OnStep
from cascade.text.encoder import TextEncoder
from cascade.text.prompts import PromptEncoder
from cascade.text.store import EmbeddingStore
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.gate import compare, proof_of
from cascade_export.bundle.lock import writing
from cascade_export.bundle.manifest import BUNDLE, BundleManifest, TextEntry, write_sealed
from cascade_export.bundle.requirements import exporter_versions, require_export, require_output
from cascade_export.bundle.stages import CONFIG, StageWriter
from cascade_export.engines import engine_class
from cascade_export.graph.graph import GRAPH
from cascade_export.graph.precision import check_cast
from cascade_export.graph.quantize import calibration_inputs
from cascade_export.graph.trace import export_text_encoder
from cascade_export.graph.weights import WEIGHTS, digest
from cascade_export.settings import ExportOptions

_VOCABULARY: Final = "spiece.model"
_MODEL: Final = "model.safetensors"
_MOST_RETRIES = 8


def export_bundle(
    cascade: Cascade,
    output: Path,
    options: ExportOptions,
    on_step: OnStep | None = None,
    workers: int = 1,
) -> Bundle:
    """Write a cascade as a bundle whose engines are proven to sample the same images.

    Args:
        cascade: in float32 on the CPU.
        output: a new folder, or that of an export that was cut short.
        workers: processes that trace stages. They import the main module again, which must not
            export where it is imported.

    Raises:
        UserError: it cannot be exported so here, the output is taken or another export writes
            there, or the engines do not sample what the cascade samples; the report of that lies
            in the folder.
    """
    targets = require_export(options)
    require_output(output)
    for stage in cascade.stages:
        check_cast(stage.network, options.precision)
    with writing(output):
        require_output(output)  # another export may just have ended
        return _write_bundle(cascade, output, options, targets, on_step, workers)


def _write_bundle(
    cascade: Cascade,
    output: Path,
    options: ExportOptions,
    targets: tuple[int, ...],
    on_step: OnStep | None,
    workers: int,
) -> Bundle:
    text, path = _write_text(cascade, output, options)
    islands: dict[str, tuple[str, ...]] = {}
    calls = cache(lambda: calibration_inputs(cascade, options.calibration_prompts))
    tell = on_step or (lambda what, done, total: None)
    writer = StageWriter(output, options, calls, workers, tell)
    for _ in range(_MOST_RETRIES):
        stages = writer.write(cascade.stages, islands)
        moved = {"stages": tuple(stages), "text_encoder": path}
        draft = BundleManifest(
            cascade=cascade.manifest.model_copy(update=moved),
            engine=options.engine,
            precision=options.precision,
            quantisation=options.quantization,
            targets=targets,
            text=text,
            stages=stages,
            versions=exporter_versions(),
        )
        bundle = _with_plans(Bundle(output, draft), options, tell)
        report = compare(cascade, bundle, None, options.gate, output / "report", on_step)
        diverged = {each.stage: each.island for each in report.findings.departures}
        if report.passed or not (options.retry and diverged):
            break
        for name, island in diverged.items():
            islands[name] = (*islands.get(name, ()), island)
    report.require()
    sealed = bundle.manifest.model_copy(update={"proof": proof_of(report)})
    write_sealed(sealed, output / BUNDLE)
    return Bundle(output, sealed)


def _with_plans(bundle: Bundle, options: ExportOptions, tell: OnStep) -> Bundle:
    """Build the plans of a draft's stages, if its engine runs plans."""
    manifest, stages = bundle.manifest, {}
    engine = engine_class(manifest.engine)
    if not engine.runs_plans:
        return bundle
    for files in bundle.files():
        name = files.config.name
        tell(f"build {name}", 0, 1)
        plan = engine.build_plan(files, manifest.numerics, manifest.targets, options, bundle.plans)
        stages[name] = manifest.stages[name].model_copy(update={"plan": plan})
        tell(f"build {name}", 1, 1)
    return Bundle(bundle.folder, manifest.model_copy(update={"stages": stages}))


def text_identity(encoder: PromptEncoder) -> tuple[str, str]:
    """Return digests of a text encoder's weights and vocabulary, or of those a store was made with.

    Raises:
        TypeError: it is neither an encoder with its files nor a store.
    """
    if isinstance(encoder, EmbeddingStore):
        return encoder.conventions.model, encoder.conventions.tokenizer
    if isinstance(encoder, TextEncoder):
        return encoder.files.model_digest, encoder.files.tokenizer_digest
    raise TypeError(f"{type(encoder).__name__} is no text encoder with files")


def _write_text(cascade: Cascade, output: Path, options: ExportOptions) -> tuple[TextEntry, str]:
    """Write the text encoder; return its entry, and its path for the cascade's manifest."""
    model, tokenizer = text_identity(cascade.encoder)
    made = partial(TextEntry, form=options.text_encoder, model=model, tokenizer=tokenizer)
    folder, path = output / "text", cascade.manifest.text_encoder
    if not isinstance(cascade.encoder, TextEncoder):
        if options.text_encoder == "graph":
            raise UserError(
                "A store of embeddings is no text encoder to make a graph of; leave --embeddings "
                "or --text-encoder graph out."
            )
        return made(), path
    files = cascade.encoder.files
    if options.text_encoder == "torch" and Path(path).is_absolute():
        # One too large to copy, for a bundle as for a cascade.
        return made(files=_digests(files.folder, CONFIG)), path
    if options.text_encoder == "graph":
        export_text_encoder(cascade.encoder, folder)
        copy_file(files.folder / CONFIG, folder / CONFIG)
        copy_file(files.vocabulary, folder / _VOCABULARY)
        return made(files=_digests(folder, CONFIG, _VOCABULARY, GRAPH, WEIGHTS)), "text"
    write_encoder(files, folder, folder / _VOCABULARY)
    return made(files=_digests(folder, CONFIG, _VOCABULARY, _MODEL)), "text"


def _digests(folder: Path, *names: str) -> dict[str, str]:
    return {name: digest(folder / name) for name in names}
