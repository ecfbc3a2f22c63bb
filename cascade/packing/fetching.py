"""A pack's files for as long as they are looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from cascade.data.pack import MANIFEST, PackManifest
from cascade.data.place import Place, is_address
from cascade.files import scratch

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@contextmanager
def fetched(address: str, name: str) -> Iterator[Path]:
    """Give a file of a place; what is far is fetched into a temporary folder, and goes again."""
    if not is_address(address):
        yield Place(address, Path()).fetch(name)
        return
    with scratch() as folder:
        yield Place(address, folder).fetch(name)


def read_manifest(address: str) -> PackManifest:
    """Read the manifest of a pack, near or far."""
    with fetched(address, MANIFEST) as path:
        return PackManifest.load(path)


def hashed(numbers: np.ndarray, key: int) -> np.ndarray:
    """Return 64 bits of each number that look random, by a key (splitmix64: Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        start = _mixed(np.array([key % 2**64], dtype=np.uint64))
        return _mixed(numbers.astype(np.uint64) + start)


def _mixed(words: np.ndarray) -> np.ndarray:
    words = words + _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = words ^ (words >> np.uint64(31))
    return mixed
