"""Personalised pixel-space diffusion: an Imagen-style cascade and DreamBooth on all its stages."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cascade.pipeline import Cascade

__all__ = ["Cascade"]


def __getattr__(name: str) -> object:
    """Import what is exported when it is asked for: the command line's help needs no PyTorch."""
    if name != "Cascade":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cascade.pipeline import Cascade

    return Cascade
