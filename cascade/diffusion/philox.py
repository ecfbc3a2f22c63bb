"""Noise drawn where it is used: Philox4x32-10, a generator that is a function of a counter.

`Noise` keeps a generator per image and draws one image after another on the CPU. Here a number is a
hash of its image's seed and of its place in that image's stream, so that a whole batch is drawn at
once, on any device, and still no image's numbers depend on the others.

Source: Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011,
section 3.3 and table 2.

Shapes: `B` images, `K` counters of each; a 32-bit word is held in an int64.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

import torch
from torch import Tensor

from cascade.diffusion.noise import to_device

Words = tuple[Tensor, Tensor, Tensor, Tensor]
_Draw = Callable[[Tensor, Tensor, int], Tensor]

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

    Its numbers are not those of `Noise`. A draw takes about 160 passes over its numbers, or one
    where it is compiled. On another device, and compiled, the normals are the same but for the last
    bits of their logarithm and their sine, which the rounding to float32 hides almost always.

    Args:
        seeds: one per image, in [0, 2^63).
        device: where the numbers are drawn.
        compiled: whether `torch.compile` makes one kernel of a draw, once in a process.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device, compiled: bool = False) -> None:
        self._seeds = to_device(torch.tensor(seeds, dtype=torch.int64), device)
        self._compiled = compiled
        self._drawn = 0  # counters of every image that are spent

    def __len__(self) -> int:
        return len(self._seeds)

    def normal(self, *shape: int) -> Tensor:
        """Draw unit normals: B x shape, float32 (Box & Muller 1958)."""
        count = math.prod(shape)
        values = self._draw(_normals, -(-count // 4))
        return values[:, :count].reshape(len(self), *shape)

    def uniform(self) -> Tensor:
        """Draw one number in [0, 1) per image: B, float64."""
        return self._draw(_uniforms, 1)[:, 0]

    def _draw(self, function: _Draw, counters: int) -> Tensor:
        """Spend counters of every image: what the function makes of their words."""
        # A tensor, on the host: of plain numbers 0 and 1 would be compiled for themselves.
        start = torch.tensor(self._drawn)
        self._drawn += counters
        return (_compiled(function) if self._compiled else function)(self._seeds, start, counters)


def _normals(seeds: Tensor, start: Tensor, counters: int) -> Tensor:
    """Four unit normals of each of the counters that follow a start: B 4K."""
    w0, w1, w2, w3 = _words(seeds, start, counters)
    return torch.stack([*_box_muller(w0, w1), *_box_muller(w2, w3)], dim=-1).flatten(1)


def _uniforms(seeds: Tensor, start: Tensor, counters: int) -> Tensor:
    """Return a number in [0, 1) of each of the counters that follow a start: B K, float64."""
    w0, w1, _, _ = _words(seeds, start, counters)
    return (((w0 >> 5) << 26) + (w1 >> 6)).double() * 2.0**-53


def _words(seeds: Tensor, start: Tensor, counters: int) -> Words:
    place = start + torch.arange(counters, device=seeds.device)
    zero = torch.zeros_like(place)
    return philox4x32((place & _WORD, place >> 32, zero, zero), round_keys(seeds[:, None]))


@cache
def _compiled(function: _Draw) -> _Draw:
    # One kernel for all sizes; the compiler is imported here, by runs that ask for it.
    return torch.compile(function, dynamic=True)


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """Return the upper and the lower word of the product of two words."""
    # A multiplier of 2^31 or more less 2^32, the product stays within 2^62: a C++ compiler may take
    # for granted that int64 never overflows. The upper word then lacks one `word`.
    product = word * (multiplier - 2**32)
    return (product >> 32) + word, product & _WORD


def _box_muller(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two independent unit normals of two words.

    In float64: its rounding to float32 leaves no trace of how a device computes them, nor of
    whether the CPU came to a number with its vector unit or without.
    """
    u = (first + 1).double() * 2.0**-32  # in (0, 1]: the logarithm of 0 is never taken
    radius = torch.sqrt(-2.0 * torch.log(u))
    # 2 pi in figures: a compiler of dynamic sizes makes an input of a float that has a name.
    angle = second.double() * (6.283185307179586 * 2.0**-32)
    return (radius * torch.cos(angle)).float(), (radius * torch.sin(angle)).float()
