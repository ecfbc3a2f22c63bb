"""Calls on which a stage's networks are compared, and how far apart their answers are.

Shapes: `B` rows, `L` text tokens, `D` width of the text encoder, `H W` pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from pydantic import ConfigDict
from torch import Tensor
from torch.nn import functional as F

from cascade.config.base import Frozen
from cascade.config.stage import StageConfig
from cascade.diffusion.denoiser import Network
from cascade.text.encoder import TextEmbedding
from cascade.text.prompts import PromptSource

_LEVELS: Final = (999.0, 3.0, 500.0, 250.0, 750.0)  # timesteps, dealt out to a batch's rows


@dataclass(frozen=True)
class Case:
    """One call of a network, and what is particular about it."""

    name: str
    x: Tensor  # B 3 H W
    t: Tensor  # B
    text: TextEmbedding
    low_res: Tensor | None = None  # B 3 H W
    aug: Tensor | None = None  # B

    def to(self, device: torch.device | str) -> "Case":
        """Return the same inputs on a device."""
        return Case(
            self.name,
            self.x.to(device),
            self.t.to(device),
            TextEmbedding(self.text.embedding.to(device), self.text.mask.to(device)),
            None if self.low_res is None else self.low_res.to(device),
            None if self.aug is None else self.aug.to(device),
        )

    @torch.no_grad()
    def call(self, network: Network) -> Tensor:
        """Call a network on the inputs' device; B 3 H W, or B 6 H W."""
        return network(self.x, self.t, self.text.embedding, self.text.mask, self.low_res, self.aug)

    def answer(self, network: Network, device: torch.device | str = "cpu") -> Tensor:
        """Call a network that lies on a device; the answer comes back to the CPU."""
        return self.to(device).call(network).cpu()


def tensor_cases(
    config: StageConfig,
    table: PromptSource,
    prompts: Sequence[str],
    *,
    dynamic: bool = True,
    seed: int = 0,
) -> Iterator[Case]:
    """Draw a stage's cases, a function of the seed.

    Args:
        dynamic: whether the networks take any batch and side, and not only the stage's own side
            and the two rows of a guided picture.
    """
    generator = torch.Generator().manual_seed(seed)
    prompt = prompts[0]
    side, factor = config.size, config.unet.factor
    pair = table.rows([prompt, None])
    yield draw_case("one row", config, table.rows([prompt]), (side, side), generator)
    yield draw_case("a prompt beside the null text", config, pair, (side, side), generator)
    if dynamic:
        five = table.rows([prompts[row % len(prompts)] for row in range(4)] + [None])
        yield draw_case("five rows at five levels", config, five, (side, side), generator)
    if config.text.masked:
        longest = _tiled(table, prompt, (config.text.max_length, 1))
        yield draw_case("longest and shortest text", config, longest, (side, side), generator)
    if dynamic and config.low_res is not None:
        half = max(side // 2 // factor, 1) * factor
        yield draw_case("half the side", config, pair, (half, half), generator)
        yield draw_case("not square", config, pair, (side, half), generator)


def draw_case(
    name: str,
    config: StageConfig,
    text: TextEmbedding,
    size: tuple[int, int],
    generator: torch.Generator,
) -> Case:
    """Draw a stage's other inputs for texts, B rows, and pictures of height and width `size`."""
    rows = len(text.mask)
    t = torch.tensor([_LEVELS[row % len(_LEVELS)] for row in range(rows)])
    # What a network reads is variance-preserving: of unit variance whatever the level.
    x = torch.randn(rows, 3, *size, generator=generator)
    if config.low_res is None:
        return Case(name, x, t, text)
    factor = config.size // config.low_res.size
    small = (-(-size[0] // factor), -(-size[1] // factor))
    low_res = 0.5 * torch.randn(rows, 3, *small, generator=generator)
    enlarged = F.interpolate(low_res, size, mode="bilinear", align_corners=False)
    return Case(name, x, t, text, enlarged.clamp(-1, 1), 0.4 * t.flip(0))


def _tiled(table: PromptSource, prompt: str, lengths: tuple[int, ...]) -> TextEmbedding:
    """Texts of given lengths, made of a prompt's tokens over and over."""
    row = table.rows([prompt])
    tokens = row.embedding[0, row.mask[0]]
    most = -(-max(lengths) // len(tokens))
    repeated = tokens.repeat(most, 1)
    return TextEmbedding.padded([repeated[:length] for length in lengths])


class Figures(Frozen):
    """Figures that an engine's NaN may reach; JSON has no such number, so they become text."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=True, ser_json_inf_nan="strings"
    )


class TensorDeviation(Figures):
    """How far a network's answer is from the reference's.

    Attributes:
        relative: root mean square of the difference over that of the reference.
        greatest: the largest difference, over the same.
    """

    relative: float
    greatest: float


def tensor_deviation(answer: Tensor, reference: Tensor) -> TensorDeviation:
    """Compare two answers of a network, of one shape.

    Raises:
        ValueError: the shapes differ.
    """
    if answer.shape != reference.shape:
        raise ValueError(f"shapes {tuple(answer.shape)} and {tuple(reference.shape)} differ")
    exact = reference.detach().double().cpu()
    difference = answer.detach().double().cpu() - exact
    scale = max(rms(exact), torch.finfo(torch.float64).tiny)
    return TensorDeviation(
        relative=rms(difference) / scale, greatest=float(difference.abs().max()) / scale
    )


def rms(values: Tensor) -> float:
    """Root mean square of a tensor's values."""
    return float(values.square().mean().sqrt())
