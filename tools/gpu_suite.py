"""Everything that needs a GPU, in pieces of a few minutes each; run it until it says it is done.

    python tools/gpu_suite.py --part kernels --output build/gpu --minutes 8

A piece that passed is not run again while its folder stands. `--dry-run` proves the plumbing on a
CPU with tiny shapes and Triton's interpreter; its times mean nothing and are marked so.

    kernels    the tests marked `gpu`, the memory checker, repeatability, graph capture, fullgraph
               compilation, the benchmark, and the launch table that follows from it
    tuning     launch configurations by kernel and shape; run it ahead of `kernels`, whose
               benchmark then takes them
    network    a training and a sampling step of an IF-I-M-shaped U-Net with and without kernels
"""

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cascade.cli.mistakes import answer
from cascade.errors import UserError

INCOMPLETE = 3
"""Exit status when the time was up; the same command goes on from there."""


class Part(StrEnum):
    """What can be run."""

    kernels = "kernels"
    tuning = "tuning"
    network = "network"


def main(
    part: Annotated[Part, typer.Option(help="What to run.")],
    output: Annotated[Path, typer.Option(help="Folder for what each piece found.")],
    minutes: Annotated[float, typer.Option(min=0, help="Begin no piece after this time.")] = 8.0,
    shapes: Annotated[
        list[str] | None,
        typer.Option(help="A part of the names of the shapes benched or tuned; may be repeated."),
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

    from gpu.kernel_checks import kernel_pieces, tuning_pieces
    from gpu.network import network_pieces
    from gpu.pieces import Context, run_pieces

    if not dry_run and not torch.cuda.is_available():
        raise UserError("The suite needs a CUDA device and finds none; --dry-run works without.")
    makers = {
        Part.kernels: kernel_pieces,
        Part.tuning: tuning_pieces,
        Part.network: network_pieces,
    }
    context = Context(output, minutes, tuple(shapes or ()), commit, dry_run)
    status = run_pieces(part, makers[part](context), context)
    sys.exit({"passed": 0, "failed": 1, "incomplete": INCOMPLETE}[status])


if __name__ == "__main__":
    answer(lambda: typer.run(main))
