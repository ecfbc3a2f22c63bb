"""Which weights an engine serves now, and those before them that somebody still draws with."""

import threading
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Generic, Protocol, TypeVar


class Pinnable(Protocol):
    """Something that is freed when nobody holds it any more."""

    @property
    def key(self) -> Hashable:
        """Return what equal ones share."""
        ...

    def free(self) -> None:
        """Free the memory; it cannot be used any more."""


One = TypeVar("One", bound=Pinnable)


class Pins(Generic[One]):
    """One that serves, and others before it until their last pin has gone.

    Args:
        kind: what is told where none serves any more.
    """

    def __init__(self, kind: str, first: One) -> None:
        self._kind = kind
        self._lock = threading.Lock()
        self._serving: One | None = first
        self._held: Counter[One] = Counter()

    @property
    def serving(self) -> One:
        """The one that serves now.

        Raises:
            RuntimeError: none does: the engine was closed.
        """
        serving = self._serving
        if serving is None:
            raise closed(self._kind)
        return serving

    @contextmanager
    def pinned(self) -> Iterator[One]:
        """Hold the one that serves now until this is left."""
        with self._lock:
            one = self.serving
            self._held[one] += 1
        try:
            yield one
        finally:
            with self._lock:
                self._held[one] -= 1
                left = not self._held[one]
                if left:
                    del self._held[one]
                left &= one is not self._serving
            if left:
                one.free()

    def again(self, key: Hashable) -> One | None:
        """Serve the one with a key, if it is there still; return it."""
        with self._lock:
            there = [one for one in (self.serving, *self._held) if one.key == key]
            before, after = self.serving, there[0] if there else None
            if after is not None:
                self._serving = after
            left = after not in (None, before) and before not in self._held
        if left:
            before.free()
        return after

    def replace(self, other: One | None) -> None:
        """Serve another one; None serves no more."""
        with self._lock:
            before, self._serving = self._serving, other
            left = before is not None and before not in self._held
        if before is not None and left:
            before.free()


def closed(kind: str) -> RuntimeError:
    """Return what to raise when an engine is called after `close`."""
    return RuntimeError(f"the {kind} engine was closed; open it again")
