"""Large files in parts, for ways that carry only small ones; the parts prove what they make.

    python tools/gpu/parts.py split sr256_photos.bin carried/data/packs
    python tools/gpu/parts.py join results/result.tar.parts.json .

`split` writes `NAME.part-00`, ... and `NAME.parts.json`, which holds the sha256 of the file and of
every part; `join` checks both.
"""

import json
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Annotated, Final

import typer

from cascade.cli.mistakes import answer
from cascade.errors import UserError
from cascade.files import write_bytes
from cascade.stage import read_json

MANIFEST: Final = ".parts.json"
MEBIBYTES: Final = 15

app = typer.Typer(add_completion=False)


@app.command()
def split(
    file: Annotated[Path, typer.Argument(help="What to divide.")],
    folder: Annotated[Path, typer.Argument(help="Where the parts go.")],
    mebibytes: Annotated[float, typer.Option(min=0.001, help="Of a part, at most.")] = MEBIBYTES,
) -> None:
    """Divide a file into parts and a manifest."""
    if not file.is_file():
        raise UserError(f"There is no file {file}; check the path.")
    length, parts = int(mebibytes * 2**20), {}
    with file.open("rb") as source:
        for number, data in enumerate(iter(lambda: source.read(length), b"")):
            name = f"{file.name}.part-{number:02}"
            write_bytes(data, folder / name)
            parts[name] = sha256(data).hexdigest()
    manifest = {"name": file.name, "sha256": digest(file), "parts": parts}
    # Last: a manifest stands for a whole set.
    write_bytes((json.dumps(manifest, indent=1) + "\n").encode(), folder / (file.name + MANIFEST))


@app.command()
def join(
    manifest: Annotated[Path, typer.Argument(help="The `.parts.json` beside the parts.")],
    folder: Annotated[Path, typer.Argument(help="Where the file goes.")],
) -> None:
    """Put a file together from its parts."""
    name, parts, whole = _read(manifest)
    lacking = [part for part in parts if not (manifest.parent / part).is_file()]
    if lacking:
        raise UserError(f"{', '.join(lacking)} lack beside {manifest}; fetch them too.")
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}.partial"
    with partial.open("wb") as target:
        for part, expected in parts.items():
            data = (manifest.parent / part).read_bytes()
            if sha256(data).hexdigest() != expected:
                raise UserError(f"{manifest.parent / part} is damaged; fetch it again.")
            target.write(data)
    if digest(partial) != whole:
        raise UserError(f"The parts of {manifest} make another file; fetch all of them again.")
    partial.replace(folder / name)


def join_complete(folder: Path) -> None:
    """Put together, in place, every file below `folder` whose parts are all there."""
    for manifest in sorted(folder.rglob(f"*{MANIFEST}")):
        parts = [manifest.parent / part for part in _read(manifest)[1]]
        if all(part.is_file() for part in parts):
            join(manifest, manifest.parent)
            for path in (manifest, *parts):
                path.unlink()


def digest(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _read(manifest: Path) -> tuple[str, dict[str, str], str]:
    """The file's name, the sha256 of each part by name, and that of the file."""
    held = read_json(manifest)
    parts = held.get("parts")
    if not isinstance(parts, dict) or "name" not in held:
        raise UserError(f"{manifest} tells no parts; give a manifest that `split` wrote.")
    names = [str(held["name"]), *map(str, parts)]
    if any(Path(name).name != name for name in names):
        raise UserError(f"{manifest} names files of other folders; fetch it again.")
    return names[0], {str(name): str(value) for name, value in parts.items()}, str(held["sha256"])


if __name__ == "__main__":
    answer(app)
