"""The subject cut out of its picture, so that no background adds to its likeness."""

import pytest
import torch
from PIL import Image

from cascade.evaluate.alone import alone


def _masked(box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (16, 16))
    mask.paste(255, box)
    return mask


def test_the_subject_fills_a_grey_square_whatever_was_behind_it() -> None:
    pictures = torch.stack([torch.full((3, 16, 16), ground) for ground in (-1.0, 1.0)])
    pictures[:, 0, 4:12, 6:10] = 0.5  # eight pixels high and four wide
    pictures[:, 1:, 4:12, 6:10] = -0.5
    cut = alone(pictures, lambda _: _masked((6, 4, 10, 12)))
    assert torch.equal(cut[0], cut[1])
    middle, left = cut[0, :, 8, 8], cut[0, :, 8, 1]
    torch.testing.assert_close(middle, torch.tensor([0.5, -0.5, -0.5]), atol=1 / 127, rtol=0)
    torch.testing.assert_close(left, torch.zeros(3), atol=1 / 127, rtol=0)


@pytest.mark.parametrize("box", [(0, 0, 0, 0), (3, 3, 5, 5)], ids=["nothing", "a speck"])
def test_a_picture_in_which_nothing_stands_out_stays(box: tuple[int, int, int, int]) -> None:
    pictures = torch.rand(1, 3, 16, 16) * 2 - 1
    kept = alone(pictures, lambda _: _masked(box))
    torch.testing.assert_close(kept, pictures, atol=1 / 127, rtol=0)
