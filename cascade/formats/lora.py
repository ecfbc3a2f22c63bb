"""LoRA files: W + scale alpha/r B A (Hu et al. 2022, eq. 3), as adapters of a network.

Both peft's names (`MODULE.lora_A.weight`, `MODULE.lora_B.weight`, alpha in `adapter_config.json`
or `MODULE.alpha`) and diffusers' (`MODULE.lora.down.weight`, `MODULE.processor.to_q_lora...`) are
read, for our modules and for those of diffusers' DeepFloyd IF, whose queries, keys and values are
rows of one matrix here.

Shapes: `r` rank, `I O` input and output channels of a layer.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

from pydantic import Field, TypeAdapter, ValidationError
from torch import Tensor, nn

from cascade.config.unet import UNetConfig
from cascade.errors import UserError
from cascade.files import read_json
from cascade.formats.keys import entries
from cascade.model.adapters import LowRank, adaptable
from cascade.tensors import read_weights

ADAPTER: Final = "adapter_config.json"
_FACTOR: Final = re.compile(
    r"(?P<module>.+?)"
    r"(?:\.lora_(?P<peft>[AB])(?:\.default)?|[._]lora\.(?P<diffusers>down|up))\.weight"
)
_PREFIX: Final = re.compile(r"^(?:base_model\.model\.|unet\.|network\.)+")
_TEXT = re.compile(r"^(?:base_model\.model\.)?(?:text_encoder|lora_te)")
_ALPHA: Final = TypeAdapter(Annotated[float, Field(strict=True, allow_inf_nan=False)])
_UNREAD: Final = ("alpha_pattern", "rank_pattern", "use_dora", "use_rslora")


def read_lora(
    path: Path,
    network: nn.Module,
    config: UNetConfig | None = None,
    scale: float = 1.0,
    unet_only: bool = False,
) -> list[tuple[str, LowRank]]:
    """Read the adapters of a network from a safetensors file, each with its layer's name.

    Args:
        config: of the network, so that diffusers' names are understood too.
        scale: factor on all of them, beside their own alpha/r.
        unet_only: leave out what the file changes of the text encoder, which is frozen here.
    """
    targets, adapters = _targets(network, config), []
    for module, (down, up, factor) in _pairs(path, unet_only).items():
        if module not in targets:
            raise UserError(
                f"{path} changes '{module}', which this network has not; take a LoRA of the "
                "same stage."
            )
        layer, part, parts = targets[module]
        weight = getattr(network.get_submodule(layer), "weight")  # noqa: B009 -- any may have one
        rows, columns = len(weight) // parts, weight[0].numel()
        if (len(up), down.shape[1]) != (rows, columns):
            raise UserError(
                f"{path} has a change of shape {(len(up), down.shape[1])} for '{module}' of shape "
                f"{(rows, *weight.shape[1:])}; take a LoRA of the same stage."
            )
        factors = (down.to(weight.device), up.to(weight.device))
        adapters.append((layer, LowRank(*factors, scale * factor, part * rows)))
    return adapters


def _targets(network: nn.Module, config: UNetConfig | None) -> dict[str, tuple[str, int, int]]:
    """Map modules to (our layer, which part of its rows, of how many)."""
    targets = {name: (name, 0, 1) for name in adaptable(network)}
    # Only networks of DeepFloyd IF's kind have a layout of diffusers'.
    if config is not None and config.resample == "residual":
        ending = ".weight"
        for entry in entries(config):
            for part, theirs in enumerate(entry.theirs):
                if theirs.endswith(ending):
                    target = (entry.ours.removesuffix(ending), part, len(entry.theirs))
                    targets.setdefault(theirs.removesuffix(ending), target)
    return targets


def _pairs(path: Path, unet_only: bool) -> dict[str, tuple[Tensor, Tensor, float]]:
    """Map modules to A r I, B O r and alpha/r of a file (a convolution's I counts its taps)."""
    pairs: dict[str, dict[str, Tensor]] = {}
    alphas: dict[str, float] = {}
    for name, value in read_weights(path).items():
        factor = _FACTOR.fullmatch(name)
        if _TEXT.match(name):
            if unet_only:
                continue
            raise UserError(
                f"{path} changes the text encoder too ('{name}'), which is frozen here; leave that "
                "out with --lora-unet-only."
            )
        if factor:
            if value.dim() < 2 or not value.numel():
                raise UserError(
                    f"'{name}' in {path} is of shape {tuple(value.shape)}, which is no LoRA "
                    "factor; take a LoRA file."
                )
            side = {"down": "A", "up": "B"}.get(factor["diffusers"], factor["peft"])
            pairs.setdefault(_module(factor["module"]), {})[side] = value.flatten(1)
        elif name.endswith(".alpha") and value.numel() == 1:
            alphas[_module(name.removesuffix(".alpha"))] = float(value)
        else:
            raise UserError(f"{path} holds '{name}', which is no LoRA factor; take a LoRA file.")
    if not pairs or alphas.keys() - pairs.keys():
        raise UserError(f"{path} holds no whole LoRA; take another file.")
    default = _adapter_alpha(path.with_name(ADAPTER))
    return {
        module: _whole(path, module, pair, alphas.get(module, default))
        for module, pair in pairs.items()
    }


def _whole(
    path: Path, module: str, pair: Mapping[str, Tensor], alpha: float | None
) -> tuple[Tensor, Tensor, float]:
    if pair.keys() != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
        raise UserError(f"{path} holds only half of the change of '{module}'; copy it again.")
    rank = pair["A"].shape[0]
    return pair["A"], pair["B"], 1.0 if alpha is None else alpha / rank


def _module(name: str) -> str:
    """Strip a wrapper's prefix, or diffusers' attention processor, from a layer's name."""
    name = _PREFIX.sub("", name).replace(".processor.", ".")
    return f"{name}.0" if name.endswith(".to_out") else name


def _adapter_alpha(path: Path) -> float | None:
    """Read peft's `lora_alpha` beside a file; None without a configuration: alpha is the rank."""
    if not path.is_file():
        return None
    adapter = read_json(path)
    for key in _UNREAD:
        if adapter.get(key):
            raise UserError(
                f"{path} sets {key}, which cannot be merged here; merge the adapter with peft."
            )
    try:
        return _ALPHA.validate_python(adapter.get("lora_alpha"))
    except ValidationError:
        raise UserError(
            f"{path} has no number 'lora_alpha'; copy it beside its weights again."
        ) from None
