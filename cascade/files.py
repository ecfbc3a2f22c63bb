"""Reading what people write, and writing files so that nobody ever sees half of one."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cascade.errors import UserError

_WRITTEN_WITHIN: Final = 60.0  # seconds; a file takes less


def read_text(path: Path, mend: str = "save it as UTF-8") -> str:
    """Read a text file in UTF-8, with or without a byte-order mark.

    Args:
        mend: what to do about a file that cannot be read, for the error's sentence.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}); {mend}.") from None
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {mend}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {mend}.") from None


def read_json(path: Path, mend: str = "copy the checkpoint again") -> dict[str, object]:
    """Read a file that holds one JSON object."""
    try:
        value = json.loads(read_text(path, mend))
    except (ValueError, RecursionError) as error:  # a number of 5000 digits is a ValueError too
        raise UserError(f"{path} is not whole JSON ({error}); {mend}.") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; {mend}.")
    return value


def read_index(path: Path, mend: str = "copy the checkpoint again") -> dict[str, Path]:
    """Read an index of shards: in which file of its folder each tensor lies."""
    placed = read_json(path, mend).get("weight_map")
    if not isinstance(placed, dict):
        raise UserError(f"{path} has no 'weight_map'; {mend}.")
    for file in placed.values():
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".."):
            raise UserError(
                f"{path} names {str(file)[:60]!r}, which is no file of its folder; {mend}."
            )
    return {name: path.parent / file for name, file in placed.items()}


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file atomically: to the neighbour that is given, then renamed into place.

    Runs that make the same file at the same time do not disturb each other.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        partial.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); free the place or choose "
            "another one."
        ) from None
    finally:
        with suppress(OSError):
            partial.unlink()


def write_bytes(data: bytes, path: Path) -> None:
    """Write a file; see `replacing`."""
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(values: Mapping[str, object], path: Path) -> None:
    """Write a JSON object; see `replacing`."""
    write_bytes((json.dumps(values, indent=2) + "\n").encode(), path)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file of any size; see `replacing`."""
    with replacing(target) as partial:
        shutil.copyfile(source, partial)


@contextmanager
def scratch() -> Iterator[Path]:
    """Give a temporary folder."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except OSError as error:
        raise UserError(
            f"The temporary folder {tempfile.gettempdir()} cannot be written "
            f"({error.strerror or error}); free it, or name another one in TMPDIR."
        ) from None


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Fill a new folder, which is removed if that does not come about: a full disk, or Ctrl-C."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def remove_partials(folder: Path, of: Container[str] | None = None) -> None:
    """Remove what `replacing` left in a folder when its process was killed.

    What is new may be another's, who is writing it at this moment.

    Args:
        of: the files that they were to become; all if left out.
    """
    for partial in folder.glob(".*.partial"):
        if of is not None and partial.name[1:].rsplit(".", 2)[0] not in of:
            continue
        with suppress(FileNotFoundError):  # renamed or removed by now
            if time.time() - partial.stat().st_mtime > _WRITTEN_WITHIN:
                partial.unlink()


def user_cache(name: str) -> Path:
    """Return the folder of a cache of the user's."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "dreamcascade" / name


def require_writable(folder: Path) -> None:
    """Make sure that files can be written into a folder, made if need be; leave nothing behind."""
    made = [place for place in (folder, *folder.parents) if not os.path.lexists(place)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"Nothing can be written into {folder} ({error.strerror}); choose another folder."
        ) from None
    finally:
        for place in made:
            with suppress(OSError):  # never made, or in use by now
                place.rmdir()
