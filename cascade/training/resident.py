"""`data.resident`: a run's pictures and captions on its training device."""

from itertools import chain

import torch
from torch import Tensor

from cascade.config.train import PretrainConfig
from cascade.data.captioned import CaptionedSamples
from cascade.data.resident import resident_bytes
from cascade.environment import device_memory
from cascade.errors import UserError
from cascade.text.files import EncoderFiles
from cascade.text.prompts import PromptEncoder, PromptTable
from cascade.text.store import EmbeddingStore


def require_memory(
    config: PretrainConfig,
    samples: CaptionedSamples,
    text: EncoderFiles | EmbeddingStore,
    device: torch.device,
) -> None:
    """Refuse data that does not fit the free memory of a GPU, or the whole one of a machine.

    The network, its gradients and its activations come on top of it.
    """
    captions = chain.from_iterable(samples.all_captions())
    # Captions are reckoned at their full length, and the null text is one more.
    tokens = (1 + len(set(captions))) * config.stage.text.max_length
    table = tokens * text.width * _table_type(config, text).itemsize
    pictures = resident_bytes(samples)
    free = free_memory(device)
    if pictures + table > free:
        raise UserError(
            f"With data.resident {len(samples)} pictures take "
            f"{pictures / 2**30:.1f} GiB and their captions {table / 2**30:.1f} GiB of the memory "
            f"of {device}, where {free / 2**30:.1f} GiB are free; set data.resident = false, or "
            "train on fewer pictures."
        )


def free_memory(device: torch.device) -> int:
    """Free memory of a GPU in bytes; of a CPU all there is, since its caches give way."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return device_memory(device)


def resident_prompts(
    config: PretrainConfig,
    opened: EncoderFiles | EmbeddingStore,
    encoder: PromptEncoder,
    samples: CaptionedSamples,
    device: torch.device,
) -> PromptTable:
    """Embed every caption of the data with the encoder, or the store, that was opened."""
    if samples.has_texts:
        null = PromptTable.build(encoder, (), config.stage.text).rows([None]).embedding[0]
        rows: dict[str | None, Tensor] = {None: null.bfloat16(), **dict(samples.embeddings())}
        return PromptTable(rows, device, one_length=True)
    return PromptTable.build(
        encoder,
        chain.from_iterable(samples.all_captions()),
        config.stage.text,
        _table_type(config, opened),
        device,
        one_length=True,
    )


def _table_type(config: PretrainConfig, text: EncoderFiles | EmbeddingStore) -> torch.dtype:
    """Return the dtype of the captions' embeddings: bfloat16 where they are known to be in it."""
    bf16 = isinstance(text, EmbeddingStore) or config.encoder_mode in ("bfloat16", "int8")
    return torch.bfloat16 if bf16 else torch.float32
