"""The frozen T5 encoder (Imagen section 2.1): prompts to a sequence of embeddings.

Shapes: `B` prompts, `L` tokens, `D` the encoder's width (`d_model`).
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import T5EncoderModel
from transformers.utils import logging

from cascade.errors import UserError
from cascade.text.cleaning import Cleaning, clean
from cascade.text.tokenizer import PAD, Tokenizer


@dataclass(frozen=True)
class TextEmbedding:
    """Embedded prompts: `embedding` B L D float, zero where `mask` (B L bool) is False."""

    embedding: Tensor
    mask: Tensor


class TextEncoder:
    """A tokenizer and a T5 encoder of any size, v1.0 or v1.1; never trained."""

    def __init__(self, tokenizer: Tokenizer, model: T5EncoderModel, folder: Path) -> None:
        """Freeze `model`; use `TextEncoder.load` to read both from `folder`."""
        self.tokenizer = tokenizer
        # Through `nn.Module`, here and in `to`: transformers' overrides have no usable types.
        self._model = nn.Module.eval(model).requires_grad_(False)
        self._folder = folder

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> Self:
        """Load an encoder from `config.json`, `model.safetensors` and `spiece.model`.

        The weights may be sharded, and the vocabulary may lie in `tokenizer/`, inside the folder
        or beside it, as in published pipelines.

        Args:
            folder: the encoder's folder.
            dtype: float32 or bfloat16.

        Raises:
            UserError: a file is missing or damaged, weights and vocabulary do not fit, or `dtype`
                is float16.
        """
        if dtype == torch.float16:
            # The feed-forward activations of T5 v1.1 exceed 65504, float16's largest number.
            raise UserError(
                "T5 overflows in float16 and returns NaN; load it in bfloat16 or float32."
            )
        tokenizer = Tokenizer(_vocabulary(folder))
        model = _load_model(folder, dtype)
        if len(tokenizer) > model.config.vocab_size:
            raise UserError(
                f"{tokenizer.path} has {len(tokenizer)} pieces but the encoder in {folder} embeds "
                f"{model.config.vocab_size}; use the vocabulary that belongs to the encoder."
            )
        return cls(tokenizer, model, folder)

    @property
    def width(self) -> int:
        """`D`, the width of the embeddings."""
        return int(self._model.config.d_model)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self._model.parameters()).device

    def to(self, device: torch.device) -> Self:
        """Move the weights; returns the encoder itself."""
        nn.Module.to(self._model, device)
        return self

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the bytes of weights and vocabulary; read once (9 GB take a while)."""
        digest = hashlib.sha256()
        for path in [*sorted(self._folder.glob("*.safetensors")), self.tokenizer.path]:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @torch.no_grad()
    def embed(
        self, prompts: Sequence[str], max_length: int, cleaning: Cleaning, masked: bool = True
    ) -> TextEmbedding:
        """Embed prompts, padded to the longest of them, or all to `max_length`.

        Args:
            prompts: B prompts; "" is a prompt too (its only token is `</s>`).
            max_length: tokens kept of each prompt, `</s>` included (Imagen 128, DeepFloyd IF 77).
            cleaning: what the checkpoint does to prompts first.
            masked: whether padding is hidden from whoever reads the embedding. False is DeepFloyd
                IF's way: padding is masked inside the encoder only, and what comes out at its
                places is read like any token.

        Returns:
            B L D in the encoder's dtype; L is at most `max_length`, or equal to it where nothing is
            masked. A prompt's embedding does not depend on the others: padding is masked inside the
            encoder and, where `masked`, zero outside.

        Raises:
            ValueError: there are no prompts.
        """
        if not prompts:
            raise ValueError("embed needs at least one prompt.")
        rows = [self.tokenizer.encode(clean(prompt, cleaning), max_length) for prompt in prompts]
        length = max(map(len, rows)) if masked else max_length
        ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows], device=self.device)
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        mask = torch.arange(length, device=self.device) < lengths[:, None]
        output = self._model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        if not masked:
            return TextEmbedding(output, torch.ones_like(mask))
        return TextEmbedding(output * mask[..., None], mask)


def _vocabulary(folder: Path) -> Path:
    if not folder.is_dir():
        raise UserError(f"There is no text encoder folder {folder}; check the path.")
    places = [folder, folder / "tokenizer", folder.parent / "tokenizer"]
    for place in places:
        if (place / "spiece.model").is_file():
            return place / "spiece.model"
    raise UserError(f"There is no spiece.model in {folder} or in a folder 'tokenizer' next to it.")


def _load_model(folder: Path, dtype: torch.dtype) -> T5EncoderModel:
    if not (folder / "config.json").is_file():
        raise UserError(f"There is no config.json in {folder}; fetch the encoder again.")
    weights = [folder / "model.safetensors", folder / "model.safetensors.index.json"]
    if not any(path.is_file() for path in weights):
        raise UserError(f"There is no model.safetensors in {folder}; fetch the encoder again.")
    try:
        with _no_progress_bar():
            loaded: Any = T5EncoderModel.from_pretrained(
                folder, dtype=dtype, local_files_only=True, output_loading_info=True
            )
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"The text encoder in {folder} cannot be read ({reason}); fetch its files again."
        ) from error
    model: T5EncoderModel
    info: dict[str, Any]
    model, info = loaded
    # transformers only warns of these, and would go on with random weights.
    missing = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if missing:
        raise UserError(
            f"The text encoder in {folder} lacks {len(missing)} weights, {missing[0]} among them; "
            "fetch model.safetensors and config.json of the same model again."
        )
    return model


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Silence transformers' own bar: one appears per load, between the bars of the run."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
