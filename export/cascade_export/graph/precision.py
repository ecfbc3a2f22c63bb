"""Networks in fp16 or bf16, with islands of fp32 where half precision would lose the image.

Every layer computes in the type of its own weights and casts what it is given; the weights of
islands stay in fp32. Norms have fp32 statistics and every softmax is in fp32, whatever the islands.

Shapes: as in `cascade.model.unet`.
"""

import copy
from collections.abc import Collection, Iterator
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from cascade.errors import UserError
from cascade.model.layers import FilmGroupNorm, ResBlock
from cascade.model.unet import UNet
from cascade.tensors import require_finite
from cascade_export.graph.numerics import Precision

_Module = TypeVar("_Module", bound=nn.Module)
_Tree = TypeVar("_Tree")

DTYPES: Final[dict[Precision, torch.dtype]] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
DEFAULT_ISLANDS: Final = ("time_embedding", "aug_embedding", "*norm*", "conv_out")
"""Patterns of the U-Net's module names: conditioning on the noise level, norms, last convolution.
A pattern takes the whole module, its parts included; "decoder.3" is one unit of the decoder."""


def cast(
    network: nn.Module, precision: Precision, islands: Collection[str] = DEFAULT_ISLANDS
) -> nn.Module:
    """Return a copy of a U-Net that computes in `precision`.

    Args:
        network: a `UNet` in float32; stays as it is. Weights whose type does not change are shared.
        islands: name patterns (`fnmatch`) of modules that stay in fp32.

    Returns:
        A network in evaluation mode with the same parameter names and the same call: float32 in,
        float32 out.

    Raises:
        TypeError: the network is no `UNet`.
    """
    if not isinstance(network, UNet):
        raise TypeError(f"{type(network).__name__} is no UNet")
    _check_islands(network, islands)
    copied = _copy(network, DTYPES[precision], islands)
    if precision == "fp32":
        return copied
    for module in _whole_islands(copied, islands):
        module.register_forward_pre_hook(_widen, with_kwargs=True)
    # The image that runs through the network is of one type wherever islands lie: blocks stack it
    # on their skips.
    narrow = partial(_output, dtype=DTYPES[precision])
    for module in _image_path(copied):
        module.register_forward_hook(narrow)
    copied.register_forward_hook(partial(_output, dtype=torch.float32))
    return copied


def check_cast(network: nn.Module, precision: Precision) -> None:
    """Check that `cast` takes a U-Net, one weight at a time."""
    for _ in _narrowed(network, DTYPES[precision], DEFAULT_ISLANDS):
        pass


def _image_path(network: UNet) -> list[nn.Module]:
    """Return the modules that the image passes one after the other, up to the last norm."""
    paths = (network.encoder, network.middle, network.decoder)
    return [network.conv_in, *(module for path in paths for module in path.children())]


def in_island(name: str, islands: Collection[str]) -> bool:
    """Return whether a module's name, or that of a module around it, matches a pattern."""
    parts = name.split(".")
    names = [".".join(parts[: end + 1]) for end in range(len(parts))]
    return any(fnmatchcase(name, pattern) for name in names for pattern in islands)


def _copy(network: _Module, dtype: torch.dtype, islands: Collection[str]) -> _Module:
    """Copy a network with its weights cast, every layer casting its inputs to their type."""
    memo = {
        id(parameter): nn.Parameter(value, requires_grad=False)
        for parameter, value in _narrowed(network, dtype, islands)
    }
    copied = copy.deepcopy(network, memo)
    copied.eval()
    if dtype != torch.float32:
        for module in copied.modules():
            # Our norm computes in fp32 and returns the type of its input.
            if not isinstance(module, FilmGroupNorm) and not any(module.children()):
                module.register_forward_pre_hook(_to_own_weights)
    return copied


def _narrowed(
    network: nn.Module, dtype: torch.dtype, islands: Collection[str]
) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Yield each weight, and what it becomes outside of the islands."""
    for name, parameter in network.named_parameters():
        wide = in_island(name.rpartition(".")[0], islands)
        yield parameter, narrowed(name, parameter.detach(), torch.float32 if wide else dtype)


def narrowed(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a weight in another type; one on the meta device has no values to check."""
    cast_value = value.to(dtype)
    if value.is_meta or bool(torch.isfinite(cast_value).all()):
        return cast_value
    require_finite({name: value}, "the network")
    raise UserError(
        f"'{name}' reaches {float(value.abs().max()):.3g}, which {dtype} cannot hold; export in "
        "fp32 or bf16."
    )


def _whole_islands(network: nn.Module, islands: Collection[str]) -> list[nn.Module]:
    """Return the largest modules inside of islands, layers apart: their inputs become fp32."""
    # Lists of modules are never called, their elements are.
    called = {
        name: module
        for name, module in network.named_modules()
        if any(module.children()) and not isinstance(module, nn.ModuleList)
    }
    inside = [name for name in called if in_island(name, islands)]
    # A block convolves its skip with the weight itself, past the layer's own cast.
    inside += [
        name
        for name, module in called.items()
        if isinstance(module, ResBlock) and in_island(f"{name}.skip", islands)
    ]
    largest = {name for name in inside if not any(name.startswith(f"{o}.") for o in inside)}
    return [called[name] for name in sorted(largest)]


def _check_islands(network: nn.Module, islands: Collection[str]) -> None:
    names = [name for name, _ in network.named_modules()]
    for pattern in islands:
        # A base network has no augmentation level to embed.
        if pattern not in DEFAULT_ISLANDS and not any(fnmatchcase(n, pattern) for n in names):
            raise UserError(
                f"The network has no module '{pattern}' to keep in fp32; name one such as "
                "'conv_in' or 'decoder.0'."
            )


def _to_own_weights(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    own = next(module.parameters(recurse=False), None)
    return inputs if own is None else _cast_floats(inputs, own.dtype)


def _widen(
    module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return _cast_floats((inputs, named), torch.float32)


def _output(module: nn.Module, inputs: tuple[Any, ...], out: Tensor, dtype: torch.dtype) -> Tensor:
    return out.to(dtype)


def _cast_floats(values: _Tree, dtype: torch.dtype) -> _Tree:
    """Cast the tensors of floats, however deep in tuples and dictionaries."""
    cast_values: _Tree = tree_map(
        lambda value: (
            value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        ),
        values,
    )
    return cast_values
