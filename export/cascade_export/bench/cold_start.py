"""One picture in a fresh process: what `cascade_export.bench.stages` starts and times.

    python -m cascade_export.bench.cold_start BUNDLE PROVIDER DEVICE STEPS

Prints a line of JSON once the picture is there, in MiB: the most memory that the process took, and
what is taken of the GPU, by whomever. STEPS of 0 are the checkpoint's own.
"""

import json
import sys
from pathlib import Path
from typing import Final

import torch

from cascade.config.engine import EngineOptions
from cascade.config.stage import SamplerConfig
from cascade.errors import UserError
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.manifest import read_manifest

ENGINE: Final = "engine"
_PROMPT: Final = "a photo of a dog on the beach"
_MEBIBYTE: Final = 2**20


def engine_of(provider: str) -> tuple[str | None, EngineOptions]:
    """Which engine answers for a provider: the bundle's own, or PyTorch, `eager` or `compiled`."""
    if provider == ENGINE:
        return None, EngineOptions()
    return "torch", EngineOptions(compiled=provider == "compiled")


def peak_memory() -> float | None:
    """The most memory that this process has held, MiB; None where the system does not tell.

    Not `getrusage`: on Linux a new process inherits that of the one which started it.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    told = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return told[0] / 1024 if told else None


def main(folder: str, provider: str, device: str, steps: str) -> None:
    """Draw it.

    Raises:
        UserError: the bundle is damaged, or the provider cannot run here.
    """
    kind, options = engine_of(provider)
    # Not `Bundle.open`: proving the files' hashes is no part of what a server does at its start.
    bundle = Bundle(Path(folder), read_manifest(Path(folder)))
    cascade = bundle.cascade(device=device, engine=kind, options=options)
    changes: dict[str, object] = {"steps": int(steps), "timesteps": None} if int(steps) else {}
    samplers = {
        stage.config.name: SamplerConfig.parse(
            stage.config.sampler.model_dump() | changes, "the benchmark's settings"
        )
        for stage in cascade.stages
    }
    cascade.sample(_PROMPT, [0], samplers=samplers)
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
