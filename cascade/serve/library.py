"""Where models come from: a folder on disk with a cascade and perhaps its fine-tunes."""

from collections.abc import Sequence
from typing import Protocol

from cascade.config.folders import CascadeManifest
from cascade.config.stage import StageConfig
from cascade.pipeline import Cascade


class Library(Protocol):
    """The cascades of a folder, by name; "" is its own. What is open shares what is equal.

    Methods may be called from several threads.
    """

    @property
    def exact(self) -> bool:
        """Whether a row of an answer is the same, bit for bit, whatever rows are beside it."""
        ...

    def names(self) -> Sequence[str]:
        """Return the names, looked up anew: a fine-tune may be added at any time."""
        ...

    def configs(self, name: str) -> Sequence[StageConfig]:
        """Return a cascade's stages, base first, without opening it.

        Raises:
            UserError: there is none of this name, or its settings are damaged.
        """
        ...

    def manifest(self, name: str) -> CascadeManifest:
        """Return what a cascade is."""
        ...

    def revision(self, name: str) -> str:
        """Return a text that changes when what is on disk does."""
        ...

    def weight_bytes(self, name: str) -> int:
        """Return the bytes that opening it would add now."""
        ...

    def open(self, name: str) -> Cascade:
        """Open a cascade; again is the same one, until it is closed.

        Raises:
            UserError: there is none of this name, or a file is damaged.
        """
        ...

    def close(self, name: str) -> None:
        """Forget an open cascade, and free what nothing open uses; else do nothing.

        Who draws with it may go on; what it holds is freed after that. What is opened next is what
        is on disk then. It may not be there any more.
        """
        ...
