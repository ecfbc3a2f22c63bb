"""Files of every format, mode and kind of information are read as what a viewer shows.

What is expected is arithmetic on the samples that went into the file; most files are written here
by hand, after their standards, and share no code with what reads them.
"""

import io
import itertools
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, features

from cascade.data.decoding import is_picture
from cascade.data.images import read_image

Samples = NDArray[np.integer]

_TO_XYZ = np.array(  # sRGB to XYZ under D50 (Lindbloom, after Bradford)
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)
_D50 = np.array([0.9642, 1.0, 0.8249])


def png(
    samples: Samples, bits: int, kind: int, chunks: Sequence[tuple[bytes, bytes]] = ()
) -> bytes:
    """A PNG of H W C samples; `kind` is its colour type, `chunks` stand before the pixels."""
    height, width = samples.shape[:2]
    if bits == 16:
        rows = samples.astype(">u2").reshape(height, -1).view(np.uint8)
    else:
        unpacked = np.unpackbits(samples.astype(np.uint8).reshape(height, -1, 1), axis=-1)
        rows = np.packbits(unpacked[..., 8 - bits :].reshape(height, -1), axis=-1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    every = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in every
    )


def grey_profile(gamma: float) -> bytes:
    """An ICC profile of grey samples that stand for light to the power of 1 / gamma."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": _curve(gamma)})


def swapped_profile(gamma: float) -> bytes:
    """The same of colours with sRGB's primaries, where red and green have changed places."""
    tags = {bytes([colour]) + b"TRC": _curve(gamma) for colour in b"rgb"}
    for colour, primary in zip(b"grb", _TO_XYZ.T, strict=True):
        tags[bytes([colour]) + b"XYZ"] = _xyz(primary)
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def ink_profile(corners: NDArray[np.floating]) -> bytes:
    """An ICC profile of CMYK; `corners` are the Lab colours of no and full ink, 2 2 2 2 3."""
    identity = bytes(range(256))
    grid = (corners * [2.55, 1, 1] + [0, 128, 128]).round().astype(np.uint8).tobytes()
    matrix = struct.pack(">9i", *(65536 * value for value in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    table = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + matrix + 4 * identity + grid + 3 * identity
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"A2B0": table})


def _curve(gamma: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))


def _xyz(colour: NDArray[np.floating]) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * value) for value in colour))


def _profile(kind: bytes, space: bytes, connection: bytes, tags: Mapping[bytes, bytes]) -> bytes:
    text = b"desc" + bytes(4) + struct.pack(">I", 2) + b"a\0" + bytes(79)
    every = {b"desc": text, b"wtpt": _xyz(_D50), **tags}
    place, table, data = 128 + 4 + 12 * len(every), b"", b""
    for name, value in every.items():
        table += name + struct.pack(">II", place + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(
        ">I4sI4s4s4s", place + len(data), bytes(4), 0x02400000, kind, space, connection
    )
    head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + struct.pack(">I", len(every)) + table + data


def encoded(light: NDArray[np.floating]) -> NDArray[np.floating]:
    """Light in [0, 1] as sRGB's levels, 0..255 (IEC 61966-2-1)."""
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def of_lab(lab: NDArray[np.floating]) -> NDArray[np.floating]:
    """Colours in CIE Lab under D50 as sRGB's levels, 0..255."""
    f = (lab[..., :1] + 16) / 116 + lab[..., 1:2] * [0.002, 0, 0] - lab[..., 2:] * [0, 0, 0.005]
    xyz = _D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    return encoded(xyz @ np.linalg.inv(_TO_XYZ).T)


SIZE = (6, 5)
GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6  # PNG's colour types


SWAPPED, GAMMA = swapped_profile(1.5), grey_profile(1.5)
RNG = np.random.default_rng(0)
# Nothing like what CMYK is without a profile, and linear, as readers interpolate in many ways.
CYAN, MAGENTA, YELLOW, BLACK = np.indices((2, 2, 2, 2))
INKS = np.stack(
    [96 - 24 * (CYAN + MAGENTA + YELLOW + BLACK), 30 * (CYAN - MAGENTA), 30 * (YELLOW - BLACK)],
    axis=-1,
)
INKED = ink_profile(INKS)


def levels(samples: Samples, bits: int) -> NDArray[np.floating]:
    """Samples as levels 0..255: of 16 bits the upper 8."""
    return samples // 256 * 1.0 if bits == 16 else samples * (255 / (2**bits - 1))


def coloured(colour: NDArray[np.floating], profile: bytes | None) -> NDArray[np.floating]:
    """Levels, H W 1 or H W 3, as sRGB's."""
    if profile is SWAPPED or (profile is GAMMA and colour.shape[-1] == 1):
        colour = encoded((colour / 255) ** 1.5)
    colour = np.broadcast_to(colour, (*colour.shape[:2], 3))
    return colour[..., [1, 0, 2]] if profile is SWAPPED else colour


def on_white(colour: NDArray[np.floating], alpha: NDArray[np.floating]) -> NDArray[np.floating]:
    """Levels under an opacity in [0, 1], H W 1."""
    return colour * alpha + 255 * (1 - alpha)


def chunks(profile: bytes | None, key: NDArray[np.integer] | None) -> list[tuple[bytes, bytes]]:
    found = []
    if profile is not None:
        found.append((b"iCCP", b"p\0\0" + zlib.compress(profile)))
    if key is not None:
        found.append((b"tRNS", key.astype(">u2").tobytes()))
    return found


def pngs() -> Iterator[tuple[str, bytes, NDArray[np.floating]]]:
    width, height = SIZE
    keyed = [(GREY, 1, bits) for bits in (1, 2, 4, 8, 16)] + [(COLOUR, 3, 8), (COLOUR, 3, 16)]
    for (kind, channels, bits), profile, has_key in itertools.product(
        keyed, (None, GAMMA, SWAPPED), (False, True)
    ):
        samples = RNG.integers(0, 2**bits, (height, width, channels))
        samples[1, 2] = samples[0, 0]
        key = samples[0, 0] if has_key else None
        alpha = (samples != key).any(-1, keepdims=True) if has_key else np.ones((height, width, 1))
        seen = on_white(coloured(levels(samples, bits), profile), alpha)
        name = f"png {kind} of {bits} bits, {named(profile)}, {'a key' if has_key else 'no key'}"
        yield name, png(samples, bits, kind, chunks(profile, key)), seen
    for (kind, channels), bits, profile in itertools.product(
        [(GREY_ALPHA, 2), (COLOUR_ALPHA, 4)], (8, 16), (None, GAMMA, SWAPPED)
    ):
        samples = RNG.integers(0, 2**bits, (height, width, channels))
        colour = coloured(levels(samples[..., :-1], bits), profile)
        seen = on_white(colour, levels(samples[..., -1:], bits) / 255)
        name = f"png {kind} of {bits} bits, {named(profile)}"
        yield name, png(samples, bits, kind, chunks(profile, None)), seen
    for bits, profile, has_alpha in itertools.product((1, 2, 4, 8), (None, SWAPPED), (False, True)):
        palette = RNG.integers(0, 256, (2**bits, 3))
        opacity = RNG.integers(0, 256, 2**bits) if has_alpha else np.full(2**bits, 255)
        samples = RNG.integers(0, 2**bits, (height, width, 1))
        extra = [(b"PLTE", palette.astype(np.uint8).tobytes())]
        extra += [(b"tRNS", opacity.astype(np.uint8).tobytes())] if has_alpha else []
        colour = coloured(palette[samples[..., 0]] * 1.0, profile)
        seen = on_white(colour, opacity[samples] / 255)
        name = f"png palette of {bits} bits, {named(profile)}, {'alpha' if has_alpha else 'opaque'}"
        yield name, png(samples, bits, PALETTE, [*chunks(profile, None), *extra]), seen


def named(profile: bytes | None) -> str:
    return {None: "no profile", GAMMA: "grey's profile", SWAPPED: "colours' profile"}[profile]


def saved(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def plain() -> Iterator[tuple[str, bytes, NDArray[np.floating]]]:
    """One colour all over, which lossy formats keep: JPEG, WebP, BMP, GIF, AVIF, and CMYK."""
    whole = np.ones((*SIZE[::-1], 1))
    colour = np.array([200.0, 60, 20])
    picture = Image.new("RGB", SIZE, (200, 60, 20))
    formats: list[dict[str, Any]] = [
        {"format": "JPEG", "quality": 98, "subsampling": 0},
        {"format": "WEBP", "lossless": True},
        {"format": "TIFF", "compression": "tiff_lzw"},
        *([{"format": "AVIF", "quality": 98}] if features.check("avif") else []),
    ]
    for options, profile in itertools.product(formats, (None, SWAPPED, GAMMA, b"torn")):
        given = {} if profile is None else {"icc_profile": profile}
        seen = coloured(colour * whole, profile)
        yield (
            f"{options['format']} {(profile or b'')[:9]!r}",
            saved(picture, **options, **given),
            seen,
        )
    for profile in (GAMMA, SWAPPED):
        data = saved(Image.new("L", SIZE, 90), format="JPEG", quality=98, icc_profile=profile)
        yield f"jpeg grey {named(profile)}", data, coloured(90.0 * whole, profile)
    inks = (204, 51, 0, 0)
    for options in ({"format": "JPEG", "quality": 98}, {"format": "TIFF"}):
        image = Image.new("CMYK", SIZE, inks)
        yield (
            f"{options['format']} inks alone",
            saved(image, **options),
            np.array([51, 204, 255]) * whole,
        )
        corners = INKS.astype(float)
        for ink in inks:
            corners = corners[0] * (1 - ink / 255) + corners[1] * ink / 255
        data = saved(image, **options, icc_profile=INKED)
        yield f"{options['format']} inks with their profile", data, of_lab(corners) * whole
        data = saved(image, **options, icc_profile=SWAPPED)
        yield f"{options['format']} inks, not their profile", data, np.array([51, 204, 255]) * whole
    clear = Image.new("P", SIZE, 1)
    clear.putpalette([0, 0, 0, 200, 60, 20])
    for options in ({}, {"transparency": 0}, {"transparency": 1}):
        seen = np.full(3, 255) if options.get("transparency") == 1 else colour
        yield f"gif {options}", saved(clear, format="GIF", **options), seen * whole
    for mode, value, level in (("1", 1, 255), ("L", 90, 90)):
        data = saved(Image.new(mode, SIZE, value), format="BMP")
        yield f"bmp {mode}", data, coloured(level * whole, None)
    for most, bits in itertools.product((255, 1000, 65535), ("P5", "P6")):
        samples = RNG.integers(0, most + 1, (*SIZE[::-1], 1 if bits == "P5" else 3))
        rows = samples.astype(">u2" if most > 255 else np.uint8).tobytes()
        seen = coloured(samples * (255 / most), None)
        yield f"pnm {bits} to {most}", f"{bits} 6 5 {most}\n".encode() + rows, seen
    yield "bmp colours", saved(picture, format="BMP"), colour * whole
    frames = [picture, Image.new("RGB", SIZE, "blue")]
    data = saved(frames[0], format="WEBP", save_all=True, append_images=frames[1:], lossless=True)
    yield "the first of two frames", data, colour * whole


TABLE = {name: (data, seen) for name, data, seen in (*pngs(), *plain())}


@pytest.mark.parametrize("name", TABLE)
def test_a_file_is_read_as_a_viewer_shows_it(tmp_path: Path, name: str) -> None:
    data, seen = TABLE[name]
    path = tmp_path / "picture"  # by what it holds
    path.write_bytes(data)
    assert is_picture(path)
    found = read_image(path)
    assert (found.mode, found.size) == ("RGB", SIZE)
    # Exact arithmetic rounds once; compositing, lossy formats and 8-bit tables a little more.
    assert np.abs(np.asarray(found, float) - seen).max() <= 3, name


def test_the_table_is_not_of_pictures_that_look_alike() -> None:
    """A reader that left profiles or keys out would miss by far more than the tolerance."""
    assert len(TABLE) > 90
    plain, swapped = (TABLE[f"WEBP {(profile or b'')[:9]!r}"][1] for profile in (None, SWAPPED))
    assert np.abs(plain - swapped).max() > 100
    alone, profiled = (TABLE[f"TIFF inks {how}"][1] for how in ("alone", "with their profile"))
    assert np.abs(alone - profiled).max() > 50
