"""One picture in a fresh process: what `cascade bench stages` starts and times.

    python -m cascade_bench.cold_start BUNDLE PROVIDER DEVICE STEPS

Prints a line of JSON once the picture is there, in MiB: the most memory that the process took, and
what is taken of the GPU, by whomever. STEPS of 0 are the checkpoint's own.
"""

import json
import sys
from pathlib import Path
from typing import Final

import torch

from cascade.config.engine import EngineOptions
from cascade.errors import UserError
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.manifest import read_manifest

ENGINE: Final = "engine"
PROMPT: Final = "a photo of a dog on the beach"
_MEBIBYTE: Final = 2**20


def engine_of(provider: str) -> tuple[str | None, EngineOptions]:
    """Return which engine answers: the bundle's own, or PyTorch, `eager` or `compiled`."""
    if provider == ENGINE:
        return None, EngineOptions()
    return "torch", EngineOptions(compiled=provider == "compiled")


def peak_memory() -> float | None:
    """Return the most memory that this process has held, MiB; None where nobody tells.

    Not `getrusage`: on Linux a new process inherits that of the one which started it.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    told = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return told[0] / 1024 if told else None


def main(folder: str, provider: str, device: str, steps: str) -> None:
    """Draw it."""
    kind, options = engine_of(provider)
    # Not `Bundle.open`: proving the files' hashes is no part of what a server does at its start.
    bundle = Bundle(Path(folder), read_manifest(Path(folder)))
    cascade = bundle.cascade(device=device, engine=kind, options=options)
    cascade.sample(PROMPT, [0], steps=int(steps) or None)
    used = None
    if torch.device(device).type == "cuda":
        free, total = torch.cuda.mem_get_info(torch.device(device))
        used = (total - free) / _MEBIBYTE
    sys.stdout.write(json.dumps({"peak": peak_memory(), "device": used}) + "\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
