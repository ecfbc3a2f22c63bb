"""Personalised pixel-space diffusion: an Imagen-style cascade and DreamBooth on all its stages.

What is exported here is what other programs may count on; the rest may change between versions.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cascade.api import personalise, train
    from cascade.config.dreambooth import DreamBoothConfig
    from cascade.config.recipes import RECIPES
    from cascade.config.sample import SampleOptions
    from cascade.config.stage import SamplerConfig, StageConfig
    from cascade.config.train import PretrainConfig
    from cascade.errors import UserError
    from cascade.pipeline import Cascade, CascadeOutput
    from cascade.stage import Stage

__version__ = "0.2.0.dev0"

_PLACES = {
    "Cascade": "pipeline",
    "CascadeOutput": "pipeline",
    "DreamBoothConfig": "config.dreambooth",
    "PretrainConfig": "config.train",
    "RECIPES": "config.recipes",
    "SampleOptions": "config.sample",
    "SamplerConfig": "config.stage",
    "Stage": "stage",
    "StageConfig": "config.stage",
    "UserError": "errors",
    "personalise": "api",
    "train": "api",
}

__all__ = [
    "RECIPES",
    "Cascade",
    "CascadeOutput",
    "DreamBoothConfig",
    "PretrainConfig",
    "SampleOptions",
    "SamplerConfig",
    "Stage",
    "StageConfig",
    "UserError",
    "__version__",
    "personalise",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what is exported when it is asked for: the command line's help needs no PyTorch."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
