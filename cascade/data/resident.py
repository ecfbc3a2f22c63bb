"""A dataset on the training device, where a batch is gathered without waiting.

Shapes: `B` rows, `N` pictures of the dataset, `C S S` pixels of one; `h w` low-resolution pixels.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import torch
from torch import Tensor

from cascade.config.stage import ResizeKernel
from cascade.data.batch import Batch, crop_sides
from cascade.data.captioned import CaptionedArray, CaptionedSamples
from cascade.data.images import resize
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
        data, stage = samples.data, samples.stage
        self._high = torch.empty(data.images.shape, dtype=torch.uint8, device=device)
        self._low: Tensor | None = None
        if stage.low_res is not None:
            small = (*data.images.shape[:2], stage.low_res.size, stage.low_res.size)
            self._low = torch.empty(small, dtype=torch.uint8, device=device)
        # A divisor of its own: by a plain number a GPU multiplies with the reciprocal, which is
        # another last bit than the CPU's.
        self._half = torch.full((), 127.5, device=device)
        for part in _chunks(len(data.images)):
            self._high[part] = torch.from_numpy(np.array(data.images[part])).to(device)
            if self._low is not None and stage.low_res is not None:
                twins = _twins(data, part, stage.low_res.size, stage.resize)
                self._low[part] = torch.from_numpy(twins).to(device)

    def rows(self, positions: Sequence[int]) -> Batch:
        """Return the rows at these positions; see `cascade.data.batch`."""
        chosen = self._samples.decide(positions)
        table = np.stack([chosen.index, chosen.mirrored, chosen.top, chosen.left])
        where = to_device(torch.from_numpy(table), self._high.device)
        high, low = crop_sides(self._samples.stage)
        return Batch(
            images=self._cut(self._high, where, high),
            low_res=None if self._low is None else self._cut(self._low, where, low),
            prompts=chosen.prompts,
            seeds=chosen.seeds,
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
        return taken.float().div_(self._half).sub_(1.0)


def resident_bytes(samples: CaptionedSamples) -> int:
    """Return what `ResidentSamples` takes of its device."""
    count, channels, *_ = (int(length) for length in samples.data.images.shape)
    low_res = samples.stage.low_res
    sides = [samples.stage.size] + ([] if low_res is None else [low_res.size])
    return count * channels * sum(side * side for side in sides)


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, count)) for start in range(0, count, _CHUNK))


def _twins(data: CaptionedArray, part: slice, size: int, kernel: ResizeKernel) -> np.ndarray:
    """Make pictures small; Pillow lets the threads run side by side."""

    def small(index: int) -> np.ndarray:
        return np.asarray(resize(data.picture(index), size, kernel)).transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(small, range(part.start, part.stop))))
