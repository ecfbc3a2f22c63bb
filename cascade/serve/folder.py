"""A `Library` of one cascade folder that PyTorch runs."""

from collections.abc import Sequence
from pathlib import Path

from cascade.config.encoder import EncoderMode
from cascade.config.folders import CascadeManifest
from cascade.config.stage import StageConfig
from cascade.pipeline import Cascade


class CascadeFolder:
    """The cascade of a folder, or one that ships with the project by its name; it is called "".

    Args:
        path: as of `Cascade.load`.
        device: where the weights go; None is the GPU where there is one.
        embeddings: a store that stands in for the text encoder.
        encoder_mode: how the text encoder's weights are held.

    Raises:
        UserError: no such cascade, or its settings are missing or damaged.
    """

    def __init__(
        self,
        path: Path | str,
        device: str | None = None,
        embeddings: Path | None = None,
        encoder_mode: EncoderMode = "auto",
    ) -> None:
        self._path = path

    @property
    def exact(self) -> bool:
        """See `Library`; PyTorch chooses other kernels for other numbers of rows."""
        return False

    def names(self) -> Sequence[str]:
        """See `Library`."""
        return [""]

    def configs(self, name: str) -> Sequence[StageConfig]:
        """See `Library`."""
        raise NotImplementedError

    def manifest(self, name: str) -> CascadeManifest:
        """See `Library`."""
        raise NotImplementedError

    def revision(self, name: str) -> str:
        """See `Library`."""
        raise NotImplementedError

    def weight_bytes(self, name: str) -> int:
        """See `Library`."""
        raise NotImplementedError

    def open(self, name: str) -> Cascade:
        """See `Library`."""
        raise NotImplementedError

    def close(self, name: str) -> None:
        """See `Library`."""
        raise NotImplementedError
