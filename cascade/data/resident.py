"""A data set on the training device, where a batch is gathered without waiting.

Shapes: `B` rows, `N` pictures of all sources, `C S S` pixels of one; `h w` low-resolution pixels.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import torch
from torch import Tensor

from cascade.data.batch import Batch, crop_sides
from cascade.data.captioned import CaptionedSamples, stacked
from cascade.data.images import normalised
from cascade.diffusion.noise import to_device

_CHUNK: Final = 256  # pictures on their way to the device at once


class ResidentSamples:
    """The rows of a `CaptionedSamples`, to the last bit, from pixels that lie on a device.

    The low-resolution twins of a super-resolution stage are made beforehand, by the same kernel on
    the same CPU: a device's own would round otherwise, and know fewer kernels.
    """

    def __init__(self, samples: CaptionedSamples, device: torch.device) -> None:
        """Copy the pictures to the device, with their twins; takes `resident_bytes` of it."""
        self._samples = samples
        stage, count = samples.stage, len(samples)
        self._high = torch.empty(count, 3, stage.size, stage.size, dtype=torch.uint8, device=device)
        self._low: Tensor | None = None
        if stage.low_res is not None:
            side = stage.low_res.size
            self._low = torch.empty(count, 3, side, side, dtype=torch.uint8, device=device)
        with ThreadPoolExecutor() as pool:  # Pillow lets the threads run side by side
            for start in range(0, count, _CHUNK):
                end = min(start + _CHUNK, count)
                pairs = list(pool.map(samples.whole, range(start, end)))
                self._high[start:end] = stacked([high for high, _ in pairs])
                low = [low for _, low in pairs if low is not None]
                if self._low is not None:
                    self._low[start:end] = stacked(low)

    def rows(self, positions: Sequence[int]) -> Batch:
        """Return the rows at these positions; see `cascade.data.stream`."""
        chosen, first = self._samples.decide(positions), self._samples.first.tolist()
        where = [(first[one.source] + one.index, one.mirrored, one.top, one.left) for one in chosen]
        table = to_device(torch.tensor(where).T.contiguous(), self._high.device)
        high, low = crop_sides(self._samples.stage)
        return Batch(
            images=self._cut(self._high, table, high),
            low_res=None if self._low is None else self._cut(self._low, table, low),
            prompts=tuple(one.prompt for one in chosen),
            seeds=tuple(one.seed for one in chosen),
            weights=torch.ones(len(positions), device=self._high.device),
            terms=("mse",) * len(positions),
            positions=len(positions),
        )

    def _cut(self, pixels: Tensor, where: Tensor, side: int) -> Tensor:
        """Gather, mirror and crop in one go: B C side side in [-1, 1].

        Args:
            pixels: N C S S or N C h w, uint8.
            where: 4 B; picture, whether mirrored, top and left in low-resolution pixels.
            side: of the crop in `pixels`.
        """
        index, mirrored, top, left = where
        whole = pixels.shape[-1]
        finest = whole if self._low is None else self._low.shape[-1]
        along = torch.arange(side, device=pixels.device)
        rows = top[:, None] * (whole // finest) + along
        columns = left[:, None] * (whole // finest) + along
        columns = torch.where(mirrored[:, None] > 0, whole - 1 - columns, columns)
        channels = torch.arange(pixels.shape[1], device=pixels.device)
        taken = pixels[
            index[:, None, None, None],
            channels[None, :, None, None],
            rows[:, None, :, None],
            columns[:, None, None, :],
        ]
        return normalised(taken)


def resident_bytes(samples: CaptionedSamples) -> int:
    """Return what `ResidentSamples` takes of its device."""
    low_res = samples.stage.low_res
    sides = [samples.stage.size] + ([] if low_res is None else [low_res.size])
    return len(samples) * 3 * sum(side * side for side in sides)
