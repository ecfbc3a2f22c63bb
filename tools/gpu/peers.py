"""Our U-Net against diffusers' on a GPU, at the published sizes: eager and compiled, in bf16.

Weights are random. Not yet measured.
"""

import json
from collections.abc import Callable

import torch

from bench.device import described, state
from cascade.files import write_bytes
from gpu.pieces import Context, FailedError, IncompleteError, Piece
from peers.measure import OURS, THEIRS, Case, MismatchError, compare
from peers.networks import Inputs, Mode, Provider, Shape, narrowed, pair, published

MODES: tuple[Mode, ...] = ("sampling", "training")
_BATCHES = {"if-i-m": (1, 8, 64), "if-i-l": (1, 8, 64), "if-ii-m": (1, 4, 16)}
_MINUTES = 6  # to compile three networks and to time them; it cannot go on where it stopped
_ROUNDS = 11


def peer_pieces(context: Context) -> list[Piece]:
    """One piece for each network, batch and mode."""
    if context.dry_run:
        shape = narrowed("if-i-m", 32, 16)
        return [_piece(shape, 1, mode) for mode in MODES]
    return [
        _piece(published(name), rows, mode)
        for name, batches in _BATCHES.items()
        for rows in batches
        for mode in MODES
    ]


def _piece(shape: Shape, rows: int, mode: Mode) -> Piece:
    return Piece(f"peers {shape.name} batch {rows} {mode}", _comparison(shape, rows, mode))


def _comparison(shape: Shape, rows: int, mode: Mode) -> Callable[[Context], str]:
    def run(context: Context) -> str:
        if not context.dry_run and context.left < _MINUTES:
            raise IncompleteError(f"it needs {_MINUTES} minutes; give it more --minutes")
        before = state(context.device)
        ours, theirs = pair(shape, context.device)
        providers = {
            OURS: Provider(ours, backend="reference"),
            THEIRS: Provider(theirs),
        }
        if not context.dry_run:
            torch.compiler.reset()
            providers |= {
                f"{OURS}, triton": Provider(ours, backend="triton"),
                f"{OURS}, compiled": Provider(ours, compiled=True, backend="reference"),
                f"{OURS}, triton, compiled": Provider(ours, compiled=True, backend="triton"),
                f"{THEIRS}, compiled": Provider(theirs, compiled=True),
            }
        given = Inputs.draw(shape, rows, context.device)
        case = Case(shape, rows, mode, "bf16")
        try:
            record = compare(case, providers, given, 2 if context.dry_run else _ROUNDS)
        except MismatchError as error:
            raise FailedError(str(error)) from None
        record |= {
            "dry_run": context.dry_run,
            "state": [before, state(context.device)],
            "environment": described(context.device, context.commit),
        }
        name = f"peers-{shape.name}-{rows}-{mode}.json".replace(" ", "-")
        write_bytes((json.dumps(record, indent=1) + "\n").encode(), context.output / name)
        rates = {n: row.get("images_per_second") for n, row in record["providers"].items()}
        return ", ".join(f"{n} {f'{r:.1f}/s' if r else 'no room'}" for n, r in rates.items())

    return run
