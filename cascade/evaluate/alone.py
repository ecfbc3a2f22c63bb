"""The subject alone: likeness that no background adds to or takes from.

Shapes: `N` pictures, `C H W` pixels in [-1, 1].
"""

from collections.abc import Callable
from typing import Final, TypeAlias

from PIL import Image, ImageOps
from torch import Tensor

from cascade.data.images import to_pil, to_tensors

FindMask: TypeAlias = Callable[[Image.Image], Image.Image]
"""Gives a picture's mask at its size, in grey, 255 on what stands out."""

_GROUND: Final = (128, 128, 128)
_LEAST: Final = 0.02  # share of a picture; less than that is no subject


def alone(pictures: Tensor, find_mask: FindMask) -> Tensor:
    """Cut what stands out from each picture, N C H H, and set it on grey, as large as it fits.

    A picture in which nothing stands out stays as it is.
    """
    size = pictures.shape[-1]
    return to_tensors([cut_out(image, find_mask(image), size) for image in to_pil(pictures)])


def cut_out(image: Image.Image, mask: Image.Image, size: int) -> Image.Image:
    """Cut the subject from a picture by its mask and set it on grey of a size, as large as it fits.

    Where the mask marks next to nothing, the subject is the whole picture.
    """
    sure = mask.point(lambda value: 255 * (value > 127))
    if sure.histogram()[255] >= _LEAST * image.width * image.height:
        grey = Image.new("RGB", image.size, _GROUND)
        image = Image.composite(image, grey, mask).crop(sure.getbbox())
    return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color=_GROUND)
