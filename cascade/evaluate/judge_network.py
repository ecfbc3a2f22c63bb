"""The network of the judge: a small residual trunk, and for each question its own look at it.

Shapes: `B` pictures, `C` channels, `P` places, `A` attributes, `K` answers of all attributes.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

SIDE = 64
"""Side of the pictures that the network sees, pixels."""


class JudgeNetwork(nn.Module):
    """Residual bottlenecks (He et al. 2016) at four sizes, then attention pooling per attribute.

    A place is told by the rim of a picture and a crown by a few pixels of it: every attribute
    weights the places by itself.
    """

    def __init__(
        self, widths: Sequence[int], answers: Sequence[int], *, normalised: bool = False
    ) -> None:
        """Build the network.

        Args:
            widths: channels at 64, 32, 16 and 8 pixels.
            answers: how many every attribute has, A numbers.
            normalised: with batch normalisation, to train; without, as it is stored.
        """
        super().__init__()
        trunk: list[nn.Module] = [_Convolution(3, widths[0], 3, 1, normalised), nn.SiLU()]
        for before, width in pairwise(widths):
            trunk += [_Convolution(before, width, 3, 2, normalised), nn.SiLU()]
            trunk += [_Bottleneck(width, normalised) for _ in range(2)]
        self.trunk = nn.Sequential(*trunk)
        self.places = nn.Conv2d(widths[-1], len(answers), 1)
        self.heads = nn.ModuleList(nn.Linear(2 * widths[-1], count) for count in answers)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `B K` of pictures `B 3 64 64` in [-1, 1], attribute after attribute."""
        features = self.trunk(images)
        weights = self.places(features).flatten(2).softmax(2)  # B A P
        flat = features.flatten(2)  # B C P
        seen = weights @ flat.transpose(1, 2)  # B A C
        whole = flat.mean(2)
        return torch.cat(
            [head(torch.cat([seen[:, place], whole], 1)) for place, head in enumerate(self.heads)],
            1,
        )

    def folded(self) -> Self:
        """Return a copy on the CPU whose normalisation has gone into its convolutions."""
        network = copy.deepcopy(self).cpu().eval()
        for module in network.modules():
            if isinstance(module, _Convolution):
                module.fold()
        return network


class _Convolution(nn.Module):
    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, normalised: bool
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, bias=not normalised
        )
        self.norm = nn.BatchNorm2d(outputs) if normalised else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.norm(self.conv(x))
        return answer

    def fold(self) -> None:
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv, self.norm)
            self.norm = nn.Identity()


class _Bottleneck(nn.Module):
    def __init__(self, width: int, normalised: bool) -> None:
        super().__init__()
        self.narrow = _Convolution(width, width // 2, 1, 1, normalised)
        self.spatial = _Convolution(width // 2, width // 2, 3, 1, normalised)
        self.wide = _Convolution(width // 2, width, 1, 1, normalised)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.spatial(F.silu(self.narrow(x)))
        return F.silu(x + self.wide(F.silu(inner)))
