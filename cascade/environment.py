"""This process's machine: the devices it has, and where a figure was measured."""

import datetime
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, NoReturn

import torch

from cascade.errors import UserError

DIRTY: Final = "-dirty"
"""Ends the name of a commit whose checkout was changed since."""

UNKNOWN: Final = "unknown"
"""The commit of a copy of the checkout without its history."""

_LIMITS: Final = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)
_CODE = (".py", ".toml")
_DEVICES = ("cpu", "cuda", "mps", "xpu")
# What decides the speed and the rounding of bf16 and of 8 bits.
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")


def usable_device(name: torch.device | str | None) -> str:
    """Return the device of this name; None is the GPU where there is one."""
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


def device_memory(device: torch.device) -> int:
    """Return the memory of a GPU, or what this machine, or container, grants a process; bytes."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [path.read_text(encoding="ascii").strip() for path in _LIMITS if path.is_file()]
    return min([memory, *(int(limit) for limit in limits if limit.isdigit())])


def held_memory(device: torch.device) -> int:
    """Return what this process holds now: allocated on a GPU, else resident; bytes.

    Raises:
        UserError: this system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _resident("VmRSS") or _untold()


def peak_memory(device: torch.device) -> int:
    """Return the most that this process has held: allocated on a GPU, else resident; bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Asked first: on Linux a process inherits `ru_maxrss` of the one that started it.
    if peak := _resident("VmHWM"):
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # in bytes there, in KiB elsewhere


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory` be the most from now on.

    Raises:
        UserError: this system has no way to.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5)
    except OSError:
        _untold()


def _untold() -> NoReturn:
    raise UserError(
        "This system does not tell what a process holds at its peak; measure on Linux, or on a GPU."
    )


def environment() -> dict[str, str]:
    """Describe this process's machine and software, one line each."""
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit(),
        "machine": _machine(),
        "features": features(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()}, {torch.get_num_threads()} threads"


def processor() -> str:
    """Return the processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def features() -> str:
    """Describe the vector arithmetic that PyTorch uses and that the processor has."""
    has = set(_cpuinfo("flags").split())
    used = torch.backends.cpu.get_cpu_capability()
    return ", ".join([f"PyTorch uses {used}", *(name for name in _FEATURES if name in has)])


def _cpuinfo(key: str) -> str:
    """Read one line of `/proc/cpuinfo`, of the first processor."""
    return _line(Path("/proc/cpuinfo"), key)


def _resident(key: str) -> int:
    """Read a size of this process's memory, bytes; 0 where there is none."""
    size = _line(Path("/proc/self/status"), key).split()
    return 1024 * int(size[0]) if size else 0


def _line(file: Path, key: str) -> str:
    """Read what stands behind the colon of the first line of a key; empty where there is none."""
    if file.is_file():
        for line in file.read_text(encoding="utf-8").splitlines():
            if line.startswith(key):
                return line.partition(":")[2].strip()
    return ""


def commit() -> str:
    """Return the commit of this code: its checkout's, or the one in DREAMCASCADE_COMMIT."""
    told = os.environ.get("DREAMCASCADE_COMMIT")
    if told:
        return told
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # else a repository around an environment would answer
        return _installed()
    try:
        name = _git(root, "describe", "--always")
        changes = _git(root, "status", "--porcelain", "--untracked-files=all").splitlines()
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    # Of files that git does not know yet, only code is part of what runs.
    changed = any(not line.startswith("??") or line.endswith(_CODE) for line in changes)
    return name + DIRTY * changed


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _installed() -> str:
    try:
        return f"none (version {version('dreamcascade')})"
    except PackageNotFoundError:
        return UNKNOWN
