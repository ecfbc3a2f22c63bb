"""A text encoder that one process of a run holds: T5-XXL is larger than the networks it serves."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import torch

from cascade.config.encoder import EncoderMode
from cascade.config.stage import TextConfig
from cascade.text.embed import keep
from cascade.text.encoder import TextEmbedding, TextEncoder
from cascade.text.files import EncoderFiles
from cascade.text.prompts import PromptEncoder, load_text
from cascade.text.store import EmbeddingStore
from cascade.text.tokenizer import Tokenizer
from cascade.training.distributed import Processes

EMBEDDINGS: Final = "embeddings"
"""In a run's folder: the store of its captions, while it has several processes."""


def open_encoder(
    text: EncoderFiles | EmbeddingStore,
    mode: EncoderMode,
    device: torch.device,
    processes: Processes,
) -> PromptEncoder:
    """Load the encoder once for all processes, or return the store that stands in for it."""
    if isinstance(text, EmbeddingStore) or processes.world_size == 1:
        return load_text(text, mode, device)
    return SharedEncoder(text, mode, device, processes)


class SharedEncoder:
    """The encoder of the first process; all processes ask for the same prompts at the same time.

    Attributes:
        mode: how it is held.
        digest: see `PromptEncoder`.
    """

    def __init__(
        self, files: EncoderFiles, mode: EncoderMode, device: torch.device, processes: Processes
    ) -> None:
        self._files, self._device, self._processes = files, device, processes
        self._encoder: TextEncoder | None = None
        if processes.is_main:
            loaded = load_text(files, mode, device)
            assert isinstance(loaded, TextEncoder), "a store is no encoder"
            self._encoder = loaded
        self.mode, self.digest = processes.from_first(self._identity)

    @property
    def width(self) -> int:
        """`D`, the width of the embeddings."""
        return self._files.width

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that prompts go through."""
        return self._files.tokenizer

    def embed(self, prompts: Sequence[str], text: TextConfig) -> TextEmbedding:
        """Embed prompts as `TextEncoder.embed` does; every process calls it.

        Raises:
            ValueError: this process asks for other prompts than the first one.
        """
        asked = (tuple(prompts), text)
        answered, answer = self._processes.from_first(lambda: (asked, self._embed(*asked)))
        if answered != asked:
            raise ValueError("The processes of a run ask for different prompts.")
        embedding, mask = (part.to(self._device) for part in answer)
        return TextEmbedding(embedding, mask)

    def keep(self, run_dir: Path, captions: Iterable[str], text: TextConfig) -> EmbeddingStore:
        """Embed captions into a store that every process reads at any time; all call it."""
        folder = run_dir / EMBEDDINGS
        if self._encoder is not None:
            keep(folder, self._encoder, captions, text)
        self._processes.barrier()
        return EmbeddingStore.open(folder)

    def _identity(self) -> tuple[str, str]:
        assert self._encoder is not None, "only the first process is asked"
        return self._encoder.mode, self._encoder.digest

    def _embed(self, prompts: Sequence[str], text: TextConfig) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._encoder is not None, "only the first process is asked"
        answer = self._encoder.embed(prompts, text)
        return answer.embedding.cpu(), answer.mask.cpu()
