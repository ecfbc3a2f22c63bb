"""The output folder of a run: taken by one at a time, refused to other runs, and large enough."""

import json
import os
import socket
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from cascade.config.folders import RUN
from cascade.errors import UserError
from cascade.files import read_json, write_bytes
from cascade.text.files import EncoderFiles
from cascade.text.store import EmbeddingStore
from cascade.training.distributed import Processes
from cascade.training.interrupt import clear_requeue

_HOLDER: Final = ".running"
_TOLD = 3  # differing settings that a refusal names


@dataclass(frozen=True)
class RunClaim:
    """A run's claim to its output folder.

    Attributes:
        output: the folder.
        identity: everything that the run's weights depend on, as JSON holds it; no paths.
        growing: which numbers of the identity may be larger than when the run began, by their
            dotted names.
        onwards: how another run trains on from the result of this one.
    """

    output: Path
    identity: Mapping[str, object]
    growing: Set[str] = frozenset()
    onwards: str = ""


@contextmanager
def acquire_run_dir(claim: RunClaim, processes: Processes) -> Iterator[None]:
    """Hold an output folder for a run, a new one or the one that it holds already."""
    if processes.is_main:
        _refuse_foreign(claim.output)
    with _locked(claim.output) if processes.is_main else nullcontext():
        if processes.is_main:
            _refuse_others(claim)
            clear_requeue(claim.output)
            note = json.dumps(claim.identity, indent=2) + "\n"
            write_bytes(note.encode(), claim.output / RUN)
        processes.barrier()
        yield


def require_free(claim: RunClaim) -> None:
    """Make sure that a run could hold its output folder; leave nothing behind."""
    _refuse_foreign(claim.output)
    if claim.output.is_dir():
        with _locked(claim.output):
            _refuse_others(claim)


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Keep every other process out; a lock ends with the process that holds it, however it ends."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = FileLock(output / ".lock", blocking=False)
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{output} is in use by {_holder(output)}; wait until it ends, or choose another "
            "output folder."
        ) from None
    except OSError as error:
        raise UserError(
            f"{output} cannot be used ({error.strerror}); choose another output folder."
        ) from None
    holder = output / _HOLDER
    try:
        write_bytes(f"process {os.getpid()} on {socket.gethostname()}".encode(), holder)
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


def _holder(output: Path) -> str:
    try:
        return (output / _HOLDER).read_text(encoding="utf-8")
    except OSError:  # it has just begun, or has just ended
        return "another process"


def _refuse_foreign(output: Path) -> None:
    if (output / RUN).is_file() or not output.is_dir():
        return
    if any(not path.name.startswith(".") for path in output.iterdir()):
        raise UserError(f"{output} is not empty and holds no run; choose another output folder.")


def _refuse_others(claim: RunClaim) -> None:
    output, note = claim.output, claim.output / RUN
    if not note.is_file():
        return
    wanted = _flat(json.loads(json.dumps(claim.identity)))
    held = _flat(read_json(note, f"remove it to begin the run in {output} anew"))
    differing = [
        name
        for name in sorted(held.keys() | wanted.keys())
        if held.get(name) != wanted.get(name) and not _grown(name, held, wanted, claim.growing)
    ]
    if not differing or not _has_work(output):
        return
    told = ", ".join(
        f"{name} is {_short(held.get(name))} there and {_short(wanted.get(name))} now"
        for name in differing[:_TOLD]
    )
    more = f", and {len(differing) - _TOLD} more" if len(differing) > _TOLD else ""
    raise UserError(
        f"{output} holds a run with other settings: {told}{more}; give the same ones, or choose "
        f"another output folder (to train on from what this one has made, {claim.onwards})."
    )


def _grown(
    name: str, held: Mapping[str, object], wanted: Mapping[str, object], growing: Set[str]
) -> bool:
    before, now = held.get(name), wanted.get(name)
    return name in growing and isinstance(before, int) and isinstance(now, int) and now > before


def _has_work(output: Path) -> bool:
    """Return whether anything was trained: until then corrected settings may replace the run."""
    return any(output.rglob("checkpoints/step-*")) or any(output.rglob("model.safetensors"))


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings under dotted names; a list is one value."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return "not set" if value is None else text if len(text) <= 60 else f"{text[:57]}..."


def text_identity(text: EncoderFiles | EmbeddingStore) -> dict[str, object]:
    """Return digests of what embeddings depend on, computed or stored; not the encoder's mode."""
    if isinstance(text, EmbeddingStore):
        held = text.conventions
        return {"model": held.model, "tokenizer": held.tokenizer}
    return {"model": text.model_digest, "tokenizer": text.tokenizer_digest}
