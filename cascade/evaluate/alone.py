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
    """Cut what stands out from each picture and set it on grey, as large as it fits.

    A picture in which nothing stands out stays as it is.

    Args:
        pictures: N C H H.
        find_mask: tells where the subject is.

    Returns:
        N C H H.
    """
    return to_tensors([_alone(image, find_mask(image)) for image in to_pil(pictures)])


def _alone(image: Image.Image, mask: Image.Image) -> Image.Image:
    sure = mask.point(lambda value: 255 * (value > 127))
    bounds = sure.getbbox()
    if bounds is None or sure.histogram()[255] < _LEAST * image.width * image.height:
        return image
    cut = Image.composite(image, Image.new("RGB", image.size, _GROUND), mask)
    resampling = Image.Resampling.BICUBIC
    return ImageOps.pad(cut.crop(bounds), image.size, resampling, color=_GROUND)
