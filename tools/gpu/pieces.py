"""Pieces of a long check that run one after another, each remembered once it passed."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from cascade.environment import environment
from cascade.files import write_bytes

Status = Literal["passed", "failed", "incomplete", "not checked"]


class FailedError(Exception):
    """A piece found something wrong; the message says what."""


class IncompleteError(Exception):
    """A piece ran out of time; it goes on where it stopped, or starts anew."""


class NotCheckedError(Exception):
    """A piece lacks what it needs on this machine; the message says what."""


@dataclass(frozen=True)
class Context:
    """What every piece is told.

    Attributes:
        output: folder for what is found.
        minutes: time for everything.
        shapes: parts of the names of the shapes to bench; none is all.
        commit: of the code, where a copy of the checkout has lost its history.
        dry_run: tiny shapes on a CPU.
        start: of the run, on the monotonic clock.
    """

    output: Path
    minutes: float
    shapes: tuple[str, ...]
    commit: str | None
    dry_run: bool
    start: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Minutes that are left."""
        return self.minutes - (time.monotonic() - self.start) / 60

    @property
    def device(self) -> torch.device:
        """Where to run."""
        return torch.device("cpu" if self.dry_run else "cuda")


@dataclass(frozen=True)
class Piece:
    """One check; it returns what it found in a line, or raises one of the errors above."""

    name: str
    run: Callable[[Context], str]


def run_pieces(part: str, pieces: Sequence[Piece], context: Context) -> Status:
    """Run what has not passed yet, remember each outcome, and print a short table last.

    Args:
        part: the folder of the outcomes below `context.output`.
        pieces: in their order.
        context: told to each.

    Returns:
        "failed" if any piece failed, else "incomplete" if any is left, else "passed"; what could
        not be checked on this machine does not count.
    """
    folder = _folder(part, context)
    here = _here(context)
    rows: list[tuple[Status, str, str]] = []
    for piece in pieces:
        path = folder / f"{piece.name.replace(' ', '-')}.json"
        held = _remembered(path, here)
        if held is not None:
            rows.append(("passed", piece.name, held))
            continue
        status, found = _outcome(piece, context)
        if status != "incomplete":
            record = {"piece": piece.name, "status": status, "found": found, **here}
            write_bytes((json.dumps(record, indent=1) + "\n").encode(), path)
        rows.append((status, piece.name, found))
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for status, name, found in rows:
        console.print(f"{status:11}  {name:44}  {found}")
    if context.dry_run:
        console.print("This was a dry run: its times mean nothing.")
    statuses = {status for status, _, _ in rows}
    return next((s for s in ("failed", "incomplete") if s in statuses), "passed")


def pieces_that(status: Status, part: str, context: Context) -> list[str]:
    """Return the pieces of a part whose last outcome was this one."""
    found = (
        json.loads(p.read_text(encoding="utf-8")) for p in _folder(part, context).glob("*.json")
    )
    return sorted(held["piece"] for held in found if held["status"] == status)


def _folder(part: str, context: Context) -> Path:
    return context.output / part


def _outcome(piece: Piece, context: Context) -> tuple[Status, str]:
    if context.left <= 0:
        return "incomplete", "no time was left"
    try:
        return "passed", piece.run(context)
    except FailedError as error:
        return "failed", str(error)
    except IncompleteError as error:
        return "incomplete", str(error)
    except NotCheckedError as error:
        return "not checked", str(error)


def _here(context: Context) -> dict[str, Any]:
    """What an outcome holds for: the same code and versions on the same machine."""
    told = environment()
    if context.commit is not None:
        told["commit"] = context.commit
    return {"dry_run": context.dry_run, "environment": told}


def _remembered(path: Path, here: dict[str, Any]) -> str | None:
    """What a piece found when it passed here; the day does not matter."""
    if not path.is_file():
        return None
    held = json.loads(path.read_text(encoding="utf-8"))
    now = here["environment"] | {"date": held["environment"]["date"]}
    same = (held["dry_run"], held["environment"]) == (here["dry_run"], now)
    return str(held["found"]) if same and held["status"] == "passed" else None
