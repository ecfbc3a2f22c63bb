"""Memory layout and grids of the kernels of GroupNorm with FiLM and activation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import triton
from torch import Tensor

from cascade_kernels import dispatch
from cascade_kernels.group_norm_film_silu.inputs import Inputs, sizes
from cascade_kernels.launch_table import Launch
from cascade_kernels.launching import Program

# The limits below follow from sizes of caches and registers; they are not yet measured.
ONE_PASS_PIXELS = 1024  # of an image that one program reads twice: 128 KiB of 64 channels in bf16
ONE_PASS_CHANNELS = 128  # of a group: the matrix that sums it has this side
FEW_PIXELS = 256  # so few that a single program should be done before two more launches are
WAVE = 8  # programs per multiprocessor among which the images of a batch are sliced
INTERPRETED_MULTIPROCESSORS = 132  # an H100's: there is no GPU to ask


@dataclass(frozen=True)
class Plan:
    """The sizes of a call, and the grids of its kernels."""

    device: torch.device
    shape: dict[str, int]  # what the launch table may bound
    batch: int
    strides: tuple[int, ...]  # from row to row of scale and of shift
    c1: int  # channels of x

    @classmethod
    def of(cls, inputs: Inputs) -> "Plan":
        """Plan a call on inputs that are laid out."""
        x, shape = inputs.x, sizes(inputs)
        films = (inputs.scale, inputs.shift)
        strides = tuple(0 if film is None else film.stride(0) for film in films)
        return cls(x.device, shape, x.shape[0], strides, x.shape[1])

    @property
    def channels(self) -> int:
        """C."""
        return self.shape["channels"]

    @property
    def group(self) -> int:
        """Channels of a group."""
        return self.shape["group"]

    @property
    def pixels(self) -> int:
        """H W."""
        return self.shape["pixels"]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Arguments `scale_b shift_b hw c1 c2 group` of a kernel."""
        return *self.strides, self.pixels, self.c1, self.channels - self.c1, self.group

    @property
    def one_pass(self) -> bool:
        """The images are small enough, and enough of them, for one launch to do everything."""
        if self.pixels > ONE_PASS_PIXELS or self.group > ONE_PASS_CHANNELS:
            return False
        programs = self.batch * triton.cdiv(self.channels, ONE_PASS_CHANNELS)
        return self.pixels <= FEW_PIXELS or programs >= multiprocessors(self.device)

    def launch(self, kernel: str) -> Launch:
        """Return the launch configuration of one of the operation's kernels."""
        return dispatch.launch(f"group_norm_film_silu_{kernel}", self.device, **self.shape)

    def slices(self, chosen: Launch) -> tuple[tuple[int, ...], int]:
        """Return the grid (blocks of channels, slices, images) and the pixels of a slice.

        A slice is a whole number of blocks, and as many are made as keep the GPU busy.
        """
        blocks = triton.cdiv(self.channels, chosen.blocks["BLOCK_C"])
        tiles = triton.cdiv(self.pixels, chosen.blocks["BLOCK_HW"])
        wanted = triton.cdiv(WAVE * multiprocessors(self.device), self.batch * blocks)
        tiles_each = triton.cdiv(tiles, wanted)
        grid = (blocks, triton.cdiv(tiles, tiles_each), self.batch)
        return grid, tiles_each * chosen.blocks["BLOCK_HW"]

    def one_launch(self, slab: Any, one_pass: Any, fixed: Mapping[str, Any]) -> Program:
        """Return the launch that does everything.

        Args:
            slab: the kernel that holds all pixels at once, taken where it can.
            one_pass: the kernel whose programs read whole groups twice.
            fixed: values of their constants.
        """
        kernel, chosen = slab, self.slab(_row_name(slab))
        if chosen is None:
            kernel, chosen = one_pass, self.twice(_row_name(one_pass))
        grid, groups = self.whole_groups(chosen)
        return Program(kernel, grid, {**fixed, **groups}, chosen)

    def slab(self, kernel: str) -> Launch | None:
        """Return the launch configuration of a kernel that holds all pixels; None if too many."""
        found = self._owning(kernel)
        return None if found is None else holding(self.pixels, found)

    def twice(self, kernel: str) -> Launch:
        """Return the same of a kernel whose programs read whole groups twice."""
        return self._owning(kernel) or self.launch(kernel)

    def _owning(self, kernel: str) -> Launch | None:
        """Return the first row whose lanes hold a group from a multiple of eight channels on."""
        table, name = dispatch.table(self.device), f"group_norm_film_silu_{kernel}"
        found, needed = table.find(name, self.shape), lanes(self.group)
        if found is None or needed <= found.blocks["BLOCK_C"]:
            return found
        return table.find(name, {**self.shape, "group": needed})

    def whole_groups(self, chosen: Launch) -> tuple[tuple[int, ...], dict[str, int]]:
        """Return the grid (programs, images) and the constants of a program's whole groups.

        A multiple of eight channels, if it keeps the lanes busy, lets every program write 16 bytes
        at a time.
        """
        room = chosen.blocks["BLOCK_C"]
        widths = range(self.group, room + 1, self.group)
        fitting = [width for width in widths if lanes(width) <= room] or [widths[-1]]
        most = fitting[-1]
        width = max((w for w in fitting if w % 8 == 0 and 4 * w >= 3 * most), default=most)
        groups = triton.next_power_of_2(width // self.group)
        grid = (triton.cdiv(self.channels, width), self.batch)
        return grid, {"WIDTH": width, "GROUPS": groups}


def _row_name(kernel: Any) -> str:
    """Return the name of a kernel in the tables, without the operation's."""
    return str(kernel.fn.__name__).removeprefix("group_norm_film_silu_")


def lanes(width: int) -> int:
    """Return how many lanes hold a program's channels from the multiple of eight at or below them.

    Programs begin at multiples of their width, and so of its lowest bit.
    """
    return width + max(8 - (width & -width), 0)


def holding(pixels: int, found: Launch) -> Launch:
    """Return a launch configuration with blocks that hold all pixels of an image."""
    blocks = {"BLOCK_HW": triton.next_power_of_2(pixels), **found.blocks}
    return replace(found, blocks=blocks)


def laid_out(inputs: Inputs) -> Inputs:
    """Copy what is not laid out as the kernels read it.

    Returns:
        Images in channels_last, contiguous vectors, scale and shift with contiguous rows.
    """
    return inputs._replace(
        x=channels_last(inputs.x),
        skip=None if inputs.skip is None else channels_last(inputs.skip),
        weight=inputs.weight.contiguous(),
        bias=inputs.bias.contiguous(),
        scale=_rows(inputs.scale),
        shift=_rows(inputs.shift),
    )


def channels_last(image: Tensor) -> Tensor:
    """Return an image, B C H W, in channels_last memory: itself if it lies so already."""
    return image.contiguous(memory_format=torch.channels_last)


def empty_channels_last(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return an empty image of a shape, B C H W, in the type of another, in channels_last."""
    _, channels, height, width = shape
    strides = (height * width * channels, 1, width * channels, channels)
    return x.new_empty_strided(shape, strides)


@cache
def multiprocessors(device: torch.device) -> int:
    """Return the number of a GPU's multiprocessors, which is part of the order of the sums."""
    if device.type == "cpu":
        return INTERPRETED_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _rows(film: Tensor | None) -> Tensor | None:
    """Return B C with contiguous rows, any distance apart."""
    return film if film is None or film.stride(1) == 1 else film.contiguous()
