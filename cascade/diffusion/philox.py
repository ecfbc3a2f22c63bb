"""Noise drawn where it is used: Philox4x32-10, a generator that is a function of a counter.

`Noise` keeps a generator per image and draws one image after another on the CPU. Here a number is a
hash of its image's seed and of its place in that image's stream, so that a whole batch is drawn at
once, on any device, and still no image's numbers depend on the others.

Source: Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
section 3.3 and table 2.

Shapes: `B` images, `K` counters of each; a 32-bit word is held in an int64.
"""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from cascade.diffusion.noise import to_device

Words = tuple[Tensor, Tensor, Tensor, Tensor]

_ROUNDS: Final = 10
_MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
_WEYL: Final = (0x9E3779B9, 0xBB67AE85)  # what the words of the key grow by, round by round
_WORD: Final = 0xFFFFFFFF


def round_keys(key: Tensor) -> tuple[Tensor, Tensor]:
    """Return the keys of the ten rounds, two words each, 10 x the shape of `key`.

    Args:
        key: int64, whose bits are the two words, the lower one first.
    """
    turns = torch.arange(_ROUNDS, device=key.device).view(-1, *(1,) * key.dim())
    low, high = key & _WORD, (key >> 32) & _WORD
    return (low + turns * _WEYL[0]) & _WORD, (high + turns * _WEYL[1]) & _WORD


def philox4x32(counter: Words, keys: tuple[Tensor, Tensor]) -> Words:
    """Return the four words that Philox4x32-10 makes of each counter.

    Args:
        counter: four words.
        keys: as `round_keys` returns them; counters and keys broadcast.
    """
    c0, c1, c2, c3 = counter
    for k0, k1 in zip(*keys, strict=True):
        high0, low0 = _product(c0, _MULTIPLIERS[0])
        high1, low1 = _product(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return c0, c1, c2, c3


class PhiloxNoise:
    """A `NoiseSource` that draws every image of a batch at once, on the device that needs it.

    Its numbers are not those of `Noise`. A draw takes about 150 kernel launches, however large the
    batch. On another device the normals are the same but for the last bits of its logarithm and its
    sine, which the rounding to float32 hides almost always.

    Args:
        seeds: one per image, in [0, 2^63).
        device: where the numbers are drawn.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        key = to_device(torch.tensor(seeds, dtype=torch.int64), device)
        self._keys = round_keys(key[:, None])
        self._count = len(seeds)
        self._drawn = 0  # counters of every image that are spent

    def __len__(self) -> int:
        return self._count

    def normal(self, *shape: int) -> Tensor:
        """Draw unit normals: B x shape, float32 (Box & Muller 1958)."""
        count = math.prod(shape)
        w0, w1, w2, w3 = self._words(-(-count // 4))
        values = torch.stack([*_box_muller(w0, w1), *_box_muller(w2, w3)], dim=-1)
        return values.flatten(1)[:, :count].reshape(len(self), *shape)

    def uniform(self) -> Tensor:
        """Draw one number in [0, 1) per image: B, float64."""
        w0, w1, _, _ = self._words(1)
        return (((w0 >> 5) << 26) + (w1 >> 6)).flatten().double() * 2.0**-53

    def _words(self, counters: int) -> Words:
        """Spend counters of every image: four words, each B K."""
        start, self._drawn = self._drawn, self._drawn + counters
        place = torch.arange(start, start + counters, device=self._keys[0].device)[None]
        zero = torch.zeros_like(place)
        return philox4x32((place & _WORD, place >> 32, zero, zero), self._keys)


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """Return the upper and the lower word of the product of two words."""
    # int64 wraps at 2^64 and keeps every bit; the sign that the shift drags along is masked off.
    product = word * multiplier
    return (product >> 32) & _WORD, product & _WORD


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent unit normals of two words.

    In float64: its rounding to float32 leaves no trace of how a device computes them, nor of
    whether the CPU came to a number with its vector unit or without.
    """
    u = (first + 1).double() * 2.0**-32  # in (0, 1]: the logarithm of 0 is never taken
    radius = torch.sqrt(-2.0 * torch.log(u))
    angle = second.double() * (2.0 * math.pi * 2.0**-32)
    return (radius * torch.cos(angle)).float(), (radius * torch.sin(angle)).float()
