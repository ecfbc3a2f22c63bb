"""Everything that needs a GPU, in pieces of a few minutes each; run it until it says it is done.

    python tools/gpu_suite.py --part kernels --output build/gpu --minutes 8

A piece that passed is not run again while its folder stands. `--dry-run` proves the plumbing on a
CPU with tiny shapes and Triton's interpreter; its times mean nothing and are marked so.

    kernels    the tests marked `gpu`, the memory checker, repeatability, graph capture, fullgraph
               compilation, the benchmark, and the launch table that follows from it
    tuning     launch configurations by kernel and shape; run it ahead of `kernels`, whose
               benchmark then takes them
    peers      sampling and training steps of DeepFloyd IF's shapes beside diffusers' networks
    network    a training and a sampling step of our small base and of an IF-I-M-shaped U-Net, with
               and without kernels, compiled and eager
    export     TensorRT for RTX, ONNX Runtime and compiled PyTorch: parity, swaps, and the latency
               of IF-I-M- and IF-II-M-shaped U-Nets against diffusers
    tensorrt   the same of full TensorRT, where it is installed
"""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascade.cli.mistakes import answer
from cascade.errors import UserError

if TYPE_CHECKING:
    from gpu.pieces import Context, Piece

INCOMPLETE = 3
"""Exit status when the time was up; the same command goes on from there."""


class Part(StrEnum):
    """What can be run."""

    kernels = "kernels"
    tuning = "tuning"
    network = "network"
    export = "export"
    tensorrt = "tensorrt"
    peers = "peers"


def main(
    part: Annotated[Part, typer.Option(help="What to run.")],
    output: Annotated[Path, typer.Option(help="Folder for what each piece found.")],
    minutes: Annotated[float, typer.Option(min=0, help="Begin no piece after this time.")] = 8.0,
    shapes: Annotated[
        list[str] | None,
        typer.Option(help="A part of the names of the shapes or networks; may be repeated."),
    ] = None,
    commit: Annotated[
        str | None, typer.Option(help="The code's commit, for a copy without its history.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tiny shapes on a CPU.")] = False,
) -> None:
    """Run the pieces of a part that are not done yet, and print what is known of all of them."""
    if dry_run:
        # Before anything imports Triton, which reads it then.
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from gpu.pieces import Context, run_pieces

    if not dry_run and not torch.cuda.is_available():
        raise UserError("The suite needs a CUDA device and finds none; --dry-run works without.")
    context = Context(output, minutes, tuple(shapes or ()), commit, dry_run)
    status = run_pieces(part, _pieces(part, context), context)
    sys.exit({"passed": 0, "failed": 1, "incomplete": INCOMPLETE}[status])


def _pieces(part: Part, context: "Context") -> "list[Piece]":
    """A part's pieces; only that part's packages need to be installed."""
    match part:
        case Part.kernels:
            from gpu.kernel_checks import kernel_pieces

            return kernel_pieces(context)
        case Part.tuning:
            from gpu.kernel_checks import tuning_pieces

            return tuning_pieces(context)
        case Part.network:
            from gpu.network import network_pieces

            return network_pieces(context)
        case Part.export:
            from gpu.export import export_pieces

            return export_pieces(context)
        case Part.peers:
            from gpu.peers import peer_pieces

            return peer_pieces(context)
        case Part.tensorrt:
            from gpu.tensorrt import tensorrt_pieces

            return tensorrt_pieces(context)


if __name__ == "__main__":
    answer(lambda: typer.run(main))
