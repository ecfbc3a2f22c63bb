"""`cascade export`: a cascade as a bundle of engines that draw the same pictures."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from cascade.cli import values
from cascade.cli.text import Embeddings, EncoderMode
from cascade.config.base import MOST_AT_ONCE
from cascade.config.encoder import EncoderModeName
from cascade.errors import UserError
from cascade.files import require_writable
from cascade_export.engines import ENGINES, engine_class, engine_name
from cascade_export.graph.numerics import Precision, Quantization, TextForm

if TYPE_CHECKING:
    from cascade.pipeline import Cascade
    from cascade_export.bundle.bundle import Bundle
    from cascade_export.bundle.gate import Gate
    from cascade_export.bundle.manifest import Proof
    from cascade_export.bundle.request import Request


def export(
    cascade: Annotated[
        str,
        typer.Option(parser=values.cascade, metavar="FOLDER", help="A cascade folder, or 'mini'."),
    ] = "mini",
    output: Annotated[
        Path | None,
        values.output("A new folder for the bundle."),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(
            parser=values.folder,
            metavar="FOLDER",
            help="Add the cascade, a fine-tune, to this bundle instead.",
        ),
    ] = None,
    subject: Annotated[
        str | None, typer.Option(help="With --into: what to call the fine-tune.")
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            parser=engine_name,
            metavar=f"[{'|'.join(ENGINES)}]",
            help="What runs it; onnxruntime by default.",
        ),
    ] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Of weights and arithmetic; fp32 by default.")
    ] = None,
    quantise: Annotated[
        Quantization | None,
        typer.Option(help="Run the blocks' convolutions in 8 bits; costs likeness."),
    ] = None,
    calibration_prompt: Annotated[
        list[str] | None,
        typer.Option(help="With --quantise: what its scales are drawn from; may be repeated."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="GPUs that TensorRT builds for, as in sm89,sm120.")
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(min=1, max=MOST_AT_ONCE, help="Most pictures at a time of a TensorRT plan."),
    ] = None,
    text_encoder: Annotated[
        TextForm | None,
        typer.Option(help="Run by PyTorch, the default, or a graph for ONNX Runtime."),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            help="A LoRA file to merge first: FILE for the base, or STAGE=FILE; may be repeated."
        ),
    ] = None,
    lora_scale: Annotated[
        float | None, typer.Option(help="Factor on all of them; 1 by default.")
    ] = None,
    lora_unet_only: Annotated[
        bool,
        typer.Option("--lora-unet-only", help="Leave out what they change of the text encoder."),
    ] = False,
    retry: Annotated[
        bool,
        typer.Option("--retry", help="If the check fails, keep the layer at fault in fp32."),
    ] = False,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="What the check draws; may be repeated. Four if none."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Steps of the check's samplers.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where the check runs the engine: cpu, cuda, ...")
    ] = None,
    embeddings: Embeddings = None,
    encoder_mode: EncoderMode = "auto",
) -> None:
    """Export every stage, and prove that the engine draws what the cascade draws.

    The bundle's report/parity.html shows the pictures side by side. An export that was cut short
    goes on where it was, with the same command.
    """
    if (output is None) == (into is None):
        raise UserError("Give --output for a new bundle, or --into for one that takes a fine-tune.")
    if (into is None) != (subject is None):
        raise UserError("--into and --subject go together: a bundle, and its fine-tune's name.")
    fixed = {
        "engine": engine,
        "precision": precision,
        "quantise": quantise,
        "calibration-prompt": calibration_prompt,
        "target": target,
        "max-batch": max_batch,
        "text-encoder": text_encoder,
        "retry": retry,
    }
    given = [name for name, value in fixed.items() if value]
    if into is not None and given:
        raise UserError(f"--{given[0]} is what {into} was exported with; leave it out with --into.")
    from cascade.environment import usable_device
    from cascade_export.bundle.bundle import Bundle
    from cascade_export.bundle.gate import Gate
    from cascade_export.bundle.request import Request
    from cascade_export.engines.tensorrt.targets import parse_targets
    from cascade_export.parity.check import PROMPTS

    bundle = Bundle.open(into) if into is not None else None
    kind = bundle.manifest.engine if bundle is not None else engine or "onnxruntime"
    gate = Gate(
        prompts=tuple(prompt or PROMPTS),
        steps=steps,
        device=usable_device(device) if device is not None else engine_class(kind).default_device(),
        command=shlex.join(["cascade", *sys.argv[1:]]),
    )
    _refuse_alone("calibration-prompt", calibration_prompt, "quantise", quantise)
    _refuse_alone("lora-scale", lora_scale, "lora", lora)
    if max_batch is not None and not engine_class(kind).runs_plans:
        raise UserError(f"The {kind} engine takes any batch; leave --max-batch out.")
    _refuse_alone("lora-unet-only", lora_unet_only or None, "lora", lora)
    scale = 1.0 if lora_scale is None else lora_scale
    files = tuple(lora or ())
    source = Source(cascade, embeddings, encoder_mode, files, scale, lora_unet_only)
    if bundle is not None and subject is not None:
        _add(bundle, source, subject, gate)
    elif output is not None:
        request = Request(
            engine=kind,
            precision=precision or "fp32",
            quantisation=quantise or "none",
            calibration=tuple(calibration_prompt or PROMPTS),
            targets=parse_targets(target) if target is not None else (),
            text=text_encoder or "torch",
            max_batch=max_batch or 4,
            retry=retry,
            gate=gate,
        )
        _make(output, source, request)


def _refuse_alone(flag: str, value: object, needed: str, given: object) -> None:
    """Refuse a flag that has no effect without another.

    Raises:
        UserError: it is given alone.
    """
    if value is not None and not given:
        raise UserError(f"--{flag} belongs to --{needed}; give both or neither.")


class Source(NamedTuple):
    """The cascade that is exported."""

    path: str
    embeddings: Path | None
    encoder_mode: EncoderModeName
    lora: tuple[str, ...]
    lora_scale: float
    lora_unet_only: bool

    def load(self) -> "Cascade":
        """Load it where graphs are traced, on the CPU in float32."""
        from cascade.lora import parse_lora, with_lora
        from cascade.pipeline import Cascade

        plain = Cascade.load(self.path, embeddings=self.embeddings, encoder_mode=self.encoder_mode)
        return with_lora(plain, parse_lora(self.lora, plain), self.lora_scale, self.lora_unet_only)


def _make(output: Path, source: Source, request: "Request") -> None:
    from cascade.progress import progress_bar, stage_steps
    from cascade_export.bundle.request import require_place
    from cascade_export.bundle.write import export_bundle

    request.check()
    require_place(output)
    loaded = source.load()
    with progress_bar() as bar:
        bundle = export_bundle(loaded, output, request, stage_steps(bar))
    if bundle.manifest.proof is not None:
        _tell(bundle.manifest.proof, output / "report", f"--bundle {output}")


def _add(bundle: "Bundle", source: Source, name: str, gate: "Gate") -> None:
    from cascade.progress import progress_bar, stage_steps
    from cascade_export.bundle.finetunes import add_subject, check_subject_name, subject_folder

    check_subject_name(bundle, name)
    require_writable(bundle.folder)
    loaded = source.load()
    with progress_bar() as bar:
        subject = add_subject(bundle, loaded, name, gate, stage_steps(bar))
    folder = subject_folder(bundle, name)
    _tell(subject.proof, folder / "report", f"--bundle {bundle.folder} --subject {name}")


def _tell(proof: "Proof", report: Path, flags: str) -> None:
    """Print how far the engines' pictures are from the cascade's, and what to do next."""
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
