"""Near copies: which are found, which one stays, and that a pack is whole at every moment."""

import json
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from cascade.data.pack import MANIFEST, QUARANTINE, PackManifest
from cascade.errors import UserError
from cascade.files import file_digest
from cascade.packing import duplicates, hashes
from cascade.packing.duplicates import drop_duplicates
from cascade.packing.hashes import first_of_copies, near_pairs

ALL = 2**64 - 1


def apart(one: int, other: int) -> int:
    return (one ^ other).bit_count()


def by_brute_force(given: Sequence[int], distance: int) -> set[int]:
    stay: list[int] = []
    for place, one in enumerate(given):
        if all(apart(one, given[other]) > distance for other in stay):
            stay.append(place)
    return set(stay)


# A few centres and what is some bits off them, so that chains and crowds come about.
near_hashes = st.lists(
    st.builds(
        lambda centre, bits: centre ^ sum(1 << bit for bit in bits),
        st.sampled_from([0, ALL, 0x0123456789ABCDEF]),
        st.sets(st.integers(0, 63), max_size=18),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=300)
@given(near_hashes, st.integers(0, 16))
def test_banding_finds_what_comparing_all_with_all_finds(given: list[int], distance: int) -> None:
    stays = first_of_copies(np.array(given, dtype=np.uint64), distance)
    assert set(stays.tolist()) == by_brute_force(given, distance)
    for place, kept in enumerate(stays.tolist()):
        assert kept <= place
        assert stays[kept] == kept
        assert apart(given[place], given[kept]) <= distance


@pytest.mark.parametrize("count", [2, 500, 10**5])
@pytest.mark.parametrize("distance", [0, 1, 4, 8, 16])
def test_every_pair_at_the_border_is_found_and_none_beyond_it(distance: int, count: int) -> None:
    rng = np.random.default_rng(distance)
    # Bands are chosen for the number of hashes: of few, all pairs of a sample are compared.
    masks = hashes._masks(count, distance)
    for _ in range(200):
        bits = rng.permutation(64)[: distance + 1].tolist()
        inside, beyond = (np.uint64(sum(1 << bit for bit in some)) for some in (bits[1:], bits))
        assert any(inside & mask == 0 for mask in masks)
        pair = np.array([0, inside], dtype=np.uint64)
        found = [np.stack(some).T.tolist() for some in near_pairs(pair, distance)]
        assert found
        assert all(some == [[0, 1]] for some in found)
        assert not list(near_pairs(np.array([0, beyond], dtype=np.uint64), distance))


def test_a_chain_of_small_steps_joins_nothing_that_is_far_apart() -> None:
    chain = np.array([(1 << bits) - 1 for bits in range(0, 60, 2)], dtype=np.uint64)
    stays = first_of_copies(chain, 2)
    # Each second link is near the one that stays before it.
    assert stays.tolist() == [place - place % 2 for place in range(len(chain))]


def test_uniform_pictures_are_copies_of_each_other(tmp_path: Path) -> None:
    imagehash = pytest.importorskip("imagehash")
    from PIL import Image

    found = [
        int(str(imagehash.phash(Image.new("RGB", size, colour))), 16)
        for colour in ("black", "white", "red", "#123456")
        for size in ((64, 64), (300, 200))
    ]
    assert first_of_copies(np.array(found, dtype=np.uint64), 1).tolist() == [0] * len(found)


def a_pack(folder: Path, write_pack: Any, record: Any) -> PackManifest:
    """Five pictures that differ and copies of them, over four shards of two splits."""
    made: PackManifest = write_pack(
        folder,
        {
            "train-0": [
                record("a", phash=0, source="of/a"),
                record("b", phash=0xFFFF, size=(40, 33)),
                record("c", phash=0xF0F0F0F0, numbers={"score": 1.5}),
            ],
            "train-1": [record("d", phash=0b11), record("e", phash=0xFFFE)],
            "train-2": [record("f", phash=ALL, numbers={"score": 2.5})],
            "validation-0": [record("g", phash=0xF0F0F0F1), record("h", phash=0xAAAA << 32)],
        },
        {"small": 3},
    )
    (folder / QUARANTINE).write_text('{"source": "x.png", "reason": "small"}\n')
    return made


def contents(folder: Path) -> dict[str, tuple[bytes, bytes]]:
    """Notes and pictures of all records, found by the indexes and, the same, by tarfile."""
    found: dict[str, tuple[bytes, bytes]] = {}
    for shard in PackManifest.load(folder / MANIFEST).shards:
        tar = (folder / shard.tar).read_bytes()
        assert (len(tar), shard.size) == (shard.size, len(tar))
        assert file_digest(folder / shard.tar) == shard.sha256
        assert file_digest(folder / shard.index) == shard.index_sha256
        rows = parquet.read_table(folder / shard.index).to_pylist()
        assert len(rows) == shard.records
        with tarfile.open(folder / shard.tar) as archive:
            members = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}  # type: ignore[union-attr]
        for row in rows:
            note, picture = (
                tar[row[f"{part}offset"] : row[f"{part}offset"] + row[f"{part}size"]]
                for part in ("note_", "")
            )
            assert members.pop(f"{row['key']}.json") == note
            assert members.pop(f"{row['key']}.png") == picture
            found[row["key"]] = note, picture
        assert members == {}
    return found


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_copies_go_and_all_else_keeps_its_bytes(
    tmp_path: Path, write_pack: Any, record: Any
) -> None:
    before = a_pack(tmp_path, write_pack, record)
    files, records = listing(tmp_path), contents(tmp_path)
    assert drop_duplicates(tmp_path, 2) == 3
    after = PackManifest.load(tmp_path / MANIFEST)
    left = contents(tmp_path)
    # c goes, though it is first: what trains makes room for what validates.
    assert left == {key: records[key] for key in "abfgh"}
    assert after.left_out == {"small": 3, "duplicate": 3}
    assert [shard.name for shard in after.shards] == ["train-0.1", "train-2", "validation-0"]
    assert after.shards[1:] == before.shards[2:]
    assert after.id != before.id
    kept = listing(tmp_path)
    assert kept.keys() == {
        *(MANIFEST, QUARANTINE, "train-0.1.tar", "train-0.1.parquet"),
        *(name for name in files if name.startswith(("train-2", "validation"))),
    }
    lines = [json.loads(line) for line in (tmp_path / QUARANTINE).read_text().splitlines()]
    assert lines == [
        {"source": "x.png", "reason": "small"},
        {"source": "c", "reason": "duplicate of g"},
        {"source": "d", "reason": "duplicate of a"},
        {"source": "e", "reason": "duplicate of b"},
    ]
    assert drop_duplicates(tmp_path, 2) == 0
    assert listing(tmp_path) == kept
    # h is 8 bits off a, and the others are farther.
    assert drop_duplicates(tmp_path, 8) == 1
    assert contents(tmp_path) == {key: records[key] for key in "bfgh"}
    assert "train-0.2.tar" in listing(tmp_path)


def test_all_else_that_the_manifest_says_of_a_shard_stays(
    tmp_path: Path, write_pack: Any, record: Any
) -> None:
    made = write_pack(tmp_path, {"validation-0": [record("a"), record("b")]})
    told = json.loads(made.model_dump_json())
    told["shards"][0]["aspect"] = [3, 2]
    told["settings"] = {"held_out": 1.0}
    (tmp_path / MANIFEST).write_text(json.dumps(told))
    before = PackManifest.load(tmp_path / MANIFEST)
    drop_duplicates(tmp_path, 0)
    after = PackManifest.load(tmp_path / MANIFEST)
    new = {"name", "records", "size", "sha256", "index_sha256"}
    assert after.shards[0].model_dump(exclude=new) == before.shards[0].model_dump(exclude=new)
    new = {"shards", "left_out"}
    assert after.model_dump(exclude=new) == before.model_dump(exclude=new)


class Killed(BaseException):
    """What nothing catches, as nothing does a kill."""


STEPS = ("_without", "_append", "_publish", "_remove_unnamed", "file_digest")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_and_run_again_it_ends_the_same(
    tmp_path: Path,
    write_pack: Any,
    record: Any,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    after: bool,
) -> None:
    a_pack(tmp_path / "whole", write_pack, record)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    records = contents(tmp_path / "killed")
    drop_duplicates(tmp_path / "whole", 2)
    work = getattr(duplicates, step)

    def killed(*given: Any) -> None:
        if after:
            work(*given)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(duplicates, step, killed)
        with pytest.raises(Killed):
            drop_duplicates(tmp_path / "killed", 2)
    # In between the pack is whole: as it was, or as it will be.
    between = contents(tmp_path / "killed")
    assert between in (records, {key: records[key] for key in "abfgh"})
    drop_duplicates(tmp_path / "killed", 2)
    assert listing(tmp_path / "killed") == listing(tmp_path / "whole")


def test_a_damaged_pack_is_refused_and_stays_as_it_is(
    tmp_path: Path, write_pack: Any, record: Any
) -> None:
    a_pack(tmp_path, write_pack, record)
    (tmp_path / "train-1.tar").write_bytes(b"short")
    files = listing(tmp_path)
    with pytest.raises(UserError, match="train-1"):
        drop_duplicates(tmp_path, 2)
    assert listing(tmp_path) == files
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(UserError, match=MANIFEST):
        drop_duplicates(tmp_path, 2)


def test_a_distance_at_which_chance_decides_is_told(caplog: pytest.LogCaptureFixture) -> None:
    duplicates._tell_chance(600, 12)  # of all 2^64 hashes 2e-7 lie so near
    assert caplog.text == ""
    duplicates._tell_chance(600, 16)  # 4e-5
    assert "0.023 others within 16 bits" in caplog.text
