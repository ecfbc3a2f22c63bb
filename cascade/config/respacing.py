"""The named timestep lists of DeepFloyd IF.

Each gives a number of steps to every one of equally long sections of the 1000 timesteps, the first
section being the nearest to the image: fast27 spends its steps there, smart27 and smart50 at both
ends, the others near pure noise.
"""

from itertools import accumulate

_TIMESTEPS = 1000
# The names and sections of IF's own program, modules/base.py.
SECTIONS = {
    "fast27": (10, 10, 3, 2, 2),
    "smart27": (7, 4, 2, 1, 2, 4, 7),
    "smart50": (10, 6, 4, 3, 2, 2, 3, 4, 6, 10),
    "smart100": (1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 4, 4, 5, 5, 6, 7, 7, 8, 9, 10, 13),
    "smart185": (1, 1, 2, 2, 2, 3, 3, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 18, 20),
    "super27": (1, 1, 1, 1, 1, 1, 1, 2, 5, 13),
    "super40": (2, 2, 2, 2, 2, 2, 3, 4, 6, 15),
    "super100": (4, 4, 6, 6, 8, 8, 10, 10, 14, 30),
}


def named_timesteps(name: str) -> tuple[float, ...]:
    """Return a named list in descending order: `SamplerConfig.timesteps`.

    Raises:
        ValueError: there is no such list.
    """
    if name not in SECTIONS:
        raise ValueError(f"there is no list '{name}'; known are {', '.join(SECTIONS)}")
    return respaced(SECTIONS[name])


def respaced(counts: tuple[int, ...]) -> tuple[float, ...]:
    """Timesteps 0..999 thinned out section by section (Nichol & Dhariwal 2021, section 4).

    Args:
        counts: steps kept in each section, the section at timestep 0 first. Where the sections
            cannot be equally long the first ones have one timestep more.

    Returns:
        The first and the last of each section and the steps evenly between them, rounded; a single
        step is the section's first. In descending order.
    """
    kept: list[float] = []
    first = 0
    for index, count in enumerate(counts):
        length = _TIMESTEPS // len(counts) + (index < _TIMESTEPS % len(counts))
        stride = (length - 1) / (count - 1) if count > 1 else 0.0
        # Summed and not multiplied: the rounding of such a sum is what put 949 and not 950, half
        # a step from both, into the published super40.
        offsets = accumulate([stride] * (count - 1), initial=0.0)
        kept += [float(first + round(offset)) for offset in offsets]
        first += length
    return tuple(reversed(kept))
