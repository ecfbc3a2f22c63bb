"""The random choices of a training row: all that is random about its picture and its caption."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from cascade.config.data import RowConfig
from cascade.config.stage import StageConfig
from cascade.data.batch import crop_offsets
from cascade.diffusion.noise import derive_seed
from cascade.diffusion.philox import philox4x32, round_keys
from cascade.text.cleaning import names_side


@dataclass(frozen=True, slots=True)
class Choice:
    """The random choices of a row, and nothing of its pixels.

    Attributes:
        source: number of the source.
        index: of the picture in it.
        mirrored: whether it is.
        scale: of the window between the least and the largest that a picture has, in [0, 1).
        across: where the window is, from left to right, in [0, 1).
        down: the same from top to bottom.
        top: where the crop begins, in low-resolution pixels of the mirrored picture.
        left: the same.
        caption: the caption's number; None is the unconditional text.
        prompt: its text.
        seed: of the row's timestep and noise.
    """

    source: int
    index: int
    mirrored: bool = False
    scale: float = 1.0
    across: float = 0.0
    down: float = 0.0
    top: int = 0
    left: int = 0
    caption: int | None = None
    prompt: str | None = None
    seed: int = 0


Choose = Callable[[RowConfig, StageConfig, tuple[int, int], Sequence[str], Sequence[int]], Choice]
"""Makes a row's choices; arguments as of `choose`."""


def choose(
    config: RowConfig,
    stage: StageConfig,
    record: tuple[int, int],
    captions: Sequence[str],
    words: Sequence[int],
) -> Choice:
    """Make a row's choices.

    Args:
        record: its source, and the picture's index in it.
        captions: of the picture.
        words: random, of 32 bits each.
    """
    mirror, caption, drop, top, left, low, high, scale, across, down, *_ = words
    dropped = drop < config.caption_dropout * 2**32
    number = None if dropped else _below(caption, len(captions))
    prompt = None if number is None else captions[number]
    offsets = crop_offsets(stage)
    return Choice(
        *record,
        # A mirrored picture would belie a caption that says "on the left".
        mirrored=config.flip and mirror < 2**31 and not names_side(prompt),
        scale=scale / 2**32,
        across=across / 2**32,
        down=down / 2**32,
        top=_below(top, offsets),
        left=_below(left, offsets),
        caption=number,
        prompt=prompt,
        seed=high >> 1 << 32 | low,
    )


def choose_plainly(
    config: RowConfig,
    stage: StageConfig,
    record: tuple[int, int],
    captions: Sequence[str],
    words: Sequence[int],
) -> Choice:
    """Leave nothing but the seed to chance: the middle of the picture, and its first caption."""
    at_random = choose(config, stage, record, captions, words)
    middle = crop_offsets(stage) // 2
    return Choice(
        *record, top=middle, left=middle, caption=0, prompt=captions[0], seed=at_random.seed
    )


def random_words(seed: int, positions: np.ndarray) -> list[list[int]]:
    """Return twelve random words of 32 bits for every position.

    Philox and not a generator of NumPy's per row, of which a thousand take tens of milliseconds.
    """
    position, zero = torch.from_numpy(positions), torch.zeros((), dtype=torch.int64)
    keys = round_keys(torch.tensor(derive_seed(seed, "row")))
    words = [
        word
        for block in range(3)
        for word in philox4x32((position & 0xFFFFFFFF, position >> 32, zero + block, zero), keys)
    ]
    rows: list[list[int]] = torch.stack(words, dim=1).tolist()
    return rows


def _below(word: int, count: int) -> int:
    """Turn a 32-bit word into an integer in [0, count)."""
    return word * count >> 32
