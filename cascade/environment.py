"""This process's machine: the devices it has, and where a figure was measured."""

import datetime
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from cascade.errors import UserError

_DEVICES = ("cpu", "cuda", "mps", "xpu")


def usable_device(name: torch.device | str | None) -> str:
    """The device of this name, or the GPU where there is one.

    Raises:
        UserError: there is no such device.
    """
    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(name).type not in _DEVICES:
            raise RuntimeError(f"known are {', '.join(_DEVICES)}")
        torch.empty(0, device=name)
    # A torch without CUDA asserts that it has it; what is no name is a TypeError, or a ValueError.
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"There is no device '{name}' ({reason}); give 'cpu'.") from None
    return str(name)


def environment() -> dict[str, str]:
    """Describe this process's machine and software, one line each."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "machine": _machine(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    """The processor's name; Linux tells it in a file only."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit of the checkout this file lies in; an installed package has none."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "none (installed package)"
    return result.stdout.strip()
