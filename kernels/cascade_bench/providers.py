"""Who is timed: a provider is one function and one entry here."""

from collections.abc import Mapping
from functools import partial
from typing import Final

from cascade.errors import UserError
from cascade_bench.networks import Maker
from cascade_bench.ours import ours
from cascade_bench.peers import diffusers, imagen_pytorch

PROVIDERS: Final[Mapping[str, Maker]] = {
    "eager": ours,
    "compiled": partial(ours, compiled="default"),
    "graphs": partial(ours, compiled="reduce-overhead"),
    "triton": partial(ours, backend="triton"),
    "triton-compiled": partial(ours, backend="triton", compiled="default"),
    "triton-graphs": partial(ours, backend="triton", compiled="reduce-overhead"),
    "diffusers": diffusers,
    "diffusers-compiled": partial(diffusers, compiled="default"),
    "imagen-pytorch": imagen_pytorch,
}


def known(names: str, providers: Mapping[str, object]) -> list[str]:
    """Read a list of providers, such as `eager,diffusers`."""
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    if not chosen or any(name not in providers for name in chosen):
        raise UserError(f"--against {names} is no list of {', '.join(providers)}; mend it.")
    return chosen
