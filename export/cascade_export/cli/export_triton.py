"""`cascade export-triton`: a bundle as a model repository of NVIDIA's Triton Inference Server."""

from pathlib import Path
from typing import Annotated

import typer

from cascade.cli import values
from cascade.cli.bundle import BundleArgument, BundleOption


def export_triton(
    output: Annotated[
        Path,
        values.output("The model repository; may hold others."),
    ],
    folder: BundleArgument = None,
    bundle: BundleOption = None,
    subject: Annotated[str | None, typer.Option(help="A fine-tune of the bundle's.")] = None,
    name: Annotated[str, typer.Option(help="What clients call the model.")] = "cascade",
    pictures_at_once: Annotated[
        int, typer.Option(min=1, help="Pictures of a request that are worked on at a time.")
    ] = 4,
    concurrent: Annotated[
        int, typer.Option(min=1, help="Requests that are worked on at the same time.")
    ] = 2,
    queue_delay: Annotated[
        int, typer.Option(min=0, help="Microseconds a stage waits to fill its batch.")
    ] = 2000,
    queue_size: Annotated[
        int, typer.Option(min=1, help="Calls that may wait for a stage; more are refused.")
    ] = 64,
    queue_timeout: Annotated[
        float, typer.Option(min=0.001, help="Seconds after which a waiting call is refused.")
    ] = 60.0,
) -> None:
    """Write a model repository: a model per stage, and one that runs the whole cascade.

    Stages run on TensorRT where the bundle has its plans, else on ONNX Runtime; plans of TensorRT
    for RTX cannot be loaded by that server.
    """
    chosen = values.either(folder, bundle, "bundle")
    from cascade_export.bundle.bundle import Bundle
    from cascade_export.triton_server.repository import (
        PLANS_LEFT_OUT,
        ServerOptions,
        plans_left_out,
        write_repository,
    )

    given = {
        "name": name,
        "pictures_at_once": pictures_at_once,
        "queue_delay": queue_delay,
        "queue_size": queue_size,
        "queue_timeout": queue_timeout,
        "concurrent": concurrent,
    }
    flags = {key: f"--{key.replace('_', '-')}" for key in given}
    options = ServerOptions.parse(given, "the server's options", flags)
    opened = Bundle.open(chosen)
    models = write_repository(opened, output, subject, options)
    typer.echo(f"{output} serves {', '.join(model.name for model in models)}.")
    if plans_left_out(opened):
        typer.echo(PLANS_LEFT_OUT)
