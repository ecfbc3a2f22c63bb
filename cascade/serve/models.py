"""The models that are served: which there are, and which of them are in memory.

A model is called as its library, or `LIBRARY:NAME` where it is not the library's own cascade.
"""

from collections.abc import Mapping, Sequence

from cascade.config.folders import CascadeManifest
from cascade.config.sample import SampleOptions
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.request import Request
from cascade.serve.library import Library
from cascade.serve.options import under
from cascade.serve.shelf import Loaded, Shelf


class Unknown(LookupError):
    """There is no model of this name."""


class Models:
    """The models of some libraries; every method may be called from any thread.

    Args:
        libraries: by name.
        options: by model, what differs from its checkpoints' settings; a client's own come first.
        max_memory: bytes for weights; without it everything that was asked for stays open.
        texts: prompts whose embeddings are kept, for each encoder and convention.

    Raises:
        UserError: options of no model or that do not fit it, or a model larger than `max_memory`.
    """

    def __init__(
        self,
        libraries: Mapping[str, Library],
        options: Mapping[str, SampleOptions] | None = None,
        max_memory: int | None = None,
        texts: int = 1024,
    ) -> None:
        self._libraries = dict(libraries)
        self._options = dict(options or {})
        self._shelf = Shelf(max_memory, texts)
        self._check()

    def names(self) -> list[str]:
        """Return the names of all models, looked up anew."""
        return [
            f"{key}:{name}" if name else key
            for key, library in self._libraries.items()
            for name in library.names()
        ]

    def configs(self, model: str) -> Sequence[StageConfig]:
        """Return a model's stages, base first, without opening it.

        Raises:
            Unknown: there is none of this name.
            UserError: its settings are damaged.
        """
        drawing = self._shelf.configs(model)
        if drawing is not None:  # whatever has come into the folder since
            return drawing
        library, name = self._find(model)
        return library.configs(name)

    def manifest(self, model: str) -> CascadeManifest:
        """Return what a model is; raises as `configs`."""
        library, name = self._find(model)
        return library.manifest(name)

    def exact(self, model: str) -> bool:
        """Return whether a row of its networks' answers is the same whatever rows are beside it.

        Raises:
            Unknown: there is no model of this name.
        """
        return self._find(model)[0].exact

    def request(
        self, model: str, prompt: str, seeds: Sequence[int], options: SampleOptions
    ) -> Request:
        """Check what a client asks of a model, a picture of the prompt per seed.

        Args:
            options: the client's; where it says nothing the model's own options hold, and then its
                checkpoints'.

        Raises:
            Unknown: there is no model of this name.
            UserError: the model cannot do what is asked.
        """
        own = self._options.get(model)
        asked = options if own is None else under(own, options)
        return Request.of(self.configs(model), prompt, seeds, asked)

    def acquire(self, model: str) -> Loaded | None:
        """Return a model that stays in memory until it is released, opened if need be.

        Models that nobody holds leave where memory is limited, the longest unused first.

        Returns:
            None where there is no room before somebody releases another.

        Raises:
            Unknown: there is no model of this name.
            UserError: a file of it is damaged, or it is larger than all the memory that may be
                used.
        """
        return self._shelf.acquire(model, self._find)

    def release(self, loaded: Loaded) -> None:
        """Give back what `acquire` has returned, once for each time."""
        self._shelf.release(loaded)

    def open(self, model: str) -> None:
        """Open a model so that who asks next need not wait; raises as `acquire`."""
        loaded = self.acquire(model)
        if loaded is not None:
            self.release(loaded)

    def refresh(self) -> None:
        """Look whether what is open has changed on disk.

        Who acquires a changed model next gets the new one; who holds the old one goes on with it.
        One whose new settings are damaged stays as it is. A removed one leaves.
        """
        self._shelf.refresh()

    def close(self) -> None:
        """Close what nobody holds; the rest leaves with its last release."""
        self._shelf.close()

    def _check(self) -> None:
        names = self.names()
        strange = next((model for model in self._options if model not in names), None)
        if strange is not None:
            raise UserError(
                f"There are options for a model '{strange}', which is not served; known are "
                f"{', '.join(names)}."
            )
        for model in self._options:
            self.request(model, "", [0], SampleOptions())
        for model in names:
            library, name = self._find(model)
            self._shelf.check(model, library.weight_bytes(name))

    def _find(self, model: str) -> tuple[Library, str]:
        key, _, name = model.partition(":")
        library = self._libraries.get(key)
        if library is None or name not in library.names() or model == f"{key}:":
            raise Unknown(f"there is no model '{model}'")
        return library, name
