"""The levels of the project's networks, from which the shapes of the benchmark follow.

A level is a resolution inside one U-Net: `side` pixels, `channels` wide.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cascade.config.folders import CONFIGS, read_stage_file
from cascade.config.stage import StageConfig
from cascade.config.unet import Activation, LevelAttention
from cascade.errors import UserError

BATCHES: Final = {
    "mini-base64": 512,
    "if-i-m": 64,
    "imagen-base64": 16,
    "mini-sr256": 64,
    "base64-500m": 32,
    "if-i-l": 32,
    "if-i-xl": 16,
    "if-ii-m": 16,
    "if-ii-l": 16,
    "imagen-sr256": 16,
    "imagen-sr1024": 2,
}
"""Of every network whose levels are no other's, the most wanted first: the batch of its shapes.

They are those of training on one GPU; 1024-pixel pictures are sampled, one with its null text.
"""

_FIRST: Final = 3  # networks whose shapes are ahead of all others


@dataclass(frozen=True)
class Level:
    """One resolution of one network."""

    network: str  # the configuration's name, such as "if-i-m"
    side: int  # of the image there, pixels
    channels: int
    groups: int  # of its norms
    activation: Activation
    attention: LevelAttention
    head: int  # channels of a head
    text: int  # padded length, tokens

    @property
    def name(self) -> str:
        """For tables: "if-i-m 32x32"."""
        return f"{self.network} {self.side}x{self.side}"


def stage_of(network: str) -> StageConfig:
    """Read the stage of a configuration in `configs`.

    Raises:
        UserError: there is none of this name.
    """
    path = CONFIGS / f"{network}.toml"
    if not path.is_file():
        there = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.toml")))
        raise UserError(f"There is no configuration '{network}'; there are {there}.")
    return read_stage_file(path)


def urgency(case: str) -> int:
    """Return which a case is in by its name: the first networks each apart, all others last."""
    first = list(BATCHES)[:_FIRST]
    network = case.partition(" ")[0]
    return first.index(network) if network in first else _FIRST


def levels(network: str) -> Iterator[Level]:
    """Iterate over the levels of a configuration in `configs`, the finest first."""
    config = stage_of(network)
    unet = config.unet
    # The Efficient U-Net halves the picture ahead of its first level, ADM behind it.
    side = config.size // (2 if unet.resample == "convolution" else 1)
    for channels, attention in zip(unet.channels, unet.attention, strict=True):
        yield Level(
            network=network,
            side=side,
            channels=channels,
            groups=unet.norm_groups,
            activation=unet.activation,
            attention=attention,
            head=unet.head_channels,
            text=config.text.max_length,
        )
        side //= 2
