"""What is packed of what a source has, and what the command tells of it."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cascade.config.pack import Condition, PackConfig
from cascade.errors import UserError
from cascade.packing.pictures import is_held_out
from cascade.packing.run import pack

Rows = list[dict[str, Any]]


@pytest.fixture
def photos(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate(((40, 30), (30, 90), (64, 64), (120, 100))):
        (folder / f"{number}.jpg").write_bytes(picture(number, size))
        score = f', "aesthetic": {number}' if number else ""
        (folder / f"{number}.json").write_text(f'{{"caption": "number {number}"{score}}}')
    return folder


def test_filters_tell_what_they_leave_out(
    photos: Path, tmp_path: Path, rows_of: Callable[[Path], Rows]
) -> None:
    def kept(name: str, **settings: Any) -> tuple[list[str], dict[str, int]]:
        manifest = pack(
            PackConfig(sources=(str(photos),), output=tmp_path / name, workers=1, **settings)
        )
        rows = rows_of(tmp_path / name)
        return [row["captions"][0][-1] for row in rows], manifest.left_out

    assert kept("side", least_side=31) == (["2", "3"], {"shorter side below 31": 2})
    assert kept("aspect", most_aspect=1.5) == (
        ["0", "2", "3"],
        {"longer than 1.5 times its shorter side": 1},
    )
    assert kept("where", where=("aesthetic>=2", "width < 100")) == (
        ["2"],
        {"no number 'aesthetic'": 1, "not aesthetic>=2": 1, "not width < 100": 1},
    )


def test_shards_by_aspect_ratio(
    photos: Path, tmp_path: Path, rows_of: Callable[[Path], Rows]
) -> None:
    config = PackConfig(
        sources=(str(photos),), output=tmp_path / "pack", workers=1, by_aspect=True, duplicates=0
    )
    manifest = pack(config)
    of_row = [shard.aspect for shard in manifest.shards for _ in range(shard.records)]
    found = {
        row["captions"][0]: aspect
        for row, aspect in zip(rows_of(tmp_path / "pack"), of_row, strict=True)
    }
    assert found == {
        "number 0": (4, 3),  # 40x30
        "number 1": (1, 2),  # 30x90: nothing is nearer
        "number 2": (1, 1),
        "number 3": (4, 3),  # 120x100: by the ratio of the ratios 1.11, and 1.2 from a square
    }


def test_copies_are_left_out_and_copies_of_aspects_shards_stay_theirs(
    photos: Path, tmp_path: Path, picture: Callable[..., bytes], rows_of: Callable[[Path], Rows]
) -> None:
    (photos / "copy.png").write_bytes(picture(2, (64, 64), "PNG"))
    (photos / "copy.txt").write_text("copy")
    config = PackConfig(
        sources=(str(photos),), output=tmp_path / "pack", workers=1, by_aspect=True, duplicates=4
    )
    manifest = pack(config)
    assert manifest.left_out == {"duplicate": 1}
    assert [shard.aspect for shard in manifest.shards] == [(1, 2), (1, 1), (4, 3)]
    captions = [row["captions"] for row in rows_of(tmp_path / "pack")]
    assert ["number 2"] in captions
    assert ["copy"] not in captions


@pytest.mark.parametrize(
    ("text", "value", "holds"),
    [
        ("a<2", 2.0, False),
        ("a<=2", 2.0, True),
        ("a > -1.5", -1.0, True),
        ("a>=2", 1.9, False),
        ("the score == 1e3", 1000.0, True),
        ("a!=0", 0.0, False),
    ],
)
def test_conditions(text: str, value: float, holds: bool) -> None:
    assert Condition.parse(text).holds(value) is holds


@pytest.mark.parametrize("text", ["a", "a>", ">=5", "a>=b", "a=>5", "a>=nan"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no condition"):
        PackConfig(sources=("photos",), output=Path("pack"), where=(text,))


def test_larger_pictures_are_shrunk(
    tmp_path: Path, photos: Path, picture: Callable[..., bytes], rows_of: Callable[[Path], Rows]
) -> None:
    clear = Image.open(io.BytesIO(picture(9, (80, 60), "PNG"))).convert("RGBA")
    clear.putalpha(100)
    clear.save(photos / "4.png")
    (photos / "4.txt").write_text("number 4")
    pack(PackConfig(sources=(str(photos),), output=tmp_path / "pack", workers=1, shrink=30))
    rows = rows_of(tmp_path / "pack")
    sizes = [(row["width"], row["height"]) for row in rows]
    assert sizes == [(40, 30), (30, 90), (30, 30), (36, 30), (40, 30)]
    assert rows[0]["picture"] == picture(0, (40, 30))  # as it was
    opened = [Image.open(io.BytesIO(row["picture"])) for row in rows]
    assert [image.format for image in opened] == ["JPEG"] * 4 + ["PNG"]
    assert opened[4].mode == "RGBA"


def test_the_share_held_out_is_about_the_share_asked_for() -> None:
    count = 20_000
    hashes = (number * 0x9E3779B97F4A7C15 % 2**64 for number in range(count))
    share = sum(is_held_out(one, 0.1) for one in hashes) / count
    # Five standard deviations of a binomial share.
    assert abs(share - 0.1) < 5 * (0.1 * 0.9 / count) ** 0.5
    assert not is_held_out(0, 0.0)
    assert is_held_out(2**64 - 1, 1.0)


def test_the_command_sums_up(photos: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    (photos / "text.npy").write_bytes(b"")
    (photos / "5.jpg").write_bytes(b"")
    ended = command("data", "pack", photos, "-o", tmp_path / "pack", "--workers", 1)
    assert ended.status == 0
    assert f"{tmp_path / 'pack'}: 4 pictures in 1 shards, 0.0 MiB." in ended.out
    assert "Left out: 1 (no caption: 1)" in ended.out
    assert "Not taken over, as what they mean is not known: files of the kinds 1 npy." in ended.out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("{photos}/gone", "is no folder, tar or Parquet file that is there"),
        ("{photos}/a-{{0,1}}.tar", "There is no {photos}/a-0.tar"),
        ("{empty}", "holds nothing to pack"),
        ("", "sources"),
        ("{photos} --shrink 10 --least-side 20", "would be smaller than the least side"),
        ("{photos} --class-caption photo", "must have a place for the name"),
        ("{photos} --where aesthetic", "is no condition"),
        ("{table} --caption-column story", "has no column 'story'; it has image, TEXT"),
        ("{words}", "Which column of words.parquet holds the pictures is not clear"),
        ("{photos} -o {photos}", "holds other files and no pack"),
        ("{photos} --least-side 200", "Every picture was left out (shorter side below 200: 4)"),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    words: str, told: str, photos: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "empty").mkdir()
    parquet.write_table(pa.table({"image": [b"x"], "TEXT": ["a"]}), tmp_path / "table.parquet")
    parquet.write_table(pa.table({"a": ["x"], "b": [1]}), tmp_path / "words.parquet")
    places = {
        "photos": photos,
        "empty": tmp_path / "empty",
        "table": tmp_path / "table.parquet",
        "words": tmp_path / "words.parquet",
    }
    given = words.format(**places).split()
    output = [] if "-o" in given else ["-o", tmp_path / "pack"]
    ended = command("data", "pack", *given, *output, "--workers", 1)
    assert ended.status == 2
    assert told.format(**places) in ended.err
    # The same folder takes what is right afterwards.
    if output:
        assert command("data", "pack", photos, *output, "--workers", 1).status == 0
