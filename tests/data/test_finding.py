"""What of a folder is a picture, and what is said of the rest."""

import os
from pathlib import Path

import pytest
from PIL import Image

from cascade.data.finding import find_pictures
from cascade.data.images import read_photos
from cascade.errors import UserError

HEIC = b"\0\0\0\x24ftypheic\0\0\0\0mif1heic" + bytes(300)


def _picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), "red").save(path, format="JPEG")
    return path


def test_everything_is_told_apart(tmp_path: Path) -> None:
    pictures = [_picture(tmp_path / name) for name in ("a.jfif", "b.jpg", "c")]
    (tmp_path / "d.heic").write_bytes(HEIC)
    (tmp_path / "e.jpg").write_bytes(HEIC)
    (tmp_path / "f.txt").write_text("the dog")
    (tmp_path / "g.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "h.jpg").mkdir()
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    os.mkfifo(tmp_path / "i.jpg")
    (tmp_path / "j.jpg").symlink_to("j.jpg")
    _picture(tmp_path / "a-masklabel.png")
    found = find_pictures(tmp_path)
    assert found.pictures == tuple(pictures)
    assert list(found.notes()) == [
        "2 of 9 files are pictures that cannot be read here: d.heic, e.jpg; convert them to JPEG.",
        "Links that lead nowhere: g.jpg, j.jpg.",
        "Skipped, no pictures: f.txt, i.jpg.",
        "Only 3 of 9 files are used as pictures.",
    ]
    for number in range(3):
        _picture(tmp_path / f"{number}.jpg")
    assert "Only" not in " ".join(find_pictures(tmp_path).notes())


def test_many_photos_are_told(tmp_path: Path) -> None:
    for number in range(20):
        _picture(tmp_path / f"{number:02d}.jpg")
    assert read_photos(tmp_path).notes == ()
    _picture(tmp_path / "20.jpg")
    assert read_photos(tmp_path).notes == ("21 photos are many: 3 to 5 of one subject are usual.",)


@pytest.mark.parametrize("suffix", [".heic", ".HEIF", ".psd"])
def test_a_picture_by_the_name_of_another_kind_is_one(tmp_path: Path, suffix: str) -> None:
    """Phones' exports keep the name of what they have converted."""
    path = _picture(tmp_path / f"a{suffix}")
    (tmp_path / f"b{suffix}").write_bytes(b"8BPS" + bytes(40))
    found = find_pictures(tmp_path)
    assert (found.pictures, found.foreign) == ((path,), (f"b{suffix}",))


@pytest.mark.parametrize("suffix", [".dng", ".NEF", ".orf"])
def test_a_raw_photo_is_none_that_is_read(tmp_path: Path, suffix: str) -> None:
    """Many are TIFFs of a small preview."""
    Image.new("RGB", (8, 8)).save(tmp_path / f"a{suffix}", format="TIFF")
    with pytest.raises(UserError, match="convert them to JPEG"):
        find_pictures(tmp_path)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "holds no pictures; add"),
        ({"notes.txt": b"the dog"}, r"holds no pictures \(it holds notes\.txt\); add"),
        ({"a.heic": HEIC}, r"that can be read here \(a\.heic\); convert them to JPEG"),
        ({"10_sks dog/a.txt": b"x"}, "holds no pictures; add"),
    ],
)
def test_a_folder_without_pictures_says_what_it_holds(
    tmp_path: Path, content: dict[str, bytes], told: str
) -> None:
    for name, data in content.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=told):
        find_pictures(tmp_path)


def test_pictures_one_folder_down_are_named(tmp_path: Path) -> None:
    _picture(tmp_path / "10_sks dog" / "a.jpg")
    with pytest.raises(UserError, match="itself, but its folder '10_sks dog' does; give that one"):
        find_pictures(tmp_path)
