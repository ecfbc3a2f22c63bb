"""Sorting of a folder's files into pictures and others."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cascade.data.decoding import is_picture
from cascade.errors import UserError

PICTURE_SUFFIXES: Final = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
)
"""Of files that are meant to be pictures, even where they cannot be read."""
MASK_SUFFIX: Final = "-masklabel.png"  # OneTrainer's name for a mask beside its photo
# Cameras' own formats: some are TIFFs, and what is read of them is a small preview.
_RAW: Final = frozenset(
    {
        *(".arw", ".cr2", ".cr3", ".crw", ".dng", ".nef", ".nrw", ".orf"),
        *(".pef", ".raf", ".rw2", ".srw", ".x3f"),
    }
)
# Other pictures that Pillow does not read as such.
_FOREIGN: Final = frozenset({".heic", ".heif", ".hif", ".jxl", ".psd", ".svg", ".xcf"})
FOREIGN_SUFFIXES: Final = _RAW | _FOREIGN
"""Of pictures that cannot be read here."""
_HEIF_BRANDS: Final = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")
_FEW = 5


@dataclass(frozen=True)
class SortedFiles:
    """The files of a folder.

    Attributes:
        pictures: those that are pictures, and those that are meant to be and are damaged.
        foreign: names of pictures that cannot be read here.
        others: names of what is no picture.
        dangling: names of links that lead nowhere.
    """

    pictures: tuple[Path, ...] = ()
    foreign: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    dangling: tuple[str, ...] = ()

    def notes(self) -> Iterator[str]:
        """Yield what a person should know, in sentences."""
        unused = len(self.foreign) + len(self.others) + len(self.dangling)
        count = len(self.pictures) + unused
        if self.foreign:
            yield (
                f"{len(self.foreign)} of {count} files are pictures that cannot be read here: "
                f"{_named(self.foreign)}; convert them to JPEG."
            )
        if self.dangling:
            yield f"Links that lead nowhere: {_named(self.dangling)}."
        if self.others:
            yield f"Skipped, no pictures: {_named(self.others)}."
        if unused > len(self.pictures):
            yield f"Only {len(self.pictures)} of {count} files are used as pictures."


def find_pictures(folder: Path) -> SortedFiles:
    """Sort a folder's files as `sort_files`; it must hold pictures."""
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; give a folder of 3 to 5 photos.")
    found = sort_files(folder)
    if not found.pictures:
        raise UserError(f"The folder {folder} holds no pictures{_instead(folder, found)}.")
    return found


def sort_files(folder: Path) -> SortedFiles:
    """Sort the files directly inside a folder by their content, in the order of their names.

    Hidden files and masks beside photos are left out.
    """
    pictures, foreign, others, dangling = [], [], [], []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.endswith(MASK_SUFFIX) or path.is_dir():
            continue
        if not path.exists():
            dangling.append(path.name)
        elif not path.is_file():  # a pipe would never end
            others.append(path.name)
        elif _is_foreign(path):
            foreign.append(path.name)
        elif path.suffix.lower() in PICTURE_SUFFIXES or is_picture(path):
            pictures.append(path)
        else:
            others.append(path.name)
    return SortedFiles(tuple(pictures), tuple(foreign), tuple(others), tuple(dangling))


def _instead(folder: Path, found: SortedFiles) -> str:
    """Return what a folder without pictures has instead, and what to do."""
    if found.foreign:
        return f" that can be read here ({_named(found.foreign)}); convert them to JPEG"
    within = [
        inner.name
        for inner in sorted(folder.iterdir())
        if inner.is_dir() and any(is_picture(file) for file in inner.iterdir() if file.is_file())
    ]
    if within:
        return f" itself, but its folder '{within[0]}' does; give that one"
    rest = (*found.others, *found.dangling)
    instead = f" (it holds {_named(rest)})" if rest else ""
    return f"{instead}; add .jpg, .png or .webp files"


def _is_foreign(path: Path) -> bool:
    """Report whether a file is a picture of a kind that Pillow does not read, whatever its name."""
    if path.suffix.lower() in _RAW:
        return True
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError:  # reading it will say why
        return False
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return True
    return path.suffix.lower() in _FOREIGN and not is_picture(path)


def _named(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _FEW} more" if len(names) > _FEW else ""
    return ", ".join(names[:_FEW]) + more
