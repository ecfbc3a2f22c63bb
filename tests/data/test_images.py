"""Pictures come in upright, opaque and square, and go out whole."""

import os
import warnings
import weakref
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cascade.config.stage import ResizeKernel
from cascade.data.images import (
    grid,
    read_image,
    read_photos,
    resize,
    square,
    to_pil,
    to_tensor,
    to_tensors,
    write_png,
)
from cascade.errors import UserError
from cascade.files import write_bytes

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    """What EXIF says about the camera undoes what the camera did: the red corner comes back."""
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = Image.new("RGB", (6, 4), BLUE)
    upright.putpixel((0, 0), RED)
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    seen = read_image(tmp_path / "photo.png")
    assert seen.size == (6, 4)
    assert seen.tobytes() == upright.tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path: Path, mode: str) -> None:
    layer = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    layer.putpixel((1, 1), (0, 0, 0, 255))
    layer.convert(mode).save(tmp_path / "logo.png")
    seen = read_image(tmp_path / "logo.png")
    assert seen.mode == "RGB"
    assert seen.getpixel((0, 0)) == WHITE
    assert seen.getpixel((1, 1)) == (0, 0, 0)


def test_grey_pictures_become_rgb_and_16_bits_become_8(tmp_path: Path) -> None:
    Image.new("L", (2, 2), 77).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").getpixel((0, 0)) == (77, 77, 77)
    deep = np.array([[0, 255, 256], [32768, 40000, 65535]], dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    seen = np.asarray(read_image(tmp_path / "deep.png"))
    assert seen[..., 0].tolist() == [[0, 0, 1], [128, 156, 255]]


def test_square_is_the_largest_in_the_middle() -> None:
    wide = Image.new("RGB", (7, 3), BLUE)
    wide.paste(RED, (2, 0, 5, 3))
    assert square(wide).getcolors() == [(9, RED)]
    assert square(wide.transpose(Image.Transpose.ROTATE_90)).getcolors() == [(9, RED)]


KERNELS: dict[ResizeKernel, Image.Resampling] = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}


@pytest.mark.parametrize("kernel", get_args(ResizeKernel))
def test_resize_uses_pillow_s_antialiased_kernel(kernel: ResizeKernel) -> None:
    picture = noise(32, 32)
    small = resize(picture, 8, kernel)
    assert small.tobytes() == picture.resize((8, 8), KERNELS[kernel]).tobytes()
    others = [resize(picture, 8, other).tobytes() for other in KERNELS if other != kernel]
    assert small.tobytes() not in others
    assert resize(picture, 32, kernel) is picture


def test_eight_bits_come_through_a_tensor_unchanged() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = Image.fromarray(np.stack([levels, levels[::-1], levels.T], axis=-1))
    tensor = to_tensors([picture, picture])
    assert tensor.shape == (2, 3, 16, 16)
    assert tensor.min() == -1.0
    assert tensor.max() == 1.0
    assert [out.tobytes() for out in to_pil(tensor)] == [picture.tobytes()] * 2
    assert torch.equal(to_tensor(np.asarray(picture)), tensor[0])


def test_values_outside_the_range_are_clipped_and_the_rest_rounded() -> None:
    tensor = torch.tensor([-3.0, 5.0, 0.0]).view(1, 3, 1, 1)
    # 0 is level 127.5; torch rounds halves to even.
    assert to_pil(tensor)[0].getpixel((0, 0)) == (0, 255, 128)


def test_grid_is_filled_row_by_row() -> None:
    tiles = [Image.new("RGB", (4, 3), (i, 0, 0)) for i in range(5)]
    sheet = grid(tiles, columns=3, gap=1)
    assert sheet.size == (3 * 4 + 2, 2 * 3 + 1)
    assert sheet.getpixel((5, 0)) == (1, 0, 0)
    assert sheet.getpixel((0, 4)) == (3, 0, 0)
    assert sheet.getpixel((10, 4)) == WHITE
    assert sheet.getpixel((4, 0)) == WHITE


def test_a_png_keeps_its_pixels_and_notes(tmp_path: Path) -> None:
    note = PngInfo()
    note.add_itxt("prompt", "a 犬")
    path = tmp_path / "new" / "folder" / "picture.png"
    write_png(noise(5, 4), path, note)
    with Image.open(path) as seen:
        assert seen.tobytes() == noise(5, 4).tobytes()
        assert seen.text["prompt"] == "a 犬"  # type: ignore[attr-defined]
    assert [p.name for p in path.parent.iterdir()] == ["picture.png"]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_bytes(b"old", path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_bytes(b"new", path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_photos_are_read_in_the_order_of_their_names(photos: Path) -> None:
    found = read_photos(photos, least_side=64)
    assert [path.name for path in found.paths] == ["0.png", "1.png", "2.png", "3.png"]
    assert all(image.size == (64, 64) and image.mode == "RGB" for image in found.images)
    assert found.skipped == ()


def test_files_that_are_no_pictures_are_skipped_and_named(tmp_path: Path) -> None:
    noise(8, 8).save(tmp_path / "a.JPG")
    (tmp_path / "notes.txt").write_text("the dog")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    (tmp_path / "folder.png").mkdir()
    found = read_photos(tmp_path)
    assert [path.name for path in found.paths] == ["a.JPG"]
    assert found.skipped == ("notes.txt",)


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no folder .*gone"):
        read_photos(tmp_path / "gone")
    with pytest.raises(UserError, match=r"holds no pictures; add"):
        read_photos(tmp_path)
    (tmp_path / "notes.txt").write_text("the dog")
    with pytest.raises(UserError, match=r"holds no pictures \(it holds notes.txt\)"):
        read_photos(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_a_corrupt_picture_is_named(tmp_path: Path, damage: str) -> None:
    noise(64, 64).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    content = {"truncated": whole[: len(whole) // 2], "text": b"no picture", "empty": b""}[damage]
    (tmp_path / "torn.png").write_bytes(content)
    with pytest.raises(UserError, match=r"torn\.png cannot be read as a picture"):
        read_photos(tmp_path)


def test_an_absurdly_large_picture_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise(64, 64).save(tmp_path / "huge.png")
    for limit in (4000, 100):  # at one Pillow warns, at the other it refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_image(tmp_path / "huge.png").size == (64, 64)  # its limit is not ours
    monkeypatch.setattr("cascade.data.decoding.LARGEST", 4000)
    with pytest.raises(UserError, match=r"huge\.png is 64x64, more than .*; make it smaller"):
        read_image(tmp_path / "huge.png")


def test_small_photos_are_named_with_their_sizes(tmp_path: Path) -> None:
    for name, size in (("a", (64, 64)), ("b", (63, 200)), ("c", (200, 31))):
        noise(*size).save(tmp_path / f"{name}.png")
    with pytest.raises(UserError, match=r"64 pixels: b\.png \(63x200\), c\.png \(200x31\);"):
        read_photos(tmp_path, least_side=64)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_large_jpeg_is_not_decoded_larger_than_is_enough(
    tmp_path: Path, orientation: int
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = noise(12, 9).resize((1600, 1200), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    whole = read_image(tmp_path / "photo.jpg")
    for least, scale in ((None, 1), (1200, 1), (601, 1), (600, 2), (200, 4), (150, 8), (1, 8)):
        seen = read_image(tmp_path / "photo.jpg", least)
        assert seen.size == (whole.width // scale, whole.height // scale)
        # What a stage's kernel makes of it is the same but for rounding to 8 bits on the way.
        both = [np.asarray(resize(square(image), 32, "bicubic"), int) for image in (seen, whole)]
        assert np.abs(both[0] - both[1]).max() <= 2


def test_large_photos_are_held_as_small_as_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [(400, 300), (300, 420), (200, 200), (90, 80)]
    for number, size in enumerate(sizes):
        noise(*size).save(tmp_path / f"{number}.png")
    held: list[weakref.ref[Image.Image]] = []

    def one(path: Path) -> Image.Image:
        assert not [image for image in held if image() is not None]
        image = read_image(path)
        held.append(weakref.ref(image))
        return image

    monkeypatch.setattr("cascade.data.images.read_image", one)
    found = read_photos(tmp_path, least_side=80, enough=100)
    assert found.sizes == tuple(sizes)
    assert [image.size for image in found.images] == [(133, 100), (100, 140), (100, 100), (90, 80)]
