"""Weights on disk: whole, in shards or as a variant; read and written tensor by tensor.

On a CPU safetensors maps a file into memory, so a tensor that is read costs no memory of its own
before it is changed. The writer takes one tensor at a time, so a file may be larger than memory.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from cascade.errors import UserError
from cascade.files import copy_file, read_index, replacing
from cascade.tensors import FLOATS, Header, headers, opened, require_finite, weight_shapes
from cascade.text.encoder import meta_model
from cascade.text.files import EncoderFiles

STEM = "diffusion_pytorch_model"
_NAMES = {dtype: name for name, dtype in FLOATS.items()}


OnTensor = Callable[[str, int, int], None]
"""Called with (stage name, tensors written, of how many)."""


class Weights:
    """The tensors of one or more safetensors files, opened and not yet read.

    Attributes:
        headers: type and shape of every tensor, by name.
    """

    def __init__(self, files: Mapping[str, Path], device: str = "cpu") -> None:
        """Open the files that tensors lie in.

        Args:
            files: tensor name to file.
            device: where tensors are read to.
        """
        read = {path: headers(path) for path in dict.fromkeys(files.values())}
        handles = {path: opened(path, device) for path in read}
        self._files = {name: (path, handles[path]) for name, path in files.items()}
        self.headers: dict[str, Header] = {}
        for name, path in files.items():
            if name not in read[path]:
                raise UserError(f"{path} does not hold '{name}'; copy the checkpoint again.")
            self.headers[name] = read[path][name]

    def __getitem__(self, name: str) -> Tensor:
        """Read one tensor; on a CPU it stays in its file."""
        path, file = self._files[name]
        tensor: Tensor = file.get_tensor(name)
        require_finite({name: tensor}, str(path))
        return tensor

    def check(self) -> None:
        """Read every tensor, one after the other."""
        for name in self.headers:
            self.__getitem__(name)


def find_weights(folder: Path, variant: str | None = None) -> dict[str, Path]:
    """Find a diffusers model's tensors: `STEM[.variant].safetensors`, or its shards.

    Args:
        folder: the model's, such as `unet/`.
        variant: "fp16" for instance; without one the plain files, or else the only variant's.

    Returns:
        Tensor name to file.
    """
    if variant is None and not _index_or_file(folder, None):
        variant = _only_variant(folder)
    found = _index_or_file(folder, variant)
    if found is None:
        present = ", ".join(sorted(path.name for path in folder.glob("*"))) or "nothing"
        raise UserError(
            f"{folder} has no {STEM}.safetensors"
            + (f" of variant '{variant}'" if variant else "")
            + f" (it holds {present}); download the weights as safetensors."
        )
    if found.suffix == ".safetensors":
        return dict.fromkeys(weight_shapes(found), found)
    return read_index(found)


def write_weights(
    path: Path,
    headers: Mapping[str, Header],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    on_tensor: Callable[[int, int], None] | None = None,
) -> None:
    """Write a safetensors file, one tensor after the other; a reader sees it whole or not at all.

    Args:
        read: returns each tensor, once; it may be freed when the next is asked for.

    Raises:
        UserError: the disk is full, or the place may not be written.
        ValueError: a tensor is not what its header says.
    """
    # safetensors' own order: the widest types first, so that every tensor is aligned.
    order = sorted(headers, key=lambda name: (-headers[name].dtype.itemsize, name))
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(_preamble(order, headers, metadata))
        for done, name in enumerate(order, start=1):
            tensor = read(name)
            if Header(tensor.dtype, tuple(tensor.shape)) != headers[name]:
                raise ValueError(f"'{name}' is {tensor.dtype} {tuple(tensor.shape)}")
            flat = tensor.detach().cpu().contiguous().flatten()
            file.write(flat.view(torch.uint8).numpy().data)
            if on_tensor is not None:
                on_tensor(done, len(order))
        file.flush()
        os.fsync(file.fileno())


def require_output(folder: Path, files: Iterable[Weights]) -> None:
    """Refuse to write copies of weights where something lies, or where they do not fit."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder; choose another output folder.")
    needed = sum(header.size for weights in files for header in weights.headers.values())
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(
            f"{folder} needs {needed / 2**30:.1f} GiB but its disk has {free / 2**30:.1f} GiB "
            "left; free some, or choose another output folder."
        )


def encoder_weights(source: EncoderFiles) -> Weights:
    """Open the weights of a text encoder under the names in its files."""
    meta_model(source)
    return Weights(dict(source.weights.values()))


def write_encoder(source: EncoderFiles, folder: Path, vocabulary: Path) -> None:
    """Write a text encoder's configuration, its weights in one file, and its vocabulary."""
    copy_file(source.folder / "config.json", folder / "config.json")
    copy_file(source.vocabulary, vocabulary)
    weights = encoder_weights(source)
    # transformers refuses files that do not say what they were saved from.
    metadata = {"format": "pt"}
    write_weights(folder / "model.safetensors", weights.headers, weights.__getitem__, metadata)


def _preamble(
    order: list[str], headers: Mapping[str, Header], metadata: Mapping[str, str]
) -> bytes:
    """Return the header's length and the header, padded to eight bytes."""
    fields: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    begin = 0
    for name in order:
        header = headers[name]
        end = begin + header.size
        fields[name] = {
            "dtype": _NAMES[header.dtype],
            "shape": list(header.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _index_or_file(folder: Path, variant: str | None) -> Path | None:
    middle = f".{variant}" if variant else ""
    names = (f"{STEM}{middle}.safetensors", f"{STEM}.safetensors.index{middle}.json")
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _only_variant(folder: Path) -> str | None:
    variants = sorted(set(_variants(folder)))
    if len(variants) > 1:
        raise UserError(
            f"{folder} holds the variants {', '.join(variants)}; say which with --variant."
        )
    return variants[0] if variants else None


def _variants(folder: Path) -> Iterator[str]:
    for path in folder.glob(f"{STEM}.*.safetensors"):
        middle = path.name.removeprefix(f"{STEM}.").removesuffix(".safetensors")
        if "-of-" not in middle:
            yield middle
    for path in folder.glob(f"{STEM}.safetensors.index.*.json"):
        yield path.name.removeprefix(f"{STEM}.safetensors.index.").removesuffix(".json")
