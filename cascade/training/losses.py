"""The losses of a batch's rows, and their sums between two statuses.

Shapes: `B` rows, `P` losses of each.
"""

from dataclasses import dataclass, field
from functools import reduce
from typing import Final, NamedTuple

import torch
from torch import Tensor

from cascade.config.train import TrainConfig
from cascade.data.batch import Batch
from cascade.diffusion.denoiser import Conditioning, Denoiser
from cascade.diffusion.noise import Noise, NoiseSource, Stratified, to_device
from cascade.diffusion.objective import Objective, RowLosses
from cascade.diffusion.philox import PhiloxNoise
from cascade.diffusion.schedule import TIMESTEPS
from cascade.text.encoder import TextEmbedding
from cascade.text.prompts import PromptSource
from cascade.training.distributed import Processes

QUARTERS: Final = ("loss/t0", "loss/t1", "loss/t2", "loss/t3")
"""Names of the losses by quarters of the timesteps, from little noise to much."""


class Layout(NamedTuple):
    """What micro-batches have in common whose losses are added up place by place."""

    parts: tuple[str, ...]  # P names
    terms: tuple[str, ...]  # B names
    positions: int

    def named(self, kept: Tensor) -> dict[str, Tensor]:
        """Return a sum and its count by name.

        Args:
            kept: as `Losses` keeps them.
        """
        *parts, weighted, ones = kept
        both = torch.stack([kept[:-2].sum(dim=0), ones])  # 2 4 B
        batches = ones.sum() / len(self.terms)
        pairs = {"loss": torch.stack([weighted.sum() / self.positions, batches])}
        for term in dict.fromkeys(self.terms):
            members = torch.tensor([name == term for name in self.terms])
            pairs[f"loss/{term}"] = both[..., members].sum(dim=(1, 2))
        if len(parts) > 1:
            for name, part in zip(self.parts, parts, strict=True):
                pairs[f"loss/{name}"] = torch.stack([part, ones]).sum(dim=(1, 2))
        return pairs | dict(zip(QUARTERS, both.sum(dim=2).T, strict=True))


@dataclass
class Losses:
    """Sums of the losses since the last status, kept on the device so that nothing waits.

    Attributes:
        norm: of the last gradient.
        kept: by layout (P + 2) 4 B float64: the P losses, their weighted sum, and ones, added up at
            each place of the batch by quarters of the timesteps.
    """

    norm: Tensor | None = None
    kept: dict[Layout, Tensor] = field(default_factory=dict)

    def add(self, batch: Batch, rows: RowLosses) -> Tensor:
        """Note one micro-batch; return its loss, the weighted sum of rows per position."""
        parts = tuple(rows.terms.values())
        weighted = reduce(torch.add, parts) * batch.weights
        layout = Layout(tuple(rows.terms), batch.terms, batch.positions)
        with torch.no_grad():
            values = torch.stack([*parts, weighted, torch.ones_like(weighted)]).double()
            if layout not in self.kept:
                self.kept[layout] = values.new_zeros(len(values), len(QUARTERS), len(batch.terms))
            quarter = (rows.timestep / (TIMESTEPS / 4)).long().clamp_(max=3)
            # A row has one quarter: no two numbers are added at one place, in whatever order.
            index = quarter.expand(len(values), 1, -1)
            self.kept[layout].scatter_add_(1, index, values[:, None])
        return weighted.sum() / batch.positions

    def means(self, processes: Processes) -> dict[str, float]:
        """Mean of each loss since the last status, over all processes."""
        sums: dict[str, Tensor] = {}
        for layout, kept in self.kept.items():
            for name, pair in layout.named(kept.cpu()).items():
                sums[name] = sums[name] + pair if name in sums else pair
        if not sums:
            return {}
        # By name: the batches of another process may be laid out otherwise.
        pairs = torch.stack(list(sums.values())).to(next(iter(self.kept.values())))
        reduced = processes.all_reduce_mean(pairs).tolist()
        return {
            name: total / count for name, (total, count) in zip(sums, reduced, strict=True) if count
        }

    def clear(self) -> None:
        """Begin the next status."""
        self.kept = {}


def row_losses(
    denoiser: Denoiser,
    objective: Objective,
    batch: Batch,
    prompts: PromptSource,
    noise: NoiseSource,
    tokens: int | None = None,
) -> RowLosses:
    """Score the rows of a batch; arguments as of `conditioning`."""
    cond = conditioning(batch, prompts, tokens)
    return objective(denoiser, batch.images, cond, noise, batch.pixel_weights)


def conditioning(batch: Batch, prompts: PromptSource, tokens: int | None = None) -> Conditioning:
    """Return what the objective is told of a batch beside its pictures.

    Args:
        tokens: to pad texts to, or None for the longest of the batch: a compiled network is
            compiled anew for every length.
    """
    text = batch_text(batch, prompts)
    if tokens is not None:
        text = text.extended(tokens)
    return Conditioning(text.embedding, text.mask, batch.low_res)


def batch_text(batch: Batch, prompts: PromptSource) -> TextEmbedding:
    """Return the embeddings of a batch's prompts, B L D in float32, on the batch's device.

    Those that came with the batch are taken as they are; its null text is the source's.
    """
    device, texts = batch.images.device, batch.texts
    if texts is None:
        return _on(device, prompts.rows(batch.prompts))
    null = _on(device, prompts.rows([None]))
    return texts.padded(null)


def _on(device: torch.device, text: TextEmbedding) -> TextEmbedding:
    return TextEmbedding(to_device(text.embedding, device), to_device(text.mask, device))


def row_noise(batch: Batch, places: range, config: TrainConfig) -> NoiseSource:
    """Return the rows' noise; `places` are the micro-batch's positions in its global batch."""
    noise: NoiseSource
    if config.noise == "device":
        noise = PhiloxNoise(batch.seeds, batch.images.device, config.compile)
    else:
        noise = Noise(batch.seeds)
    if not config.stratified:
        return noise
    # Every kind of rows has one at each position; each kind is spread for itself.
    strata = torch.tensor(places).repeat(len(batch.seeds) // batch.positions)
    return Stratified(noise, strata, config.batch_size)
