"""The labelled sheet: where pictures land, and what is refused."""

import pytest
import torch
from PIL import Image

from cascade.data.grid import image_grid

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def test_pictures_stand_in_their_cells_and_labels_beside_them() -> None:
    red = Image.new("RGB", (8, 8), RED)
    blue = torch.tensor([-1.0, -1.0, 1.0])[:, None, None].expand(3, 16, 16)
    sheet = image_grid([[red, blue], [blue, None]], cell=32, gap=4)
    assert sheet.size == (4 + 2 * 36, 4 + 2 * 36)
    assert sheet.getpixel((20, 20)) == RED
    assert sheet.getpixel((56, 20)) == BLUE
    assert sheet.getpixel((20, 56)) == BLUE
    assert sheet.getpixel((38, 20)) == WHITE
    assert sheet.getpixel((56, 56)) not in (RED, BLUE, WHITE)


def test_labels_and_captions_take_room_and_leave_ink() -> None:
    red = Image.new("RGB", (8, 8), RED)
    bare = image_grid([[red]], cell=64)
    full = image_grid([[red]], ["a subject"], ["seed 0"], [["on the beach at sunset"]], cell=64)
    assert full.width > bare.width
    assert full.height > bare.height + 3 * 14  # one line above, at least two wrapped lines below
    colours = {colour for _, colour in full.getcolors(1 << 16) or []}
    assert any(sum(colour) < 150 for colour in colours if isinstance(colour, tuple))


def test_enlarging_by_a_whole_number_repeats_pixels() -> None:
    picture = Image.new("RGB", (2, 1), RED)
    picture.putpixel((1, 0), BLUE)
    sheet = image_grid([[picture]], cell=32, gap=0)
    strip = [sheet.getpixel((x, 16)) for x in range(32)]
    assert strip == [RED] * 16 + [BLUE] * 16


def test_a_word_longer_than_its_cell_does_not_run_into_the_next() -> None:
    red = Image.new("RGB", (8, 8), RED)
    sheet = image_grid([[red, red]], column_labels=["w" * 80, ""], cell=32, gap=16)
    gap = sheet.crop((16 + 32, 0, 16 + 32 + 16, sheet.height))
    assert gap.getcolors() == [(gap.width * gap.height, WHITE)]


def test_labels_that_match_no_picture_are_refused() -> None:
    red = Image.new("RGB", (8, 8), RED)
    with pytest.raises(ValueError, match="at least one picture"):
        image_grid([[]])
    with pytest.raises(ValueError, match="2 row labels for 1 rows"):
        image_grid([[red]], row_labels=["a", "b"])
    with pytest.raises(ValueError, match="1 column labels for 2 columns"):
        image_grid([[red, red]], column_labels=["a"])
    with pytest.raises(ValueError, match="captions"):
        image_grid([[red, red]], captions=[["a"]])
