"""The frozen T5 encoder (Imagen section 2.1): prompts to a sequence of embeddings.

Shapes: `B` prompts, `L` tokens, `D` the encoder's width (`d_model`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from cascade.config.encoder import EncoderMode, HeldMode
from cascade.config.stage import TextConfig
from cascade.errors import UserError
from cascade.text.cleaning import clean
from cascade.text.files import EncoderFiles
from cascade.text.modes import hold
from cascade.text.tokenizer import PAD, Tokenizer


@dataclass(frozen=True)
class TextEmbedding:
    """Embedded prompts: `embedding` B L D float, zero where `mask` (B L bool) is False."""

    embedding: Tensor
    mask: Tensor


class TextEncoder:
    """A tokenizer and a T5 encoder of any size, v1.0 or v1.1; never trained.

    Attributes:
        files: where it was loaded from.
        mode: how its weights are held.
    """

    def __init__(self, files: EncoderFiles, model: nn.Module, mode: HeldMode) -> None:
        """Take what `TextEncoder.load` has put together."""
        self.files = files
        self.mode = mode
        self._model = model

    @classmethod
    def load(
        cls, folder: Path, mode: EncoderMode = "auto", device: torch.device | str = "cpu"
    ) -> Self:
        """Load an encoder from `config.json`, `model.safetensors` and `spiece.model`.

        The weights may be sharded, and the vocabulary may lie in `tokenizer/`, inside the folder
        or beside it, as in published pipelines.

        Args:
            folder: the encoder's folder.
            mode: how the weights are held; see `EncoderMode`.
            device: where the encoder runs.

        Raises:
            UserError: a file is missing or damaged, weights and vocabulary do not fit, or `mode`
                is float16 or needs a package that is not installed.
        """
        return cls.hold(EncoderFiles.open(folder), mode, device)

    @classmethod
    def hold(
        cls, files: EncoderFiles, mode: EncoderMode = "auto", device: torch.device | str = "cpu"
    ) -> Self:
        """Load an encoder whose files are found already; as `load`."""
        model, held = hold(files, mode, torch.device(device))
        return cls(files, model, held)

    @property
    def tokenizer(self) -> Tokenizer:
        """The encoder's tokenizer."""
        return self.files.tokenizer

    @property
    def width(self) -> int:
        """`D`, the width of the embeddings."""
        return self.files.width

    @property
    def digest(self) -> str:
        """Of the weights and the vocabulary, and how the weights are held."""
        return f"{self.files.model_digest} {self.files.tokenizer_digest} {self.mode}"

    @property
    def device(self) -> torch.device:
        """Where the encoder runs."""
        return self._model.get_parameter("embed_tokens.weight").device

    @torch.no_grad()
    def embed(self, prompts: Sequence[str], text: TextConfig) -> TextEmbedding:
        """Embed prompts, padded to the longest of them, or all to `text.max_length`.

        Args:
            prompts: B prompts; "" is a prompt too (its only token is `</s>`).
            text: the conventions of whoever reads the embedding.

        Returns:
            B L D in the type the encoder computes in; L is at most `text.max_length`, or equal to
            it where nothing is masked. A prompt's embedding does not depend on the others: padding
            is masked inside the encoder and, where `text.masked`, zero outside.

        Raises:
            ValueError: there are no prompts.
            UserError: the encoder's weights or configuration are broken: it gives no numbers.
        """
        if not prompts:
            raise ValueError("embed needs at least one prompt.")
        rows = [
            self.tokenizer.encode(clean(prompt, text.cleaning), text.max_length)
            for prompt in prompts
        ]
        length = max(map(len, rows)) if text.masked else text.max_length
        ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = torch.arange(length, device=self.device) < lengths[:, None]
        output = self._model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        if not bool(torch.isfinite(output).all()):
            raise UserError(
                f"The text encoder in {self.files.folder} answers NaN or infinite numbers; fetch "
                "its files again."
            )
        if not text.masked:
            return TextEmbedding(output, torch.ones_like(mask))
        return TextEmbedding(output * mask[..., None], mask)
