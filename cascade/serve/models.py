"""The models that are served: which there are, and which of them are in memory.

A model is called as its library, or `LIBRARY:NAME` where it is not the library's own cascade.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cascade.config.folders import CascadeManifest
from cascade.config.sample import SampleOptions
from cascade.config.stage import StageConfig
from cascade.pipeline import Cascade
from cascade.request import Request
from cascade.serve.library import Library
from cascade.text.prompts import OnlinePrompts


class Unknown(LookupError):
    """There is no model of this name."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model in memory.

    Attributes:
        model: its name.
        revision: of what is on disk it was opened from.
        exact: whether a row of an answer is the same, bit for bit, whatever rows are beside it.
        cascade: what draws.
    """

    model: str
    revision: str
    exact: bool
    cascade: Cascade

    def texts(self, stage: StageConfig) -> OnlinePrompts:
        """Return the embeddings that a stage reads, each made alone; threads may share them."""
        raise NotImplementedError


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

    def names(self) -> list[str]:
        """Return the names of all models, looked up anew."""
        raise NotImplementedError

    def configs(self, model: str) -> Sequence[StageConfig]:
        """Return a model's stages, base first, without opening it.

        Raises:
            Unknown: there is none of this name.
            UserError: its settings are damaged.
        """
        raise NotImplementedError

    def manifest(self, model: str) -> CascadeManifest:
        """Return what a model is; raises as `configs`."""
        raise NotImplementedError

    def exact(self, model: str) -> bool:
        """Return whether a row of its networks' answers is the same whatever rows are beside it.

        Raises:
            Unknown: there is no model of this name.
        """
        raise NotImplementedError

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
        raise NotImplementedError

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
        raise NotImplementedError

    def release(self, loaded: Loaded) -> None:
        """Give back what `acquire` has returned, once for each time."""
        raise NotImplementedError

    def open(self, model: str) -> None:
        """Open a model so that who asks next need not wait; raises as `acquire`."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Look whether what is open has changed on disk.

        Who acquires a changed model next gets the new one; who holds the old one goes on with it.
        One whose new settings are damaged stays as it is. A removed one leaves.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close what nobody holds; the rest leaves with its last release."""
        raise NotImplementedError
