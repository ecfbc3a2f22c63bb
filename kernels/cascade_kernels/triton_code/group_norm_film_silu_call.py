"""How a call of GroupNorm with FiLM and activation lies in memory and is cut into programs."""

from dataclasses import dataclass
from functools import cache

import torch
import triton
from torch import Tensor

from cascade_kernels import dispatch
from cascade_kernels.dispatch import Launch

# The limits below follow from sizes of caches and registers; they are not yet measured.
ONE_PASS_PIXELS = 1024  # of an image that one program reads twice: 128 KiB of 64 channels in bf16
ONE_PASS_CHANNELS = 128  # of a group: the matrix that sums it has this side
FEW_PIXELS = 256  # so few that a single program should be done before two more launches are
WAVE = 8  # programs per multiprocessor among which the images of a batch are sliced
INTERPRETED_MULTIPROCESSORS = 132  # an H100's: there is no GPU to ask


@dataclass(frozen=True)
class Call:
    """The inputs as the kernels take them.

    Attributes:
        x: B C1 H W, channels_last.
        skip: B C2 H W, channels_last; None without a skip.
        film: weight C, bias C, scale B C, shift B C; the last two with contiguous rows, or None.
        strides: from row to row of scale and of shift.
        groups: number of groups.
    """

    x: Tensor
    skip: Tensor | None
    film: tuple[Tensor, Tensor, Tensor | None, Tensor | None]
    strides: tuple[int, int]
    groups: int

    @property
    def batch(self) -> int:
        """B."""
        return self.x.shape[0]

    @property
    def pixels(self) -> int:
        """H W."""
        return self.x.shape[2] * self.x.shape[3]

    @property
    def c1(self) -> int:
        """Channels of x."""
        return self.x.shape[1]

    @property
    def c2(self) -> int:
        """Channels of the skip."""
        return 0 if self.skip is None else self.skip.shape[1]

    @property
    def channels(self) -> int:
        """C."""
        return self.c1 + self.c2

    @property
    def group(self) -> int:
        """Channels of a group."""
        return self.channels // self.groups

    @property
    def one_pass(self) -> bool:
        """Whether one launch does everything: images so small, and enough of them."""
        if self.pixels > ONE_PASS_PIXELS or self.group > ONE_PASS_CHANNELS:
            return False
        programs = self.batch * triton.cdiv(self.channels, ONE_PASS_CHANNELS)
        return self.pixels <= FEW_PIXELS or programs >= multiprocessors(self.x.device)

    def launch(self, kernel: str) -> Launch:
        """Return the launch configuration of one of the operation's kernels."""
        return dispatch.launch(
            f"group_norm_film_silu_{kernel}",
            self.x.device,
            channels=self.channels,
            group=self.group,
            pixels=self.pixels,
            bytes=self.x.element_size(),
        )

    def slices(self, chosen: Launch) -> tuple[tuple[int, ...], int]:
        """Return the grid (blocks of channels, slices, images) and the pixels of a slice.

        A slice is a whole number of blocks, and as many are made as keep the GPU busy.
        """
        blocks = triton.cdiv(self.channels, chosen.blocks["BLOCK_C"])
        tiles = triton.cdiv(self.pixels, chosen.blocks["BLOCK_HW"])
        wanted = triton.cdiv(WAVE * multiprocessors(self.x.device), self.batch * blocks)
        tiles_each = triton.cdiv(tiles, wanted)
        return (blocks, triton.cdiv(tiles, tiles_each), self.batch), tiles_each * chosen.blocks[
            "BLOCK_HW"
        ]

    def whole_groups(self, chosen: Launch) -> tuple[tuple[int, ...], int]:
        """Return the grid (programs, images) and the channels of a program: whole groups.

        A multiple of eight channels, if there is one, lets every program read 16 bytes at a time.
        """
        most = chosen.blocks["BLOCK_C"] // self.group * self.group
        widths = range(most, 0, -self.group)
        width = next((w for w in widths if w % 8 == 0), most)
        return (triton.cdiv(self.channels, width), self.batch), width


def prepare(
    x: Tensor,
    skip: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
) -> Call:
    """Copy what is not laid out as the kernels need it."""
    scale, shift = _rows(scale), _rows(shift)
    return Call(
        x=channels_last(x),
        skip=None if skip is None else channels_last(skip),
        film=(weight.contiguous(), bias.contiguous(), scale, shift),
        strides=(0 if scale is None else scale.stride(0), 0 if shift is None else shift.stride(0)),
        groups=groups,
    )


def channels_last(image: Tensor) -> Tensor:
    """Return an image, B C H W, in channels_last memory: itself if it lies so already."""
    return image.contiguous(memory_format=torch.channels_last)


def options(chosen: Launch) -> dict[str, int]:
    """The keyword arguments of a kernel whose loops are pipelined `num_stages` deep."""
    return {
        **chosen.blocks,
        "STAGES": chosen.num_stages,
        "num_warps": chosen.num_warps,
        "num_stages": chosen.num_stages,
    }


@cache
def multiprocessors(device: torch.device) -> int:
    """The number of a GPU's multiprocessors, which is part of the order of the sums."""
    if device.type == "cpu":
        return INTERPRETED_MULTIPROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _rows(film: Tensor | None) -> Tensor | None:
    """B C with contiguous rows, any distance apart."""
    return film if film is None or film.stride(1) == 1 else film.contiguous()
