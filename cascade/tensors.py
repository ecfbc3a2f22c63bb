"""Tensors on disk: safetensors files opened and read, and refused with the reason.

A file is whole when its header fits its size, which safetensors proves on opening. What is read
here is proven besides to hold numbers: a single NaN makes every picture black.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cascade.errors import UserError

FLOATS: Final[Mapping[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
"""The types that weights are read in, by the format's own names."""

_AS_SAFETENSORS: Final = "save its tensors with safetensors.torch.save_file"
_OTHERS: Final[Mapping[bytes, tuple[str, str]]] = {
    b"PK": ("a zip archive, as torch.save writes, which can run programs", _AS_SAFETENSORS),
    b"\x80": ("a pickle, which can run programs", _AS_SAFETENSORS),
    b"GGUF": ("a GGUF file", _AS_SAFETENSORS),
    b"version https://git-lfs": ("Git LFS's pointer to the file", "fetch it with 'git lfs pull'"),
    b"<": ("a web page", "fetch the file itself"),
}
"""First bytes of what people have in its place: what it is, and what to do."""


class NoPictureError(UserError):
    """A stage drew what is no picture.

    Attributes:
        pictures: B C H W, NaN wherever a number is not finite.
    """

    def __init__(self, stage: str, drawn: Tensor) -> None:
        super().__init__(
            f"Stage '{stage}' drew what is no picture (NaN or infinite); take a lower guidance, "
            "precision fp32, or weights that were not spoilt in training."
        )
        self.pictures = drawn.where(torch.isfinite(drawn), torch.nan)


class Header(NamedTuple):
    """A tensor's header in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def opened(path: Path, device: str = "cpu", mend: str = "copy the checkpoint again") -> Any:
    """Open a safetensors file through a memory map; the handle has no usable type.

    Args:
        mend: what to do about a damaged file, for the error's sentence.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; the folder is not a whole checkpoint, {mend}.")
    try:
        return safe_open(path, framework="pt", device=device)
    except (SafetensorError, OSError) as error:
        raise _refusal(path, error, mend) from None


def weight_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a safetensors file's tensors by name; reads its header alone."""
    with opened(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def headers(path: Path) -> dict[str, Header]:
    """Types and shapes of the weights in a safetensors file by name; reads its header alone."""
    with opened(path) as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return {
        name: Header(float_type(part.get_dtype(), name, path), tuple(part.get_shape()))
        for name, part in slices.items()
    }


def float_type(kind: str, name: str, path: Path) -> torch.dtype:
    """Return the dtype of a tensor by the format's name."""
    if kind not in FLOATS:
        raise UserError(
            f"'{name}' in {path} is of type {kind}, and weights are floats ({', '.join(FLOATS)}); "
            "take the file that was trained, not a quantised or converted one."
        )
    return FLOATS[kind]


def read_weights(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Read the weights of a safetensors file in float32.

    On a CPU tensors of a float32 file stay memory-mapped.
    """
    names = headers(path)
    with opened(path, str(device)) as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name).float() for name in names}
    require_finite(tensors, str(path))
    return tensors


def check_tensors(path: Path, network: torch.nn.Module) -> None:
    """Compare a file's tensors with a network's, by name and shape."""
    held = {name: header.shape for name, header in headers(path).items()}
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    names = sorted(held.keys() | wanted.keys())
    differing = [name for name in names if held.get(name) != wanted.get(name)]
    if differing:
        raise UserError(
            f"The weights in {path} do not fit their config.json ({len(differing)} differ, "
            f"{differing[0]} among them); the two files come from different checkpoints."
        )


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that are no numbers."""
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise UserError(
                f"'{name}' in {where} holds NaN or infinite numbers, which draw nothing; take "
                "weights of before they broke."
            )


def _refusal(path: Path, error: Exception, mend: str) -> UserError:
    with path.open("rb") as file:
        start = file.read(32)
    for first, (kind, instead) in _OTHERS.items():
        if start.lstrip().startswith(first):
            return UserError(f"{path} is {kind}, not a safetensors file; {instead}.")
    return UserError(f"{path} is damaged ({error}); {mend}.")
