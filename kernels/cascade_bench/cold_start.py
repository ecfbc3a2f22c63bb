"""One picture in a fresh process: what `cascade bench stages` starts and times.

    python -m cascade_bench.cold_start BUNDLE PROVIDER DEVICE STEPS OPTIONS

Prints a line of JSON once the picture is there, in MiB: the most memory that the process took, and
what is taken of the GPU, by whomever. STEPS of 0 are the checkpoint's own;
OPTIONS are those of the bundle's own engine, as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Final

import torch

from cascade.config.engine import EngineOptions
from cascade.environment import peak_memory
from cascade.errors import UserError
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.manifest import read_manifest

ENGINE: Final = "engine"
PROMPT: Final = "a photo of a dog on the beach"
_MEBIBYTE: Final = 2**20


def engine_of(provider: str, own: EngineOptions | None = None) -> tuple[str | None, EngineOptions]:
    """Return which engine answers: the bundle's own, or PyTorch, `eager` or `compiled`."""
    if provider == ENGINE:
        return None, own or EngineOptions()
    return "torch", EngineOptions(compiled=provider == "compiled")


def main(folder: str, provider: str, device: str, steps: str, own: str) -> None:
    """Draw it."""
    kind, options = engine_of(provider, EngineOptions.model_validate_json(own))
    # Not `Bundle.open`: proving the files' hashes is no part of what a server does at its start.
    bundle = Bundle(Path(folder), read_manifest(Path(folder)))
    cascade = bundle.cascade(device=device, engine=kind, options=options)
    cascade.sample(PROMPT, [0], steps=int(steps) or None)
    used = None
    if torch.device(device).type == "cuda":
        free, total = torch.cuda.mem_get_info(torch.device(device))
        used = (total - free) / _MEBIBYTE
    peak = peak_memory(torch.device("cpu")) / _MEBIBYTE
    sys.stdout.write(json.dumps({"peak": peak, "device": used}) + "\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        sys.exit(str(error))
