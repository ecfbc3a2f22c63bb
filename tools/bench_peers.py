"""Our U-Net against diffusers' on a CPU: the same weights, the same input, one after the other.

    python tools/bench_peers.py --output tools/results/DATE-peers-cpu.json

On one thread; the clock is the process's own. Times calls without gradients and calls with their
backward pass, in fp32 and in bf16, at three sizes of first stages and one of a second stage, and
tells the peak memory of each. Nothing is timed whose answers differ. `tools/gpu/peers.py` does the
same on a GPU, at the published sizes and compiled.
"""

import json
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from cascade.cli.mistakes import answer
from cascade.environment import environment
from cascade.errors import UserError
from cascade.files import write_bytes
from peers.measure import OURS, THEIRS, Case, compare
from peers.networks import Inputs, Mode, Precision, Provider, Shape, narrowed, pair

SHAPES = (
    narrowed("if-i-m", 32, 32),
    narrowed("if-i-m", 64, 64),
    narrowed("if-i-m", 96, 64),
    narrowed("if-ii-m", 32, 128),
)
SETTINGS = {
    "batch": "2 pictures: a prompt's and the null text's",
    "both": "channels_last weights and pictures, eval mode, all 77 tokens visible",
    "sampling": "one call under no_grad; bf16 with weights converted to it",
    "training": "call, mean square, backward; bf16 as autocast; no optimizer",
    "diffusers": "UNet2DConditionModel, AttnAddedKVProcessor2_0, eager",
    "ours": "eager, backend auto",
    "memory": "peak of PyTorch's allocator above the weights; gradients count",
}
_ROWS = 2


def main(
    output: Annotated[Path, typer.Option(help="File that gets every sample.")],
    shapes: Annotated[
        list[str] | None, typer.Option(help="A part of the shapes' names; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Times that each is timed.")] = 11,
) -> None:
    """Measure, print a table and write the record."""
    chosen = [s for s in SHAPES if not shapes or any(part in s.name for part in shapes)]
    if not chosen:
        names = ", ".join(shape.name for shape in SHAPES)
        raise UserError(f"No shape has such a name; known are {names}.")
    torch.set_num_threads(1)  # of several threads, the process's time would be a sum
    console = Console(stderr=True)
    records: list[dict[str, Any]] = []
    for case, providers, given in _cases(chosen):
        console.print(case.name)
        records.append(compare(case, providers, given, rounds))
        record = {
            "environment": environment() | {"diffusers": version("diffusers")},
            "rounds": rounds,
            "settings": SETTINGS,
            "cases": records,
        }
        write_bytes((json.dumps(record, indent=1) + "\n").encode(), output)
    Console(width=120).print(table(records))


def _cases(shapes: list[Shape]) -> Iterator[tuple[Case, dict[str, Provider], Inputs]]:
    device = torch.device("cpu")
    modes: tuple[Mode, ...] = ("sampling", "training")
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for shape in shapes:
        ours, theirs = pair(shape, device)
        providers = {OURS: Provider(ours), THEIRS: Provider(theirs)}
        given = Inputs.draw(shape, _ROWS, device)
        for precision in precisions:
            for mode in modes:
                yield Case(shape, _ROWS, mode, precision), providers, given


def table(records: list[dict[str, Any]]) -> Table:
    """Ours as a share of theirs: time with its 20th and 80th percentile, and peak memory."""
    found = Table(title="ours / diffusers")
    for title in ("network", "size", "mode", "precision", "time", "p20 to p80", "peak memory"):
        found.add_column(title)
    for record in records:
        ours, theirs = record["providers"][OURS], record["providers"][THEIRS]
        ratio = ours["ratio"]
        found.add_row(
            f"{record['shape']}, {record['parameters'] / 1e6:.0f} M",
            str(record["size"]),
            record["mode"],
            record["precision"],
            f"{ratio['median']:.2f}",
            f"{ratio['p20']:.2f} to {ratio['p80']:.2f}",
            f"{ours['peak_bytes'] / theirs['peak_bytes']:.2f}",
        )
    return found


if __name__ == "__main__":
    answer(lambda: typer.run(main))
