"""`cascade export`: a cascade as a bundle of engines that sample the same images."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascade.cli import values
from cascade.cli.options import Flag, Options, set_at, with_options
from cascade.cli.shared import LORA_FLAGS, TEXT_FLAGS
from cascade.files import require_writable
from cascade.launch import cores
from cascade_export.engines import ENGINES, engine_name
from cascade_export.graph.numerics import Quantization
from cascade_export.settings import ExportConfig

if TYPE_CHECKING:
    from cascade.pipeline import Cascade
    from cascade_export.bundle.manifest import Proof

_NUMERICS = "Engine"
_CHECK = "Check"
_FOUR = "four of its own"

FLAGS = (
    Flag("cascade", ("cascade",), parser=values.cascade, metavar="FOLDER"),
    Flag("output", ("output",), names=values.OUTPUT, parser=values.writable, metavar="FOLDER"),
    Flag("into", ("into",), parser=values.folder, metavar="FOLDER"),
    Flag("subject", ("subject",), parser=values.name, metavar="NAME"),
    Flag("engine", ("engine",), _NUMERICS, parser=engine_name, metavar=f"[{'|'.join(ENGINES)}]"),
    Flag("precision", ("precision",), _NUMERICS),
    Flag("quantize", ("quantization",), _NUMERICS),
    Flag("calibration_prompt", ("calibration_prompts",), _NUMERICS, shown=_FOUR),
    Flag("target", ("targets",), _NUMERICS, kind=str, metavar="SM,..."),
    Flag("max_batch", ("max_batch",), _NUMERICS),
    Flag("usual_batch", ("usual_batch",), _NUMERICS),
    Flag("text_encoder", ("text_encoder",), _NUMERICS),
    Flag("prompt", ("gate.prompts",), _CHECK, shown=_FOUR),
    Flag("steps", ("gate.steps",), _CHECK),
    Flag("device", ("gate.device",), _CHECK),
    Flag("retry", ("retry",), _CHECK, names=("--retry",)),
    *LORA_FLAGS,
    *TEXT_FLAGS,
)


@with_options(ExportConfig, FLAGS)
def export(
    options: Options[ExportConfig],
    quantise: Annotated[
        Quantization | None,
        typer.Option("--quantise", hidden=True, help="The old spelling of --quantize."),
    ] = None,
) -> None:
    """Export every stage, and prove that the engine samples what the cascade samples.

    The bundle's report/parity.html shows the images side by side. An export that was cut short
    goes on where it was, with the same command.
    """
    if quantise is not None:
        typer.echo("--quantise is --quantize now; the next version takes that alone.", err=True)
        options = replace(options, values={"quantize": quantise, **options.values})
    found = options.layered(options.read_file())
    set_at(found, "gate.command", shlex.join(["cascade", *sys.argv[1:]]))
    config = options.parse(found)
    if config.output is not None:
        _make(config, config.output)
    elif config.into is not None and config.subject is not None:
        _add(config, config.into, config.subject)


def _make(config: ExportConfig, output: Path) -> None:
    from cascade.progress import progress_bar, stage_steps
    from cascade_export.bundle.lock import require_free
    from cascade_export.bundle.requirements import require_export, require_output
    from cascade_export.bundle.write import export_bundle

    require_export(config)
    require_output(output)
    require_free(output)
    require_writable(output)
    cascade = _load(config)
    with progress_bar() as bar:
        bundle = export_bundle(cascade, output, config, stage_steps(bar), cores())
    if bundle.manifest.proof is not None:
        _show(bundle.manifest.proof, output / "report", f"--bundle {output}")


def _add(config: ExportConfig, into: Path, name: str) -> None:
    from cascade.progress import progress_bar, stage_steps
    from cascade_export.bundle.bundle import Bundle
    from cascade_export.bundle.finetunes import add_subject, check_subject_name, subject_folder
    from cascade_export.bundle.lock import require_free

    bundle = Bundle.open(into)
    check_subject_name(bundle, name)
    require_free(bundle.folder)
    require_writable(bundle.folder)
    cascade = _load(config)
    with progress_bar() as bar:
        subject = add_subject(bundle, cascade, name, config.gate, stage_steps(bar))
    report = subject_folder(bundle, name) / "report"
    _show(subject.proof, report, f"--bundle {bundle.folder} --subject {name}")


def _load(config: ExportConfig) -> "Cascade":
    """Load the cascade where graphs are traced, on the CPU in float32."""
    from cascade.lora import lora_files, with_lora
    from cascade.pipeline import Cascade

    plain = Cascade.load(
        config.cascade, embeddings=config.embeddings, encoder_mode=config.encoder_mode
    )
    files = lora_files(config.lora, plain.configs)
    return with_lora(plain, files, config.lora_scale, config.lora_unet_only)


def _show(proof: "Proof", report: Path, flags: str) -> None:
    """Print how far the engines' images are from the cascade's, and what to do next."""
    from rich.console import Console
    from rich.table import Table

    ran = "" if proof.executed else ", by another engine in its place: built, not executed"
    table = Table(title=f"Engine beside eager{ran}")
    for column in ("stage", "PSNR, dB", "8-bit values that differ, %", "by up to"):
        table.add_column(column)
    for stage, one in proof.pictures.items():
        share = f"{100 * one.differing:.4f}"
        table.add_row(stage, f"{one.psnr:.1f}", share, f"{one.greatest}")
    Console(markup=False, emoji=False, highlight=False).print(table)
    typer.echo(f"The report is {report / 'parity.html'}.")
    typer.echo(f"Draw: cascade sample {flags} --prompt PROMPT --output FOLDER")
