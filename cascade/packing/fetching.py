"""A pack's files for as long as they are looked at."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cascade.data.pack import MANIFEST, PackManifest
from cascade.data.place import Place, is_address
from cascade.files import scratch


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
