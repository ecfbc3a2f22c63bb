"""Calls on which a stage's networks are compared, and how far apart their answers are.

Shapes: `B` rows, `L` text tokens, `D` width of the text encoder, `H W` pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
from cascade_export.graph.graph import feeds

_LEVELS: Final = (999.0, 3.0, 500.0, 250.0, 750.0)  # timesteps, dealt out to a batch's rows


@dataclass(frozen=True)
class Case:
    """One call of a network, its arguments by name, and what is particular about it."""

    name: str
    inputs: Mapping[str, Tensor]

    @torch.no_grad()
    def answer(self, network: Network, device: torch.device | str = "cpu") -> Tensor:
        """Call a network on its device; return the answer on the CPU, B 3 H W or B 6 H W."""
        return network(**{name: value.to(device) for name, value in self.inputs.items()}).cpu()


def tensor_cases(
    config: StageConfig,
    table: PromptSource,
    prompts: Sequence[str],
    *,
    dynamic: bool = True,
    seed: int = 0,
) -> Iterator[Case]:
    """Generate a stage's cases, a function of the seed.

    Args:
        dynamic: whether the networks take any batch and side, and not only the stage's own side
            and the two rows of a guided image.
    """
    generator = torch.Generator().manual_seed(seed)
    prompt = prompts[0]
    side, factor = config.size, config.unet.factor
    pair = table.rows([prompt, None])
    yield make_case("one row", config, table.rows([prompt]), (side, side), generator)
    yield make_case("a prompt beside the null text", config, pair, (side, side), generator)
    if dynamic:
        five = table.rows([prompts[row % len(prompts)] for row in range(4)] + [None])
        yield make_case("five rows at five levels", config, five, (side, side), generator)
    if config.text.masked:
        longest = _tiled(table, prompt, (config.text.max_length, 1))
        yield make_case("longest and shortest text", config, longest, (side, side), generator)
    if dynamic:
        half = max(side // 2 // factor, 1) * factor
        yield make_case("half the side", config, pair, (half, half), generator)
        yield make_case("not square", config, pair, (side, half), generator)


def make_case(
    name: str,
    config: StageConfig,
    text: TextEmbedding,
    size: tuple[int, int],
    generator: torch.Generator,
) -> Case:
    """Generate a stage's other inputs for texts, B rows, and images of height and width `size`."""
    rows = len(text.mask)
    t = torch.tensor([_LEVELS[row % len(_LEVELS)] for row in range(rows)])
    # What a network reads is variance-preserving: of unit variance whatever the level.
    x = torch.randn(rows, 3, *size, generator=generator)
    call = partial(feeds, x, t, text.embedding, text.mask)
    if config.low_res is None:
        return Case(name, call())
    factor = config.size // config.low_res.size
    small = (-(-size[0] // factor), -(-size[1] // factor))
    low_res = 0.5 * torch.randn(rows, 3, *small, generator=generator)
    enlarged = F.interpolate(low_res, size, mode="bilinear", align_corners=False)
    return Case(name, call(enlarged.clamp(-1, 1), 0.4 * t.flip(0)))


def _tiled(table: PromptSource, prompt: str, lengths: tuple[int, ...]) -> TextEmbedding:
    """Make texts of some lengths by repeating a prompt's tokens."""
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
    """Deviation of a network's answer from the reference's.

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
    """Return the root mean square of a tensor's values."""
    return float(values.square().mean().sqrt())
