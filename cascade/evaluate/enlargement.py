"""Super-resolution of photos that were made small, against bicubic.

Peak signal-to-noise ratio and structural similarity reward blur, the distance of features rewards
detail of the right kind; only together do they tell something.

Shapes: `N` pictures, `C H W` pixels in [-1, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from cascade.config.stage import StageConfig
from cascade.data.images import resize, square, to_pil, to_tensors
from cascade.errors import UserError
from cascade.evaluate.features import FeatureExtractor
from cascade.evaluate.metrics import feature_distance, psnr


@dataclass(frozen=True)
class Pairs:
    """Photos and their small twins."""

    low: Tensor  # N C h w, made by the checkpoint's own kernel and rounded to 8 bits
    high: Tensor  # N C H W

    def bicubic(self) -> Tensor:
        """Upscale the small images by Pillow's bicubic kernel, N C H W."""
        side = self.high.shape[-1]
        return to_tensors([resize(image, side, "bicubic") for image in to_pil(self.low)])


def make_pairs(photos: Sequence[Image.Image], config: StageConfig, side: int) -> Pairs:
    """Square the photos and make them `side` pixels wide, and smaller by the stage's factor.

    Raises:
        ValueError: the stage is a base stage, or `side` is no multiple of its factor.
    """
    if config.low_res is None or side % (config.size // config.low_res.size):
        raise ValueError(f"stage '{config.name}' does not make pictures of {side} pixels")
    small = side * config.low_res.size // config.size
    squares = [square(photo) for photo in photos]
    low, high = (
        to_tensors([resize(photo, size, config.resize) for photo in squares])
        for size in (small, side)
    )
    return Pairs(low, high)


@dataclass(frozen=True)
class Fidelity:
    """Means over the pictures."""

    psnr: float  # dB; higher is better
    ssim: float  # structural similarity, at most 1; higher is better
    feature_distance: float  # 1 - cosine of features; lower is better


def fidelity(pictures: Tensor, photos: Tensor, extractor: FeatureExtractor, tile: int) -> Fidelity:
    """Compare enlarged pictures with the photos they stand for, N C H W each.

    Features are compared by squares of `tile` pixels: the extractors shrink what they are given to
    one size, so that whole pictures of different sides would be judged at different distances.
    """
    return Fidelity(
        psnr=psnr(pictures, photos),
        ssim=ssim(pictures, photos),
        feature_distance=feature_distance(
            extractor(_tiles(pictures, tile)), extractor(_tiles(photos, tile))
        ),
    )


def ssim(images: Tensor, reference: Tensor) -> float:
    """Return the mean structural similarity of images `N C H W` in [-1, 1].

    With the Gaussian window and the constants of Wang et al. (2004, "Image quality assessment: from
    error visibility to structural similarity", section III-C), the mean over the colours.
    """
    try:
        from skimage.metrics import structural_similarity
    except ModuleNotFoundError:
        raise UserError(
            'Structural similarity needs scikit-image; run: pip install "dreamcascade[evaluate]"'
        ) from None
    values = [
        structural_similarity(
            image.numpy(),
            photo.numpy(),
            data_range=2.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        for image, photo in zip(images.double(), reference.double(), strict=True)
    ]
    return float(torch.tensor(values, dtype=torch.float64).mean())


def _tiles(images: Tensor, side: int) -> Tensor:
    rows: Tensor = images.unflatten(2, (-1, side)).unflatten(4, (-1, side))  # N C y h x w
    return rows.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
