"""TIFFs of every depth, byte order and kind of colours, written here by hand, are read right.

The formulas of what is expected are the standard's; see `test_decoding.py` for other formats.
"""

import itertools
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cascade.data.decoding import is_picture
from cascade.data.images import read_image
from cascade.errors import UserError

SIZE = (6, 5)
RNG = np.random.default_rng(0)
_TO_XYZ = np.array(  # sRGB to XYZ under D50 (Lindbloom, after Bradford)
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)
_D50 = np.array([0.9642, 1.0, 0.8249])


def tiff(
    rows: bytes, size: tuple[int, int], tags: Mapping[int, Sequence[int]], order: str
) -> bytes:
    """A TIFF of one strip; `tags` are numbers of 16 bits, `order` is "<" or ">"."""
    width, height = size
    every = {
        256: [width],
        257: [height],
        259: [1],
        278: [height],
        **tags,
        273: [0],
        279: [len(rows)],
    }
    start = 8 + 2 + 12 * len(every) + 4
    entries, after = b"", b""
    for tag, values in sorted(every.items()):
        wide = tag in (273, 279)
        values = [start] if tag == 273 else values
        data = struct.pack(f"{order}{len(values)}{'I' if wide else 'H'}", *values)
        if len(data) > 4:
            place = start + len(rows) + len(after)
            after += data
            data = struct.pack(f"{order}I", place)
        kind = 4 if wide else 3
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + data.ljust(4, b"\0")
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + struct.pack(f"{order}H", len(every)) + entries + bytes(4) + rows + after


def encoded(light: NDArray[np.floating]) -> NDArray[np.floating]:
    """Light in [0, 1] as sRGB's levels, 0..255 (IEC 61966-2-1)."""
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def of_lab(lab: NDArray[np.floating]) -> NDArray[np.floating]:
    """Colours in CIE Lab under D50 as sRGB's levels, 0..255."""
    f = (lab[..., :1] + 16) / 116 + lab[..., 1:2] * [0.002, 0, 0] - lab[..., 2:] * [0, 0, 0.005]
    xyz = _D50 * np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    return encoded(xyz @ np.linalg.inv(_TO_XYZ).T)


def levels(samples: NDArray[np.integer], bits: int) -> NDArray[np.floating]:
    """NDArray[np.integer] as levels 0..255: of 16 bits the upper 8."""
    return samples // 256 * 1.0 if bits == 16 else samples * (255 / (2**bits - 1))


def on_white(colour: NDArray[np.floating], alpha: NDArray[np.floating]) -> NDArray[np.floating]:
    """Levels under an opacity in [0, 1], H W 1."""
    return colour * alpha + 255 * (1 - alpha)


def tiffs() -> Iterator[tuple[str, bytes, NDArray[np.floating]]]:
    width, height = SIZE
    for order, bits, white in itertools.product("<>", (8, 16), (0, 1)):
        if (order, bits, white) == (">", 16, 0):
            continue  # Pillow knows no such file and says so
        samples = RNG.integers(0, 2**bits, (height, width, 1))
        rows = samples.astype(f"{order}u{bits // 8}").tobytes()
        seen = levels(samples, bits) if white else 255 - levels(samples, bits)
        tags = {258: [bits], 262: [white], 277: [1]}
        yield (
            f"tiff grey {order}{bits}, {white}",
            tiff(rows, SIZE, tags, order),
            np.repeat(seen, 3, -1),
        )
    samples = RNG.integers(0, 4096, (height, width, 1))
    packed = np.unpackbits(samples.astype(">u2").view(np.uint8).reshape(height, -1, 2), axis=-1)
    rows = np.packbits(packed[..., 4:].reshape(height, -1), axis=-1).tobytes()
    tags = {258: [12], 262: [1], 277: [1]}
    yield "tiff grey of 12 bits", tiff(rows, SIZE, tags, "<"), np.repeat(samples // 16 * 1.0, 3, -1)
    for order, bits, alpha in itertools.product("<>", (8, 16), (False, True)):
        samples = RNG.integers(0, 2**bits, (height, width, 3 + alpha))
        tags = {258: [bits] * (3 + alpha), 262: [2], 277: [3 + alpha]} | (
            {338: [2]} if alpha else {}
        )
        opacity = levels(samples[..., 3:], bits) / 255 if alpha else np.ones((height, width, 1))
        rows = samples.astype(f"{order}u{bits // 8}").tobytes()
        seen = on_white(levels(samples[..., :3], bits), opacity)
        yield f"tiff colours {order}{bits}, alpha {alpha}", tiff(rows, SIZE, tags, order), seen
    lab = RNG.integers((50, -15, -15), (80, 15, 15), (height, width, 3))
    rows = (lab * [2.55, 1, 1]).round().astype(np.int16).astype(np.uint8).tobytes()
    tags = {258: [8, 8, 8], 262: [8], 277: [3]}
    yield "tiff lab", tiff(rows, SIZE, tags, "<"), of_lab(lab * 1.0)


TABLE = {name: (data, seen) for name, data, seen in tiffs()}


@pytest.mark.parametrize("name", TABLE)
def test_a_tiff_is_read_as_a_viewer_shows_it(tmp_path: Path, name: str) -> None:
    data, seen = TABLE[name]
    path = tmp_path / "picture"
    path.write_bytes(data)
    assert is_picture(path)
    found = read_image(path)
    assert (found.mode, found.size) == ("RGB", SIZE)
    # All but Lab is exact to the rounding of transparency; Lab goes through an 8-bit table.
    assert np.abs(np.asarray(found, float) - seen).max() <= (4 if name == "tiff lab" else 1)


@pytest.mark.parametrize("kind", [2, 3])
def test_samples_without_a_white_are_refused_by_name(tmp_path: Path, kind: int) -> None:
    """Whole numbers with a sign, and others."""
    rows = np.zeros(SIZE, np.int32 if kind == 2 else np.float32).tobytes()
    tags = {258: [32], 262: [1], 277: [1], 339: [kind]}
    (tmp_path / "deep.tif").write_bytes(tiff(rows, SIZE, tags, "<"))
    with pytest.raises(
        UserError, match=r"deep\.tif holds numbers of 32 bits.*save it with 8 or 16"
    ):
        read_image(tmp_path / "deep.tif")
