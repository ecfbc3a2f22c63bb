"""`cascade data check`: every kind of damage is found, and the record at fault is named."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from cascade.config.look import CheckConfig
from cascade.data.pack import MANIFEST, PackManifest
from cascade.files import file_digest
from cascade.packing.checking import Checked, Fault, check_pack

Command = Callable[..., Any]
ALONE = CheckConfig(workers=1)


@pytest.fixture
def pack(tmp_path: Path, write_pack: Any, record: Any) -> Path:
    folder = tmp_path / "pack"
    numbers = {"score": 0.25}
    write_pack(
        folder,
        {
            "train-0": [record("a", numbers=numbers), record("b", ("x", "y"), (40, 30))],
            "train-1": [record("c", licence="CC0", source="s"), record("d")],
        },
    )
    return folder


def checked(pack: Path, config: CheckConfig = ALONE) -> Checked:
    return check_pack(str(pack), config)


def named(found: Checked) -> dict[str, str]:
    """Reasons by shard and key."""
    return {f"{fault.shard}/{fault.key}": fault.reason for fault in found.faults}


def row(pack: Path, shard: str, key: str) -> dict[str, Any]:
    rows = parquet.read_table(pack / f"{shard}.parquet").to_pylist()
    return next(one for one in rows if one["key"] == key)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def rewrite_index(pack: Path, shard: str, **columns: list[object]) -> None:
    """Write other columns into an index, and its checksum into the manifest: a packer's fault."""
    path = pack / f"{shard}.parquet"
    table = parquet.read_table(path)
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        field = table.schema.field(name)
        table = table.set_column(place, field, pa.array(values, field.type))
    parquet.write_table(table, path)
    sign(pack)


def sign(pack: Path) -> None:
    """Bring the manifest up to what lies there."""
    told = json.loads((pack / MANIFEST).read_text())
    for shard in told["shards"]:
        tar, index = (pack / f"{shard['name']}.{ending}" for ending in ("tar", "parquet"))
        shard |= {"sha256": file_digest(tar), "index_sha256": file_digest(index)}
        shard["size"] = tar.stat().st_size
    (pack / MANIFEST).write_text(json.dumps(told))


def test_a_whole_pack_has_no_faults(pack: Path) -> None:
    assert checked(pack) == Checked(records=4, decoded=4, faults=())
    assert checked(pack, CheckConfig(workers=1, sample=0.0)) == Checked(4, 0, ())
    assert checked(pack, CheckConfig(workers=1, quick=True)) == Checked(4, 0, ())


@pytest.mark.parametrize("part", ["offset", "note_offset"])
def test_a_flipped_byte_of_picture_or_note_is_named(pack: Path, part: str) -> None:
    flip(pack / "train-0.tar", row(pack, "train-0", "b")[part] + 20)
    assert named(checked(pack)) == {
        "train-0/": "train-0.tar has another sha256 than the manifest says",
        "train-0/b": "its bytes are not those that were packed (crc32)",
    }
    assert set(named(checked(pack, CheckConfig(workers=1, quick=True)))) == {"train-0/"}


def test_a_truncated_tar_names_what_is_lost(pack: Path) -> None:
    tar = pack / "train-1.tar"
    tar.write_bytes(tar.read_bytes()[: row(pack, "train-1", "d")["offset"] + 3])
    found = named(checked(pack))
    assert set(found) == {"train-1/", "train-1/d"}
    assert "bytes" in found["train-1/"]
    assert found["train-1/d"] == "the tar ends before it does"


@pytest.mark.parametrize("ending", ["tar", "parquet"])
def test_a_missing_file_is_named_and_the_other_shards_are_checked(pack: Path, ending: str) -> None:
    (pack / f"train-0.{ending}").unlink()
    flip(pack / "train-1.tar", row(pack, "train-1", "c")["offset"])
    found = named(checked(pack))
    assert set(found) == {"train-0/", "train-1/", "train-1/c"}
    assert f"There is no train-0.{ending}" in found["train-0/"]


def test_an_index_that_is_another_or_damaged_is_named(pack: Path) -> None:
    index = pack / "train-0.parquet"
    good = index.read_bytes()
    for wrong in ((pack / "train-1.parquet").read_bytes(), good[:-5], b""):
        index.write_bytes(wrong)
        assert named(checked(pack)) == {
            "train-0/": "train-0.parquet has another sha256 than the manifest says"
        }
    index.write_bytes(b"no index")
    sign(pack)
    assert "cannot be read" in named(checked(pack))["train-0/"]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"captions": [["z"], ["x", "y"]]}, "captions"),
        ({"caption_hash": [1, 2]}, "caption_hash"),
        ({"licence": ["MIT", ""]}, "licence"),
        ({"source": ["elsewhere", ""]}, "source"),
        ({"score": [0.5, None]}, "score"),
        ({"width": [25, 40]}, "24x16, and 25x16 in the index"),
        ({"crc32": [0, 1]}, "crc32"),
        ({"offset": [-1, 5]}, "no place"),
        ({"note_offset": [10**12, 0]}, "the tar ends before"),
    ],
)
def test_an_index_that_says_what_is_not_so_is_named(
    pack: Path, columns: dict[str, list[object]], reason: str
) -> None:
    rewrite_index(pack, "train-0", **columns)
    assert reason in named(checked(pack))["train-0/a"]


def test_a_count_that_is_not_the_manifests_is_named(pack: Path) -> None:
    told = json.loads((pack / MANIFEST).read_text())
    told["shards"][1]["records"] = 3
    (pack / MANIFEST).write_text(json.dumps(told))
    assert named(checked(pack)) == {
        "train-1/": "train-1.parquet has 2 records, and 3 in the manifest"
    }


def test_notes_and_pictures_that_never_were_are_named(
    tmp_path: Path, write_pack: Any, record: Any
) -> None:
    cut = record("b").encoded()[:200]
    write_pack(tmp_path, {"train-0": [record("a"), record("b", picture=cut)]})
    (fault,) = checked(tmp_path).faults
    assert (fault.shard, fault.key) == ("train-0", "b")
    assert "its picture cannot be read" in fault.reason
    assert checked(tmp_path, CheckConfig(workers=1, sample=0.0)).faults == ()


def test_a_share_of_the_pictures_is_decoded_and_the_seed_says_which(
    tmp_path: Path, write_pack: Any, record: Any
) -> None:
    bad = [record(f"{i:03d}", picture=b"no picture") for i in range(400)]
    write_pack(tmp_path, {"train-0": bad})
    found = [
        checked(tmp_path, CheckConfig(workers=1, sample=0.25, seed=seed)) for seed in (0, 0, 1)
    ]
    assert found[0] == found[1] != found[2]
    assert found[0].decoded == len(found[0].faults)
    assert abs(found[0].decoded - 100) < 5 * (400 * 0.25 * 0.75) ** 0.5  # standard deviations


def test_a_far_pack_is_checked_where_it_lies(pack: Path) -> None:
    system = fsspec.filesystem("memory")
    flip(pack / "train-0.tar", row(pack, "train-0", "a")["offset"])
    for path in pack.iterdir():
        system.pipe_file(f"/check/{path.name}", path.read_bytes())
    assert check_pack("memory://check", ALONE).faults == checked(pack).faults != ()
    system.rm_file("/check/train-1.tar")
    assert "train-1/" in named(check_pack("memory://check", ALONE))


def test_processes_find_what_one_does(pack: Path) -> None:
    for shard, key in (("train-0", "b"), ("train-1", "c")):
        flip(pack / f"{shard}.tar", row(pack, shard, key)["offset"])
    assert checked(pack, CheckConfig(workers=2)) == checked(pack)


def test_the_command_names_each_fault_and_ends_with_one_sentence(
    pack: Path, command: Command
) -> None:
    done = command("data", "check", pack, "--workers", 1)
    assert done.status == 0
    assert "4 records, 4 of them decoded" in done.out
    flip(pack / "train-0.tar", row(pack, "train-0", "b")["offset"])
    done = command("data", "check", pack, "--workers", 1)
    assert done.status == 2
    assert "train-0/b: its bytes are not those that were packed" in done.out
    (sentence,) = done.err.strip().splitlines()
    assert "1 of 4 records and 1 of its files are at fault" in sentence
    done = command("data", "check", pack, "--sample", 2)
    assert done.status == 2
    assert "--sample" in done.err


def test_records_are_where_other_readers_find_them(pack: Path) -> None:
    """The helper that these tests are made with writes what the format says."""
    for shard in PackManifest.load(pack / MANIFEST).shards:
        with tarfile.open(fileobj=io.BytesIO((pack / shard.tar).read_bytes())) as tar:
            found = {member.name: member.offset_data for member in tar.getmembers()}
        for one in parquet.read_table(pack / shard.index).to_pylist():
            assert found[f"{one['key']}.json"] == one["note_offset"]
            assert found[f"{one['key']}.png"] == one["offset"]


def test_a_fault_reads_as_a_line() -> None:
    assert str(Fault("train-0", "a", "wrong")) == "train-0/a: wrong"
    assert str(Fault("train-0", "", "gone")) == "train-0: gone"
