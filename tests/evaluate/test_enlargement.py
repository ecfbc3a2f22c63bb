"""Photos made small and enlarged again: the pairs, and the figures of known differences."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cascade.config.folders import read_stage_config
from cascade.evaluate.enlargement import Pairs, fidelity, make_pairs, ssim


class Levels:
    """The mean of each colour, and the shape of what it was asked about."""

    name = "mean colour"
    shape: torch.Size

    def __call__(self, images: Tensor) -> Tensor:
        self.shape = images.shape
        return images.mean((2, 3)) + 2


def photo(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("side", [32, 64])
def test_pairs_have_the_stages_factor_at_any_size(tiny_cascade: Path, side: int) -> None:
    config = read_stage_config(tiny_cascade / "sr32")
    pairs = make_pairs([photo(80, 100), photo(64, 64)], config, side)
    assert pairs.high.shape == (2, 3, side, side)
    assert pairs.low.shape == (2, 3, side // 2, side // 2)
    assert pairs.bicubic().shape == pairs.high.shape
    # Both show the same: their means differ by the rounding to 8 bits and the edges' weights.
    torch.testing.assert_close(pairs.low.mean((2, 3)), pairs.high.mean((2, 3)), atol=0.05, rtol=0)


def test_a_plain_picture_survives_bicubic() -> None:
    pairs = Pairs(torch.full((1, 3, 8, 8), -1.0), torch.full((1, 3, 32, 32), -1.0))
    assert torch.equal(pairs.bicubic(), pairs.high)


def test_what_cannot_be_enlarged_is_refused(tiny_cascade: Path) -> None:
    with pytest.raises(ValueError, match="'sr32' does not make pictures of 31 pixels"):
        make_pairs([photo(64, 64)], read_stage_config(tiny_cascade / "sr32"), 31)
    with pytest.raises(ValueError, match="'base16' does not make"):
        make_pairs([photo(64, 64)], read_stage_config(tiny_cascade / "base16"), 32)


def test_ssim_of_plain_pictures_has_a_closed_form() -> None:
    pytest.importorskip("skimage", reason="extra 'evaluate' not installed")
    first, second = torch.full((2, 3, 16, 16), 0.5), torch.full((2, 3, 16, 16), 0.25)
    # Only the luminance term differs from 1: (2 a b + C1) / (a^2 + b^2 + C1), C1 = (0.01 * 2)^2.
    expected = (2 * 0.5 * 0.25 + 0.0004) / (0.5**2 + 0.25**2 + 0.0004)
    assert ssim(first, second) == pytest.approx(expected)
    assert ssim(first, first) == pytest.approx(1)


def test_features_are_compared_tile_by_tile() -> None:
    pytest.importorskip("skimage", reason="extra 'evaluate' not installed")
    torch.manual_seed(0)
    photos = torch.rand(2, 3, 32, 32) * 2 - 1
    extractor = Levels()
    same = fidelity(photos, photos, extractor, tile=16)
    assert extractor.shape == (8, 3, 16, 16)
    assert same.psnr == math.inf
    assert same.ssim == pytest.approx(1)
    assert same.feature_distance == pytest.approx(0, abs=1e-12)
    # The left half red and the right half blue, and the other way round: equal on the whole.
    halves = torch.full((1, 3, 32, 32), -1.0)
    halves[:, 0, :, :16] = halves[:, 2, :, 16:] = 1
    turned = halves.flip(3)
    assert fidelity(halves, turned, extractor, tile=32).feature_distance < 1e-12
    assert fidelity(halves, turned, extractor, tile=16).feature_distance > 0.1
