"""Pictures of a cascade as files: one PNG per picture and stage, and a grid.

A folder holds pictures of several calls. `STAGE/NUMBER-SEED.png` is of a prompt that has this
number in the folder: the same prompt by the same cascade and settings keeps its number, another one
gets the next that is free. So nothing is ever replaced, and a call that was stopped goes on.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Final

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cascade.data.decoding import UNREADABLE
from cascade.data.images import grid, png_note, read_image, to_pil, write_png
from cascade.errors import UserError
from cascade.files import require_writable
from cascade.pipeline import Cascade
from cascade.progress import progress_bar, stage_steps
from cascade.request import Request

_NAME: Final = re.compile(r"(\d+)-(-?\d+)\.png")
_Text = tuple[str, str | None]  # a prompt, and what guidance leads away from
_WIDEST: Final = 8192  # pixels of a grid's side: 200 MB decoded, and no viewer refuses it


@dataclass(frozen=True)
class Gallery:
    """The files that a call has left in its folder.

    Attributes:
        grid: the path of the grid.
        pictures: how many the call asked for.
        kept: how many of them were there already, drawn by the same cascade and settings.
        shown: how many of them the grid shows.
    """

    grid: Path
    pictures: int
    kept: int
    shown: int


def sample_to_folder(cascade: Cascade, request: Request, folder: Path, columns: int) -> Gallery:
    """Sample what a folder does not have yet, batch by batch, with a progress bar.

    Every picture's PNG text tells its prompt, seed, cascade and settings, and a hash of all that it
    depends on but its seed. A batch is drawn whole where one of its pictures is missing: the files
    are then those of a call that was never stopped.

    Args:
        folder: gets `STAGE/NUMBER-SEED.png`, and a grid of the last stage's.
    """
    require_writable(folder)
    album = _Album(cascade, request, folder)
    missing = [rows for rows in request.batches() if not all(map(album.has, rows))]
    kept = sum(map(album.has, range(len(request.seeds))))
    if missing:
        with progress_bar() as bar:
            for rows, drawn in cascade.sample_batches(request, missing, stage_steps(bar)):
                pictures = [to_pil(images) for images in drawn.stages.values()]
                for at, row in enumerate(rows):
                    album.write(row, [images[at] for images in pictures])
    path, shown = album.write_grid(columns)
    return Gallery(path, len(request.seeds), kept, shown)


class _Album:
    """The pictures of one request in a folder.

    Attributes:
        stages: names of the stages that draw.
        numbers: of each text, as soon as it is asked for.
    """

    def __init__(self, cascade: Cascade, request: Request, folder: Path) -> None:
        self.cascade, self.request, self.folder = cascade, request, folder
        self.stages = [setting.stage for setting in request.settings]
        self.numbers: dict[_Text, int] = {}
        self._chain = list(_chain(cascade, request))
        self._held = self._index()
        self._begun: set[_Text] = set()

    def paths(self, row: int) -> list[Path]:
        """Return the files of an image, one per stage."""
        text = self._text(row)
        if text not in self.numbers:
            self.numbers[text] = self._number(text)
        name = f"{self.numbers[text]:02d}-{self.request.seeds[row]}.png"
        return [self.folder / stage / name for stage in self.stages]

    def has(self, row: int) -> bool:
        """Return whether all files of an image are there."""
        return all(path.is_file() for path in self.paths(row))

    def write(self, row: int, pictures: Sequence[Image.Image]) -> None:
        """Write a picture of every stage; what is there stays."""
        text = self._text(row)
        if text not in self._begun:
            self._begun.add(text)
            self._settle(text)
        for at, (path, wanted) in enumerate(zip(self.paths(row), self._hashes(text), strict=True)):
            if not path.exists():
                write_png(pictures[at], path, self._note(row, at, wanted))
            elif _fingerprint(path) != wanted:
                raise UserError(f"{path} was written by another call; start the same one again.")

    def write_grid(self, columns: int) -> tuple[Path, int]:
        """Write the last stage's pictures as one; return where, and how many it shows."""
        paths = [self.paths(row)[-1] for row in range(len(self.request.seeds))]
        with Image.open(paths[0]) as first:
            across, down = (max(1, _WIDEST // (side + 2)) for side in first.size)
        rows = [paths[at : at + columns][:across] for at in range(0, len(paths), columns)][:down]
        shown = [path for row in rows for path in row]
        told = json.dumps([[path.name, _fingerprint(path)] for path in shown])
        content = hashlib.sha256(told.encode()).hexdigest()
        names = chain(["grid.png"], (f"grid-{number}.png" for number in count(1)))
        places = (self.folder / name for name in names)
        path = next(one for one in places if not one.exists() or _fingerprint(one) == content)
        if not path.exists():
            note = png_note({"fingerprint": content})
            write_png(grid([read_image(one) for one in shown], len(rows[0])), path, note)
        return path, len(shown)

    def _text(self, row: int) -> _Text:
        return self.request.prompts[row], self.request.negatives[row]

    def _hashes(self, text: _Text) -> list[str]:
        """Hash, for each stage, all that a prompt's images depend on but their seed."""
        parts = (json.dumps([before, *text]) for before in self._chain)
        return [hashlib.sha256(part.encode()).hexdigest() for part in parts]

    def _index(self) -> dict[int, set[tuple[str, str | None]]]:
        """Stage and hash of the pictures of each number in the folder."""
        held: dict[int, set[tuple[str, str | None]]] = {}
        for path in self.folder.glob("*/*.png"):
            match = _NAME.fullmatch(path.name)
            if match:
                of_number = held.setdefault(int(match[1]), set())
                if path.parent.name in self.stages:
                    of_number.add((path.parent.name, _fingerprint(path)))
        return held

    def _number(self, text: _Text) -> int:
        """Return the number that a prompt has in the folder, or the first that is free."""
        wanted = set(zip(self.stages, self._hashes(text), strict=True))
        mine = (number for number, held in sorted(self._held.items()) if held and held <= wanted)
        taken = self._held.keys() | self.numbers.values()
        return next(chain(mine, (number for number in count() if number not in taken)))

    def _settle(self, text: _Text) -> None:
        """Take another number if a call that began at the same time has come first."""
        wanted = dict(zip(self.stages, self._hashes(text), strict=True))
        for path in self.folder.glob(f"*/{self.numbers[text]:02d}-*.png"):
            stage = path.parent.name
            if stage in wanted and _fingerprint(path) != wanted[stage]:
                self._held = self._index()
                del self.numbers[text]
                self.numbers[text] = self._number(text)
                return

    def _note(self, row: int, at: int, fingerprint: str) -> PngInfo:
        """Make the text of an image's PNG."""
        notes = self.request.notes(row, at, self.cascade.manifest.name)
        return png_note(notes | {"fingerprint": fingerprint})


def _chain(cascade: Cascade, request: Request) -> Iterator[str]:
    """Hash, for each stage, what the images of all prompts depend on up to there."""
    digest = hashlib.sha256(cascade.encoder.digest.encode())
    side = cascade.stages[0].config.size
    if request.size != (side, side):
        digest.update("{}x{}".format(*request.size).encode())
    for stage, setting in zip(cascade.stages, request.settings, strict=False):
        own = stage.config.low_res.sampling_level if stage.config.low_res else None
        level = setting.level or own
        digest.update(stage.fingerprint().encode())
        digest.update(setting.sampler.model_dump_json().encode())
        digest.update(level.model_dump_json().encode() if level else b"")
        yield digest.hexdigest()


def _fingerprint(path: Path) -> str | None:
    """Read the hash in a PNG's text; None where there is none, or the file is no image."""
    try:
        with Image.open(path) as picture:
            told = getattr(picture, "text", {}).get("fingerprint")
    except UNREADABLE:
        return None
    return None if told is None else str(told)
