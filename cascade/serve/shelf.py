"""Models in memory: who holds them, and which leave when there is no room."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeAlias
from weakref import WeakValueDictionary

from cascade.config.stage import StageConfig, TextConfig
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade.progress import amount, say, warn
from cascade.serve.library import Library
from cascade.text.prompts import OnlinePrompts

Find: TypeAlias = Callable[[str], tuple[Library, str]]
"""From a model to its library and its name there."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory.

    Attributes:
        model: its name.
        revision: of what is on disk it was opened from.
        exact: whether a row of an answer is the same, bit for bit, whatever rows are beside it.
        cascade: what draws.
        sources: embeddings by the conventions that its stages follow.
    """

    model: str
    revision: str
    exact: bool
    cascade: Cascade
    sources: Mapping[TextConfig, OnlinePrompts]

    def texts(self, stage: StageConfig) -> OnlinePrompts:
        """Return the embeddings that a stage reads, each made alone; threads may share them."""
        return self.sources[stage.text]


@dataclass(eq=False)
class _Held:
    """A model in memory, how many hold it, and the bytes that leave with it."""

    loaded: Loaded
    library: Library
    name: str
    bytes: int
    pins: int = 0
    told: str = ""  # why it does not follow what is on disk


class Shelf:
    """The models that are open.

    Args:
        max_memory: bytes for weights; None is no limit.
        texts: prompts whose embeddings are kept, for each encoder and convention.
    """

    def __init__(self, max_memory: int | None, texts: int) -> None:
        self._max_memory = max_memory
        self._texts = texts
        self._lock = threading.Lock()  # of what is below; nobody waits long for it
        self._opening = threading.Lock()  # models are opened and closed one after another
        self._open: OrderedDict[str, _Held] = OrderedDict()  # the longest unused first
        self._held: dict[Loaded, _Held] = {}  # those and what was closed while it was in use
        self._used = 0
        # An encoder that several models share has its prompts once. Its key is the encoder's id,
        # which is its own for as long as the value, which holds the encoder, is there.
        self._sources: WeakValueDictionary[tuple[int, TextConfig], OnlinePrompts]
        self._sources = WeakValueDictionary()

    def configs(self, model: str) -> Sequence[StageConfig] | None:
        """Return the stages of an open model."""
        with self._lock:
            held = self._open.get(model)
        return None if held is None else held.loaded.cascade.configs

    def acquire(self, model: str, find: Find) -> Loaded | None:
        """Return a model that stays until it is released; None where there is no room for it."""
        loaded = self._pinned(model)
        if loaded is not None:
            return loaded
        with self._opening:
            loaded = self._pinned(model)  # another thread has opened it meanwhile
            if loaded is not None:
                return loaded
            library, name = find(model)
            if not self._has_room(library, name, model):
                return None
            held = self._opened(library, name, model)
            with self._lock:
                self._used += held.bytes
                self._open[model] = self._held[held.loaded] = held
        return held.loaded

    def release(self, loaded: Loaded) -> None:
        """Give back what `acquire` has returned, once for each time."""
        with self._lock:
            held = self._held[loaded]
            held.pins -= 1
            if not held.pins and self._open.get(loaded.model) is not held:
                self._forget(held)

    def check(self, model: str, size: int) -> None:
        """Refuse a model that does not fit, were it alone.

        Raises:
            UserError: it does not.
        """
        if self._max_memory is not None and size > self._max_memory:
            raise UserError(
                f"Model '{model}' takes {amount(size)} and all models may take "
                f"{amount(self._max_memory)}; raise max_memory."
            )

    def refresh(self) -> None:
        """Close what has changed on disk, unless its new settings are damaged."""
        with self._lock:
            looked = list(self._open.values())
        for held in looked:
            try:
                changed = _has_changed(held)
            except UserError as error:
                if held.told != str(error):  # once, however often it is looked at
                    held.told = str(error)
                    warn(f"Model '{held.loaded.model}' stays as it was opened: {error}")
                continue
            if changed:
                say(f"Model '{held.loaded.model}' has changed on disk.")
                self._close(held)

    def close(self) -> None:
        """Close all; what somebody holds leaves with its last release."""
        with self._lock:
            there = list(self._open.values())
        for held in there:
            self._close(held)

    def _pinned(self, model: str) -> Loaded | None:
        with self._lock:
            held = self._open.get(model)
            if held is None:
                return None
            held.pins += 1
            self._open.move_to_end(model)
            return held.loaded

    def _has_room(self, library: Library, name: str, model: str) -> bool:
        """Close what nobody holds until a model fits; nothing where that would not do."""
        limit = self._max_memory
        if limit is None:
            return True
        with self._lock:
            stays = sum(held.bytes for held in self._held.values() if held.pins)
        needed = library.weight_bytes(name)
        if stays and stays + needed > limit:
            return False
        while self._used + needed > limit:
            with self._lock:
                free = next((held for held in self._open.values() if not held.pins), None)
                in_use = any(held.pins for held in self._held.values())
            if free is None:
                if not in_use:
                    self.check(model, needed)
                return False
            self._leave(free)
            needed = library.weight_bytes(name)  # more, where it would have shared what left
        return True

    def _opened(self, library: Library, name: str, model: str) -> _Held:
        size, revision = library.weight_bytes(name), library.revision(name)
        cascade = library.open(name)
        try:
            texts = {config.text for config in cascade.configs}
            sources = {text: self._source(cascade, text) for text in texts}
        except BaseException:  # an encoder that does not embed even the null text
            library.close(name)
            raise
        loaded = Loaded(model, revision, library.exact, cascade, sources)
        return _Held(loaded, library, name, size, pins=1)

    def _source(self, cascade: Cascade, text: TextConfig) -> OnlinePrompts:
        key = id(cascade.encoder), text
        source = self._sources.get(key)
        if source is None:
            source = self._sources[key] = OnlinePrompts(cascade.encoder, text, self._texts)
        return source

    def _close(self, held: _Held) -> None:
        with self._opening:
            self._leave(held)

    def _leave(self, held: _Held) -> None:
        """Take a model out of the open ones; who holds it goes on with it."""
        with self._lock:
            if self._open.get(held.loaded.model) is not held:
                return
            del self._open[held.loaded.model]
        held.library.close(held.name)
        with suppress(UserError):  # it is not on disk any more: what it took when it was opened
            held.bytes = held.library.weight_bytes(held.name)  # what others share has stayed
        with self._lock:
            if not held.pins and held.loaded in self._held:
                self._forget(held)

    def _forget(self, held: _Held) -> None:
        del self._held[held.loaded]
        self._used = max(self._used - held.bytes, 0) if self._held else 0


def _has_changed(held: _Held) -> bool:
    """Return whether what is on disk is another model than the open one, and one that opens."""
    if held.name not in held.library.names():
        return True
    if held.library.revision(held.name) == held.loaded.revision:
        return False
    held.library.configs(held.name)
    return True
