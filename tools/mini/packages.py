"""The packages that the drawings come in: fetched at pinned versions, checked and unpacked.

    python tools/mini/packages.py --output build/mini/packages

`sources.toml` says which. An archive that is there already is checked again and not fetched again.
"""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer

from cascade.cli.console import run_command
from cascade.errors import UserError

SOURCES: Final = Path(__file__).with_name("sources.toml")


@dataclass(frozen=True)
class Package:
    """A package of the npm registry at a pinned version."""

    name: str
    version: str
    integrity: str  # of the archive, as the registry tells it: "sha512-" and base64

    @property
    def archive(self) -> str:
        """The file name that `npm pack` gives the archive."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def read_packages(sources: Path = SOURCES) -> dict[str, Package]:
    """Read which package holds the drawings of each style."""
    with sources.open("rb") as file:
        drawings = tomllib.load(file)["drawings"]
    return {
        style: Package(entry["package"], entry["version"], entry["integrity"])
        for style, entry in drawings.items()
    }


def fetch(packages: Mapping[str, Package], folder: Path) -> dict[str, Path]:
    """Fetch and unpack what `folder` lacks; return the unpacked folder of each key."""
    folder.mkdir(parents=True, exist_ok=True)
    unpacked = {}
    for key, package in packages.items():
        archive = folder / package.archive
        if not archive.exists():
            _pack(package, folder)
        check(archive, package)
        unpacked[key] = _unpack(archive, package)
    return unpacked


def check(archive: Path, package: Package) -> None:
    """Compare an archive with its pinned checksum."""
    algorithm, _, expected = package.integrity.partition("-")
    found = base64.b64encode(hashlib.new(algorithm, archive.read_bytes()).digest()).decode()
    if found != expected:
        raise UserError(
            f"{archive} is not {package.name} {package.version} as pinned in {SOURCES.name}; "
            "delete it and fetch again."
        )


def _pack(package: Package, folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("The drawings are fetched with npm, which is missing; install Node.js.")
    named = f"{package.name}@{package.version}"
    done = subprocess.run(
        [npm, "pack", named, "--silent", "--pack-destination", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise UserError(
            f"npm cannot fetch {named}; check the network and the registry that npm is set to: "
            f"{' '.join(done.stderr.split())[:300] or 'it said nothing'}"
        )


def _unpack(archive: Path, package: Package) -> Path:
    """Unpack beside the archive, whole or not at all."""
    target = archive.with_suffix("")
    if not target.exists():
        partial = archive.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        partial.rename(target)
    return target / "package"


def main(
    output: Annotated[Path, typer.Option(help="Folder for the packages.")] = Path(
        "build/mini/packages"
    ),
) -> None:
    """Fetch the drawings' packages."""
    for style, folder in fetch(read_packages(), output).items():
        typer.echo(f"{style}: {folder}")


if __name__ == "__main__":
    run_command(lambda: typer.run(main))
