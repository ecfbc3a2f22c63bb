"""Which implementation a network's operations take."""

from torch import nn

from cascade.model.attention import Attention
from cascade.model.norm import FilmGroupNorm
from cascade_kernels.names import Backend


def set_backend(network: nn.Module, backend: Backend) -> None:
    """Let every norm and attention of a network run on one backend.

    Args:
        network: changed in place; may be changed again at any time.
        backend: "auto" takes a kernel where one was measured to be the best choice, "triton"
            always (an error where it cannot run), "reference" plain PyTorch.
    """
    for module in network.modules():
        if isinstance(module, Attention | FilmGroupNorm):
            module.backend = backend
