"""The files of a published T5 encoder: configuration, vocabulary, weights.

Weights are one safetensors file or shards with an index, in float32 or as a half-precision variant
(`model.fp16.safetensors`). They are read tensor by tensor through a memory map, so that one block
of layers can be taken out of a file of any size.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import torch
from torch import Tensor

from cascade.errors import UserError
from cascade.files import read_index, read_json
from cascade.progress import silence
from cascade.tensors import float_type, opened
from cascade.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from transformers import T5Config

EMBEDDINGS: Final = "embed_tokens.weight"
_ALIASES: Final = {"shared.weight": EMBEDDINGS}  # a whole T5 shares them with its decoder
_VARIANTS: Final = ("", "fp16", "bf16")
_MEND: Final = "fetch the text encoder's files again"
# A wrong size would be built for hours, or overflow.
_MOST: Final[Mapping[str, float]] = {
    "num_layers": 1000,
    "num_heads": 10_000,
    "d_model": 100_000,
    "d_ff": 1_000_000,
    "d_kv": 10_000,
    "vocab_size": 10_000_000,
    "relative_attention_num_buckets": 10_000,
    "relative_attention_max_distance": 100_000,
    "layer_norm_epsilon": 0.1,
}
_ONE_OF: Final[Mapping[str, tuple[object, ...]]] = {
    "feed_forward_proj": ("relu", "gated-gelu"),  # T5 v1.0, v1.1
    "dense_act_fn": ("relu", "gelu_new"),
    "is_gated_act": (False, True),
}
_DIGESTED: Final = 1 << 14  # values of a tensor that the digest reads


@dataclass(frozen=True)
class EncoderFiles:
    """The files of an encoder that is not loaded.

    Attributes:
        folder: the encoder's folder.
        values: the T5's configuration.
        vocabulary: the tokenizer's `spiece.model`.
        weights: a weight's name inside the encoder -> its name in a file, and the file.
    """

    folder: Path
    values: Mapping[str, Any]
    vocabulary: Path
    weights: Mapping[str, tuple[str, Path]]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open an encoder's folder: `config.json`, `model.safetensors` and `spiece.model`.

        The vocabulary may lie in `tokenizer/`, inside the folder or beside it, as in published
        pipelines.
        """
        vocabulary = find_vocabulary(folder)
        return cls(folder, _read_config(folder), vocabulary, _find_weights(folder))

    @cached_property
    def config(self) -> "T5Config":
        """The T5's configuration."""
        with silence():
            from transformers import T5Config
        try:
            return T5Config.from_dict(dict(self.values))
        except (ValueError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"The text encoder in {self.folder} cannot be read ({reason}); {_MEND}."
            ) from error

    @property
    def width(self) -> int:
        """`D`, the width of the embeddings."""
        return int(self.config.d_model)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The encoder's tokenizer."""
        return Tokenizer(self.vocabulary)

    @cached_property
    def model_digest(self) -> str:
        """SHA-256 that differs between trainings of the model.

        It reads the embeddings whole, whose single rows people edit, and the start of every other
        tensor, which any training changes: seconds where ten gigabytes would take minutes.
        """
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            # Flattened: the values of a tensor, not how it is laid out, make it what it is.
            tensor = self.read([name])[name].flatten()
            tensor = tensor if name == EMBEDDINGS else tensor[:_DIGESTED]
            digest.update(f"{name} {tensor.dtype} ".encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 of the vocabulary."""
        return hashlib.sha256(self.vocabulary.read_bytes()).hexdigest()

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Read the shape of every weight from the files' headers."""
        shapes: dict[str, tuple[int, ...]] = {}
        for path, names in self._by_file(self.weights).items():
            with opened(path, mend=_MEND) as file:
                for name in names:
                    part = file.get_slice(self.weights[name][0])
                    float_type(part.get_dtype(), self.weights[name][0], path)
                    shapes[name] = tuple(part.get_shape())
        return shapes

    def read(self, names: Iterable[str], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """Read weights by their names inside the encoder.

        Where the type is the file's, a tensor is a view of the memory map: it takes memory only
        once its pages are touched, and the map closes when the last view is gone.

        Args:
            dtype: to convert to; the file's own type by default.
        """
        tensors: dict[str, Tensor] = {}
        for path, wanted in self._by_file(names).items():
            with opened(path, mend=_MEND) as file:
                for name in wanted:
                    tensor: Tensor = file.get_tensor(self.weights[name][0])
                    tensors[name] = tensor if dtype is None else tensor.to(dtype)
        return tensors

    def _by_file(self, names: Iterable[str]) -> dict[Path, list[str]]:
        grouped: dict[Path, list[str]] = {}
        for name in names:
            grouped.setdefault(self.weights[name][1], []).append(name)
        return grouped


def find_vocabulary(folder: Path) -> Path:
    """Find an encoder's `spiece.model`: in its folder, in `tokenizer/` inside it, or beside it."""
    if not folder.is_dir():
        raise UserError(f"There is no text encoder folder {folder}; check the path.")
    folders = [folder, folder / "tokenizer", folder.parent / "tokenizer"]
    for where in folders:
        if (where / "spiece.model").is_file():
            return where / "spiece.model"
    raise UserError(
        f"There is no spiece.model in {folder} or in a folder 'tokenizer' next to it; fetch the "
        "encoder's tokenizer too."
    )


def _read_config(folder: Path) -> Mapping[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"There is no config.json in {folder}; fetch the encoder again.")
    values = read_json(path, "fetch the encoder again")
    kind = values.get("model_type")
    if kind != "t5":
        raise UserError(f"{path} is the configuration of a '{kind}'; give the folder of a T5.")
    known = {key: value for key, value in values.items() if key in _MOST or key in _ONE_OF}
    for key, value in known.items():
        if key in _MOST:
            right = type(value) is type(_MOST[key]) and 0 < value <= _MOST[key]
            wanted = f"above 0 and at most {_MOST[key]}"
        else:
            right = any(type(value) is type(one) and value == one for one in _ONE_OF[key])
            wanted = f"one of {', '.join(map(str, _ONE_OF[key]))}"
        if not right:
            raise UserError(
                f"In {path} '{key}' is {str(value)[:60]}, and a T5's is {wanted}; {_MEND}."
            )
    return known


def _find_weights(folder: Path) -> dict[str, tuple[str, Path]]:
    """Find every weight of the encoder; the full-precision files win over a variant's."""
    for variant in _VARIANTS:
        infix = f".{variant}" if variant else ""
        whole = folder / f"model{infix}.safetensors"
        index = folder / f"model.safetensors.index{infix}.json"
        if whole.is_file():
            with opened(whole, mend=_MEND) as file:
                return _of_encoder(dict.fromkeys(file.keys(), whole))
        if index.is_file():
            return _of_encoder(_shards(index))
    raise UserError(
        f"There is no model.safetensors in {folder}, whole or in shards; fetch the encoder again."
    )


def _shards(path: Path) -> dict[str, Path]:
    files = read_index(path, _MEND)
    missing = sorted({file.name for file in files.values() if not file.is_file()})
    if missing:
        raise UserError(
            f"{path} names {missing[0]}, which is not there; fetch all shards of the encoder."
        )
    return files


def _of_encoder(files: Mapping[str, Path]) -> dict[str, tuple[str, Path]]:
    """Drop a decoder's weights, and name the others as the encoder alone does."""
    return {
        _ALIASES.get(name, name.removeprefix("encoder.")): (name, path)
        for name, path in files.items()
        if name in _ALIASES or name.startswith("encoder.")
    }
