"""Diagnosis of this machine: what the project can use, and what is amiss."""

import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Final

import torch
from packaging.requirements import Requirement
from rich.console import Group, RenderableType
from rich.table import Table

from cascade.environment import commit, device_memory, processor
from cascade.errors import UserError
from cascade.files import require_writable
from cascade.model.precision import computes_bf16
from cascade.progress import amount
from cascade_kernels.dispatch import unsupported_reason

PROJECT: Final = "dreamcascade"
"""The name under which the project is installed."""


@dataclass(frozen=True)
class Diagnosis:
    """A machine's devices and packages.

    Attributes:
        software: the project, Python and what the project cannot do without.
        devices: the CPU and every GPU, and whether the Triton kernels run there.
        extras: what of each extra is installed, and what is missing.
        folders: where things are kept that can be made again.
        faults: what is amiss, a sentence each.
    """

    software: dict[str, str]
    devices: dict[str, str]
    extras: dict[str, str]
    folders: dict[str, str]
    faults: tuple[str, ...]

    def json(self) -> str:
        """Return the same for programs."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def table(self) -> RenderableType:
        """Return a table of each part."""
        parts = {
            "Software": self.software,
            "Devices": self.devices,
            f"Extras: pip install '{PROJECT}[NAME]'": self.extras,
            "Folders": self.folders,
        }
        return Group(*(_table(title, rows) for title, rows in parts.items()))


def diagnose(folders: Mapping[str, Path]) -> Diagnosis:
    """Look at the software, the devices and these folders."""
    faults: list[str] = []
    needed, extras = _requirements()
    software = {PROJECT: f"{version(PROJECT)}, commit {commit()}"}
    software["python"] = platform.python_version()
    for requirement in needed:
        told, missing = _installed(requirement)
        software[requirement.name] = told
        if missing:
            faults.append(f"{requirement} is needed and {told}; install it with pip.")
    return Diagnosis(
        software=software,
        devices=dict(_devices()),
        extras={name: _extra(wanted) for name, wanted in extras.items()},
        folders={name: _folder(path, faults) for name, path in folders.items()},
        faults=tuple(faults),
    )


def _requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """List what the installed project requires: always, and by extra."""
    parsed = [Requirement(line) for line in requires(PROJECT) or ()]
    names = metadata(PROJECT).get_all("Provides-Extra") or []
    of = {name: [one for one in parsed if _holds(one, name) and not _holds(one)] for name in names}
    return [one for one in parsed if _holds(one)], of


def _holds(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _installed(requirement: Requirement) -> tuple[str, bool]:
    """Return a package's version, in words, and whether it is missing or too old."""
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return "not installed", True
    if requirement.specifier.contains(found, prereleases=True):
        return found, False
    return f"{found}, which is not {requirement.specifier}", True


def _extra(wanted: list[Requirement]) -> str:
    states = {one.name: _installed(one) for one in wanted}
    missing = [name for name, (_, amiss) in states.items() if amiss]
    if not missing:
        return "installed" if states else "nothing of it is for this machine"
    return f"missing: {', '.join(missing)}"


def _devices() -> Iterator[tuple[str, str]]:
    cpu = torch.device("cpu")
    yield "cpu", f"{processor()}, {torch.get_num_threads()} threads, {_traits(cpu)}"
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        major, minor = torch.cuda.get_device_capability(device)
        name = torch.cuda.get_device_name(device)
        yield str(device), f"{name}, sm_{major}{minor}, {_traits(device)}"


def _traits(device: torch.device) -> str:
    bf16 = "bf16" if computes_bf16(device) else "no bf16"
    reason = unsupported_reason(device, torch.float32)
    kernels = f"no Triton kernels ({reason})" if reason else "Triton kernels"
    return f"{amount(device_memory(device))}, {bf16}, {kernels}"


def _folder(path: Path, faults: list[str]) -> str:
    try:
        require_writable(path)
    except UserError as error:
        faults.append(str(error))
    held = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return f"{path}, {amount(held)}"


def _table(title: str, rows: Mapping[str, str]) -> Table:
    table = Table("", "", title=title, title_justify="left", box=None, show_header=False)
    for name, told in rows.items():
        table.add_row(f"  {name}", told)
    return table
