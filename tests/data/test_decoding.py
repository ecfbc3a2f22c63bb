"""Every kind of picture is read in the colours that viewers show, or refused by name."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin, features

from cascade.data.decoding import Encoded, PictureError, is_picture, picture_format, read_upright
from cascade.data.images import read_image
from cascade.errors import UserError

SIDE = 24
COLOURS = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)


def _profile() -> bytes:
    """A profile whose red is sRGB's green and the other way about, so that nobody can miss it."""
    raw = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {
        bytes(raw[at : at + 4]): at
        for at in range(132, 132 + 12 * int.from_bytes(raw[128:132], "big"), 12)
    }
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    raw[red + 4 : red + 12], raw[green + 4 : green + 12] = (
        raw[green + 4 : green + 12],
        raw[red + 4 : red + 12],
    )
    return bytes(raw)


def _over_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return rgb * share + 255 * (1 - share)


def _rgba() -> Image.Image:
    alpha = np.random.default_rng(1).integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    return Image.fromarray(np.dstack([COLOURS, alpha]))


GREY = COLOURS[..., 0]
ALPHA = np.asarray(_rgba())[..., 3]
LOSSLESS: dict[str, tuple[Callable[[], Image.Image], np.ndarray]] = {
    "RGB": (lambda: Image.fromarray(COLOURS), COLOURS),
    "L": (lambda: Image.fromarray(GREY), np.dstack([GREY] * 3)),
    "RGBA": (_rgba, _over_white(COLOURS, ALPHA)),
    "LA": (
        lambda: Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA)]),
        _over_white(np.dstack([GREY] * 3), ALPHA),
    ),
    "1": (
        lambda: Image.fromarray(GREY > 127),
        np.dstack([np.where(GREY > 127, 255, 0)] * 3),
    ),
    "I;16": (
        lambda: Image.fromarray(GREY.astype(np.uint16) * 257),
        np.dstack([GREY] * 3),
    ),
}


@pytest.mark.parametrize("mode", LOSSLESS)
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_every_mode_has_the_colours_that_were_put_in(
    tmp_path: Path, mode: str, suffix: str
) -> None:
    make, expected = LOSSLESS[mode]
    path = tmp_path / f"picture.{suffix}"
    make().save(path)
    # Laying transparency on white rounds once more.
    np.testing.assert_allclose(np.asarray(read_image(path)), expected, rtol=0, atol=1)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "I;16"])
def test_a_transparent_colour_is_transparent(tmp_path: Path, mode: str) -> None:
    key, value = {"RGB": ((255, 0, 255), (9, 8, 7)), "I;16": (1000, 40000)}.get(mode, (0, 1))
    image = Image.new(mode, (SIDE, SIDE), key)
    image.paste(value, (0, 0, SIDE // 2, SIDE))
    path = tmp_path / "keyed.png"
    image.save(path, transparency=key)
    read = read_upright(path)
    assert read.mode == "RGBA"
    alpha = np.asarray(read)[..., 3]
    assert (alpha[:, SIDE // 2 :] == 0).all()
    assert (alpha[:, : SIDE // 2] == 255).all()
    assert read_image(path).getpixel((SIDE - 1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp"])
def test_colours_are_converted_by_the_embedded_profile(
    tmp_path: Path, mode: str, suffix: str
) -> None:
    path = tmp_path / f"wide.{suffix}"
    image = Image.new(mode, (SIDE, SIDE), (0, 230, 0, 255)[: len(mode)])
    lossless = {"lossless": True} if suffix == "webp" else {}
    image.save(path, icc_profile=_profile(), **lossless)
    red, green, blue = read_image(path).getpixel((3, 3))  # type: ignore[misc]
    assert red > 220
    assert max(green, blue) < 30


def test_a_profile_of_srgb_moves_no_bit_and_a_damaged_one_is_left_out(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for number, profile in enumerate((srgb, b"no profile", _profile()[:300])):
        path = tmp_path / f"{number}.png"
        Image.fromarray(COLOURS).save(path, icc_profile=profile)
        assert np.array_equal(np.asarray(read_image(path)), COLOURS)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_numbers_of_unknown_range_are_refused(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "deep.tiff"
    Image.new(mode, (SIDE, SIDE), 1).save(path)
    with pytest.raises(UserError, match=r"deep\.tiff holds numbers of 32 bits"):
        read_image(path)


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [(".jfif", "JPEG"), (".jpe", "JPEG"), (".gif", "GIF"), (".png", "JPEG"), ("", "PNG")]
    + [(".avif", "AVIF")] * features.check("avif"),
)
def test_pictures_are_known_by_what_is_in_them(tmp_path: Path, suffix: str, kind: str) -> None:
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(COLOURS).save(path, format=kind)
    assert is_picture(path)
    assert read_image(path).size == (SIDE, SIDE)


@pytest.mark.parametrize("content", [b"", b"the dog", b"%!PS-Adobe-3.0 EPSF", b"\0" * 300])
def test_what_is_no_picture_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.jpg"
    path.write_bytes(content)
    assert not is_picture(path)
    with pytest.raises(UserError, match=r"picture\.jpg cannot be read as a picture"):
        read_image(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_what_editors_write_beside_the_pixels_refuses_nothing(
    tmp_path: Path, compressed: bool
) -> None:
    note = PngImagePlugin.PngInfo()
    note.add_text("workflow", '{"node": 1} ' * 120_000, zip=compressed)
    Image.fromarray(COLOURS).save(tmp_path / "noted.png", pnginfo=note)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_image(tmp_path / "noted.png").size == (SIDE, SIDE)


def test_cmyk_is_converted_with_and_without_a_profile(tmp_path: Path) -> None:
    Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0)).save(tmp_path / "ink.tiff")
    assert read_image(tmp_path / "ink.tiff").getpixel((0, 0)) == (0, 255, 255)
    buffer = io.BytesIO()
    Image.new("CMYK", (SIDE, SIDE), (255, 0, 0, 0)).save(buffer, "TIFF", icc_profile=_profile())
    (tmp_path / "odd.tiff").write_bytes(buffer.getvalue())  # a profile of RGB says nothing of ink
    assert read_image(tmp_path / "odd.tiff").getpixel((0, 0)) == (0, 255, 255)


def test_a_fault_is_also_told_without_the_picture() -> None:
    with pytest.raises(PictureError, match=r"^a\.tar/7 cannot be read as a picture") as caught:
        read_upright(Encoded(b"no picture", "a.tar/7"))
    assert caught.value.fault.startswith("cannot be read as a picture")
    with pytest.raises(PictureError, match="cannot be read"):
        picture_format(Encoded(b"no picture", "a.tar/7"))
