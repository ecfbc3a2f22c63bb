"""A `Library` of one cascade folder that PyTorch runs."""

import hashlib
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch

from cascade.config.encoder import EncoderMode, LoadedMode, encoder_mode
from cascade.config.folders import CascadeManifest, cascade_folder
from cascade.config.stage import StageConfig
from cascade.environment import usable_device
from cascade.errors import UserError
from cascade.pipeline import Cascade, Opened
from cascade.stage import meta_network
from cascade.text.encoder import choose_mode
from cascade.text.files import EncoderFiles

# Of a value of the text encoder; block by block it is hardly in memory.
_BYTES: Final[Mapping[LoadedMode, int]] = {"float32": 4, "bfloat16": 2, "int8": 1, "layerwise": 0}


class CascadeFolder:
    """The cascade of a folder, or one that ships with the project by its name; it is called "".

    Args:
        path: as of `Cascade.load`.
        device: where the weights go; None is the GPU where there is one.
        embeddings: a store that stands in for the text encoder.
        encoder_mode: how the text encoder's weights are held.

    Raises:
        UserError: no such cascade or device, or its settings are missing or damaged.
    """

    exact = False  # PyTorch takes other kernels for other numbers of rows

    def __init__(
        self,
        path: Path | str,
        device: str | None = None,
        embeddings: Path | None = None,
        encoder_mode: EncoderMode = "auto",
    ) -> None:
        self._path, self._embeddings, self._mode = path, embeddings, encoder_mode
        self._device = usable_device(device)
        self._lock = threading.RLock()
        self._read: tuple[str, Opened] | None = None
        self._cascade: Cascade | None = None
        self._files()

    def names(self) -> Sequence[str]:
        """See `Library`."""
        try:
            cascade_folder(self._path)
        except UserError:
            return []  # it has left
        return [""]

    def configs(self, name: str) -> Sequence[StageConfig]:
        """See `Library`."""
        return self._files().configs

    def manifest(self, name: str) -> CascadeManifest:
        """See `Library`."""
        return self._files().manifest

    def revision(self, name: str) -> str:
        """See `Library`; it follows from names, sizes and times of the files."""
        digest = hashlib.sha256()
        for path in self._paths():
            with suppress(FileNotFoundError):  # it leaves just now
                status = path.stat()
                digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
        return digest.hexdigest()

    def weight_bytes(self, name: str) -> int:
        """See `Library`."""
        with self._lock:
            if self._cascade is not None:
                return 0
        opened = self._files()
        networks = [meta_network(config) for config in opened.configs]
        size: int = sum(4 * one.numel() for each in networks for one in each.state_dict().values())
        if isinstance(opened.text, EncoderFiles):
            size += self._encoder_bytes(opened.text)
        return size

    def open(self, name: str) -> Cascade:
        """See `Library`."""
        with self._lock:
            if self._cascade is None:
                self._cascade = self._files().load(self._device, self._mode)
            return self._cascade

    def close(self, name: str) -> None:
        """See `Library`."""
        with self._lock:
            self._cascade = None

    def _encoder_bytes(self, files: EncoderFiles) -> int:
        mode = encoder_mode(self._mode)
        loaded = choose_mode(files, torch.device(self._device)) if mode == "auto" else mode
        return _BYTES[loaded] * sum(math.prod(shape) for shape in files.shapes().values())

    def _paths(self) -> Iterator[Path]:
        """Yield what the cascade is made of, wherever links lead now."""
        folder = cascade_folder(self._path).resolve()
        places = [folder]
        if self._read is not None and isinstance(self._read[1].text, EncoderFiles):
            text = self._read[1].text.folder.resolve()
            places += [] if text.is_relative_to(folder) else [text]
        if self._embeddings is not None:
            places.append(self._embeddings.resolve())
        for place in places:
            yield from sorted(path for path in place.rglob("*") if path.is_file())

    def _files(self) -> Opened:
        """Return what is on disk, read anew only where it has changed."""
        with self._lock:
            revision = self.revision("")
            if self._read is None or self._read[0] != revision:
                opened = Opened.at(self._path, embeddings=self._embeddings)
                self._read = revision, opened
                self._read = self.revision(""), opened  # an encoder elsewhere belongs to it
            return self._read[1]
