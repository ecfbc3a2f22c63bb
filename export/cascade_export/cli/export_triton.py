"""`cascade export-triton`: a bundle as a model repository of NVIDIA's Triton Inference Server."""

import typer

from cascade.cli import values
from cascade.cli.options import Flag, Options, with_options
from cascade.cli.shared import BundleArgument
from cascade.files import require_writable
from cascade_export.settings import ServerConfig

FLAGS = (
    Flag("output", ("output",), names=values.OUTPUT, parser=values.writable, metavar="FOLDER"),
    Flag("bundle", ("bundle",), parser=values.folder, metavar="FOLDER"),
    Flag("subject", ("subject",), parser=values.name, metavar="NAME"),
    Flag("name", ("name",), parser=values.name, metavar="NAME"),
    Flag("pictures_at_once", ("pictures_at_once",)),
    Flag("concurrent", ("concurrent",)),
    Flag("queue_delay", ("queue_delay",)),
    Flag("queue_size", ("queue_size",)),
    Flag("queue_timeout", ("queue_timeout",)),
)


@with_options(ServerConfig, FLAGS)
def export_triton(options: Options[ServerConfig], folder: BundleArgument = None) -> None:
    """Write a model repository: a model per stage, and one that runs the whole cascade.

    Stages run on TensorRT where the bundle has its plans, else on ONNX Runtime; plans of TensorRT
    for RTX cannot be loaded by that server.
    """
    config = options.settings()
    chosen = values.either(folder, config.bundle, "bundle")
    require_writable(config.output)
    from cascade_export.bundle.bundle import Bundle
    from cascade_export.triton_server.repository import (
        PLANS_LEFT_OUT,
        plans_left_out,
        write_repository,
    )

    bundle = Bundle.open(chosen)
    models = write_repository(bundle, config.output, config.subject, config)
    typer.echo(f"{config.output} serves {', '.join(model.name for model in models)}.")
    if plans_left_out(bundle):
        typer.echo(PLANS_LEFT_OUT)
