"""The losses of a batch's rows, and their sums between two statuses.

Shapes: `B` rows.
"""

from dataclasses import dataclass, field
from itertools import groupby
from typing import Final

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


@dataclass
class Losses:
    """Sums of the losses since the last status, kept on the device so that nothing waits."""

    norm: Tensor | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)
    quarters: Tensor | float = 0.0  # 2 4: sums and counts by quarters of the timesteps

    def add(self, batch: Batch, rows: RowLosses) -> Tensor:
        """Note one micro-batch; return its loss, the weighted sum of rows per position."""
        parts = rows.terms
        total = torch.stack(list(parts.values())).sum(dim=0)
        loss = (total * batch.weights).sum() / batch.positions
        self._note("loss", loss, 1)
        # The rows of a term lie side by side: slices need no mask, which would have to be copied to
        # the device and counted there.
        first = 0
        for term, names in groupby(batch.terms):
            last = first + len(list(names))
            self._note(f"loss/{term}", total[first:last].sum(), last - first)
            first = last
        if len(parts) > 1:
            for name, part in parts.items():
                self._note(f"loss/{name}", part.sum(), len(part))
        self.quarters = self.quarters + _by_quarter(total.detach(), rows.timestep)
        return loss

    def means(self, processes: Processes) -> dict[str, float]:
        """Mean of each loss since the last status, over all processes."""
        pairs = {name: processes.all_reduce_mean(pair) for name, pair in self.sums.items()}
        means = {name: float(pair[0] / pair[1]) for name, pair in pairs.items()}
        if isinstance(self.quarters, Tensor):
            totals, counts = processes.all_reduce_mean(self.quarters).tolist()
            of_each = zip(QUARTERS, totals, counts, strict=True)
            means |= {name: total / count for name, total, count in of_each if count}
        return means

    def clear(self) -> None:
        """Begin the next status."""
        self.sums, self.quarters = {}, 0.0

    def _note(self, name: str, value: Tensor, count: int) -> None:
        pair = torch.stack([value.detach().double(), torch.full_like(value, count).double()])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair


def _by_quarter(losses: Tensor, timestep: Tensor) -> Tensor:
    """Sum and count losses (B) by quarters of the timesteps: 2 4, in the same order every time."""
    quarter = (4 * timestep / TIMESTEPS).long().clamp(max=3)
    member = (quarter[:, None] == torch.arange(4, device=quarter.device)).double()
    return torch.stack([(losses.double()[:, None] * member).sum(dim=0), member.sum(dim=0)])


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
    on_device = config.noise == "device"
    noise: NoiseSource = (
        PhiloxNoise(batch.seeds, batch.images.device, config.compile) if on_device else Noise(batch.seeds)
    )
    if not config.stratified:
        return noise
    # Every kind of rows has one at each position; each kind is spread for itself.
    strata = torch.tensor(places).repeat(len(batch.seeds) // batch.positions)
    return Stratified(noise, strata, config.batch_size)
