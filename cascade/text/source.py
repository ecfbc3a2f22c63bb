"""Where a command takes its text from: an encoder, or a store of its embeddings."""

from pathlib import Path

import torch

from cascade.config.encoder import EncoderMode
from cascade.errors import UserError
from cascade.progress import warn
from cascade.text.files import EncoderFiles
from cascade.text.modes import skeleton
from cascade.text.prompts import PromptEncoder
from cascade.text.store import EmbeddingStore
from cascade.text.t5 import TextEncoder


def open_text(encoder: Path | None, embeddings: Path | None) -> EncoderFiles | EmbeddingStore:
    """Check what text will come from; loads no weights.

    Args:
        encoder: folder of the encoder. Where there is a store it need not exist; if it does, the
            store must have been made with it.
        embeddings: folder of a store, which is used instead of the encoder.

    Raises:
        UserError: neither is there, files are missing or damaged, or the two do not belong
            together.
    """
    if embeddings is None:
        if encoder is None:
            raise UserError("There is no text encoder; give its folder, or a store of embeddings.")
        if not encoder.is_dir():
            raise UserError(
                f"There is no text encoder folder {encoder}; fetch it, name another in "
                "cascade.json (cascade import --text-encoder), or give a store of its embeddings "
                "(--embeddings)."
            )
        files = EncoderFiles.open(encoder)
        skeleton(files)
        return files
    store = EmbeddingStore.open(embeddings)
    if encoder is not None and encoder.is_dir():
        store.check_encoder(EncoderFiles.open(encoder))
    return store


def ready(
    text: EncoderFiles | EmbeddingStore,
    mode: EncoderMode = "auto",
    device: torch.device | str = "cpu",
) -> PromptEncoder:
    """Load the encoder, or return the store that stands in for it.

    Where `auto` settles for less than float32, that is said on the error stream.
    """
    if isinstance(text, EmbeddingStore):
        return text
    encoder = TextEncoder.hold(text, mode, device)
    if mode == "auto" and encoder.mode != "float32":
        warn(
            f"In float32 the text encoder would take more than half of the memory of {device}; "
            f"it is held in {encoder.mode}."
        )
    return encoder
