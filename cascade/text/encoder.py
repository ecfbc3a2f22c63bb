"""The frozen T5 encoder (Imagen section 2.1): prompts to a sequence of embeddings.

T5-XXL's encoder has 4.7 billion weights: 18 GiB in float32, 9 in bfloat16, 5 in 8 bits. Where its
blocks are read one after another, the whole process takes about 2 GiB.

Shapes: `B` prompts, `L` tokens, `D` the encoder's width (`d_model`).
"""

import math
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from cascade.config.encoder import EncoderMode, LoadedMode, encoder_mode
from cascade.config.stage import TextConfig
from cascade.environment import device_memory
from cascade.errors import UserError
from cascade.progress import silence
from cascade.tensors import require_finite
from cascade.text.cleaning import clean
from cascade.text.files import EMBEDDINGS, EncoderFiles
from cascade.text.tokenizer import PAD, Tokenizer

_TYPES: Final[dict[LoadedMode, torch.dtype]] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.bfloat16,
    "layerwise": torch.float32,
}


@dataclass(frozen=True)
class TextEmbedding:
    """Embedded prompts: `embedding` B L D float, zero where `mask` (B L bool) is False."""

    embedding: Tensor
    mask: Tensor

    @classmethod
    def padded(cls, rows: Sequence[Tensor]) -> Self:
        """Put embeddings L D of different lengths side by side.

        Raises:
            ValueError: there are none.
        """
        if not rows:
            raise ValueError("rows needs at least one prompt.")
        lengths = integers([len(row) for row in rows], rows[0].device)
        embedding = pad_sequence(list(rows), batch_first=True)
        tokens = torch.arange(embedding.shape[1], device=embedding.device)
        return cls(embedding, tokens < lengths[:, None])

    def extended(self, length: int) -> "TextEmbedding":
        """Return the same with padding up to so many tokens, L."""
        missing = length - self.mask.shape[1]
        if missing <= 0:
            return self
        embedding = F.pad(self.embedding, (0, 0, 0, missing))
        return TextEmbedding(embedding, F.pad(self.mask, (0, missing)))


class TextEncoder:
    """A tokenizer and a T5 encoder of any size, v1.0 or v1.1; never trained.

    Attributes:
        files: where it was loaded from.
        mode: how its weights are held.
    """

    def __init__(self, files: EncoderFiles, model: nn.Module, mode: LoadedMode) -> None:
        """Take what `TextEncoder.load` has put together."""
        self.files = files
        self.mode = mode
        self._model = model
        self._turn = threading.Lock()

    @classmethod
    def load(
        cls,
        source: Path | EncoderFiles,
        mode: EncoderMode = "auto",
        device: torch.device | str = "cpu",
    ) -> Self:
        """Load an encoder from its folder (`EncoderFiles.open`), or from files opened already."""
        files = source if isinstance(source, EncoderFiles) else EncoderFiles.open(source)
        return cls(files, *load_model(files, mode, torch.device(device)))

    @property
    def tokenizer(self) -> Tokenizer:
        """The encoder's tokenizer."""
        return self.files.tokenizer

    @property
    def width(self) -> int:
        """`D`, the width of the embeddings."""
        return self.files.width

    @property
    def device(self) -> torch.device:
        """Return the device of the model's inputs; a subclass without weights says its own."""
        return self._model.get_parameter("embed_tokens.weight").device

    @property
    def digest(self) -> str:
        """Digest of the weights and the vocabulary, and how the weights are held."""
        return f"{self.files.model_digest} {self.files.tokenizer_digest} {self.mode}"

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
        device = self.device
        ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask = torch.arange(length, device=device) < lengths[:, None]
        # A block that is read from disk is there for one call.
        with self._turn if self.mode == "layerwise" else nullcontext():
            output = self._model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        if not bool(torch.isfinite(output).all()):
            raise UserError(
                f"The text encoder in {self.files.folder} answers NaN or infinite numbers; fetch "
                "its files again."
            )
        if not text.masked:
            return TextEmbedding(output, torch.ones_like(mask))
        return TextEmbedding(output * mask[..., None], mask)


def choose_mode(files: EncoderFiles, device: torch.device) -> LoadedMode:
    """Return the most exact mode whose weights take at most half of a device's memory.

    The whole memory counts, not what is free at the moment: a run that is started again on the
    same machine chooses as before. `int8` is never chosen; it changes the embeddings by 1 %.
    """
    values = sum(math.prod(shape) for shape in files.shapes().values())
    memory = device_memory(device)
    if values * 4 <= memory // 2:
        return "float32"
    return "bfloat16" if values * 2 <= memory // 2 else "layerwise"


def load_model(
    files: EncoderFiles, mode: EncoderMode, device: torch.device
) -> tuple[nn.Module, LoadedMode]:
    """Load transformers' encoder, frozen; also return the mode that `auto` stands for."""
    mode = encoder_mode(mode)
    model = meta_model(files)
    loaded = choose_mode(files, device) if mode == "auto" else mode
    if loaded == "int8":
        _require_torchao()
    dtype = _TYPES[loaded]
    for prefix, module in _parts(model):
        is_block = prefix.startswith("block.")
        if loaded == "layerwise" and is_block:
            _stream(module, prefix, files, dtype, device)
        elif loaded == "layerwise" and isinstance(module, nn.Embedding):
            _keep_in_file(module, prefix, files, dtype, device)
        else:
            _fill(module, prefix, files, dtype, device)
            weights = {prefix + name: value for name, value in module.state_dict().items()}
            require_finite(weights, str(files.folder))
        if loaded == "int8" and is_block:
            _quantize(module)
    return model.eval().requires_grad_(False), loaded


def meta_model(files: EncoderFiles) -> nn.Module:
    """Build the encoder on the meta device, and check that its files fit it and each other."""
    with silence():
        from transformers import T5EncoderModel
    with torch.device("meta"):
        model: nn.Module = T5EncoderModel(files.config).encoder
    shapes = files.shapes()
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    differing = [name for name in wanted if shapes.get(name) != wanted[name]]
    if differing:
        raise UserError(
            f"The text encoder in {files.folder} lacks {len(differing)} weights, {differing[0]} "
            "among them; fetch model.safetensors and config.json of the same model again."
        )
    if len(files.tokenizer) > wanted[EMBEDDINGS][0]:
        raise UserError(
            f"{files.vocabulary} has {len(files.tokenizer)} pieces but the encoder in "
            f"{files.folder} embeds {wanted[EMBEDDINGS][0]}; use the vocabulary that belongs to "
            "the encoder."
        )
    return model


def integers(values: Sequence[object], device: torch.device) -> Tensor:
    """Copy integers to a device; the host does not wait for a copy to a GPU."""
    cuda = device.type == "cuda"  # from pageable memory the copy would wait for the GPU's queue
    return torch.tensor(values, pin_memory=cuda).to(device, non_blocking=cuda)


def _parts(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the embeddings, the blocks and the last norm, with the prefixes of their names."""
    names = ["embed_tokens", "final_layer_norm"]
    names[1:1] = [f"block.{name}" for name, _ in model.get_submodule("block").named_children()]
    return [(f"{name}.", model.get_submodule(name)) for name in names]


def _fill(
    module: nn.Module,
    prefix: str,
    files: EncoderFiles,
    dtype: torch.dtype | None,
    device: torch.device,
) -> None:
    tensors = files.read([prefix + name for name in module.state_dict()], dtype)
    state: dict[str, Tensor] = {
        name.removeprefix(prefix): tensor.to(device) for name, tensor in tensors.items()
    }
    module.load_state_dict(state, assign=True)


def _stream(
    block: nn.Module, prefix: str, files: EncoderFiles, dtype: torch.dtype, device: torch.device
) -> None:
    """Make a block read its weights when it is called, and forget them afterwards."""

    def read(module: nn.Module, inputs: Any) -> None:
        _fill(module, prefix, files, dtype, device)

    def forget(module: nn.Module, inputs: Any, output: Any) -> None:
        module.to(torch.device("meta"))

    block.register_forward_pre_hook(read)
    block.register_forward_hook(forget)


def _keep_in_file(
    embeddings: nn.Embedding,
    prefix: str,
    files: EncoderFiles,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Look rows up in the file's own type and convert those alone: half a gigabyte for T5-XXL."""

    def convert(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output.to(dtype)

    _fill(embeddings, prefix, files, None, device)
    embeddings.register_forward_hook(convert)


def _require_torchao() -> None:
    try:
        with silence():
            import torchao  # noqa: F401
    except ImportError:
        raise UserError(
            "The encoder mode 'int8' needs the package torchao; install it with "
            "pip install 'dreamcascade[quantized]', or take bfloat16 or layerwise."
        ) from None


def _quantize(block: nn.Module) -> None:
    """Hold a block's linear layers in 8 bits, a scale per output row."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(block, Int8WeightOnlyConfig())
