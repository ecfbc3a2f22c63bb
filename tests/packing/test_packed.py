"""Rows of a pack: near and far, whatever is damaged in it."""

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascade.config.data import DataConfig, DataSetConfig
from cascade.config.stage import StageConfig
from cascade.data.batch import Batch
from cascade.data.captioned import CaptionedSamples
from cascade.data.opening import data_identity, open_dataset, open_samples, place_of
from cascade.data.packed import Packed
from cascade.data.place import Place
from cascade.data.stream import RankSlice, Skipping, Stream
from cascade.errors import UserError
from cascade_bench.few_steps import TINY

SIZE = 16
STAGE = StageConfig(
    name="base",
    size=SIZE,
    unet=TINY.unet,
)
COUNTS = {"00000": 7, "00001": 5, "00002": 9, "validation-00000": 3}


@pytest.fixture
def pack(tmp_path: Path, write_pack: Callable[..., Any], record: Any) -> Path:
    shards = {
        name: [
            record(f"{name}-{i}", (f"a picture of {name} {i}", f"another of {name} {i}"))
            for i in range(count)
        ]
        for name, count in COUNTS.items()
    }
    write_pack(tmp_path / "pack", shards)
    return tmp_path / "pack"


def samples(folder: Path | str | None = None, **changes: Any) -> CaptionedSamples:
    data = DataConfig(**({"folder": folder, "caption_dropout": 0.0} | changes))
    return open_samples(data, STAGE, seed=3, batch_size=4)


def equal(one: Batch, other: Batch) -> bool:
    same = torch.equal(one.images, other.images)
    return same and (one.prompts, one.seeds) == (other.prompts, other.seeds)


def test_an_epoch_has_every_training_picture_once(pack: Path) -> None:
    source = samples(pack, flip=False)
    assert len(source) == 21
    for epoch in range(2):
        chosen = source.decide(range(21 * epoch, 21 * (epoch + 1)))
        assert sorted(one.index for one in chosen) == list(range(21))
    batch = source.rows(range(21))
    assert batch.images.dtype == torch.uint8
    assert all(prompt is not None and "validation" not in prompt for prompt in batch.prompts)
    assert batch.to(torch.device("cpu")).images.abs().max() <= 1


def test_held_out_pictures_are_a_split_of_their_own(pack: Path) -> None:
    place = place_of(DataConfig(folder=pack), str(pack))
    held = open_dataset(place, "validation")
    assert held.counts.tolist() == [3]
    assert held.captions(2) == ("a picture of validation-00000 2", "another of validation-00000 2")
    assert held.digest() != open_dataset(place).digest()


def test_captions_belong_to_their_pictures(pack: Path) -> None:
    data = open_dataset(place_of(DataConfig(folder=pack), str(pack)))
    everything = list(data.all_captions())
    assert everything == [data.captions(index) for index in range(21)]
    noise = np.random.default_rng(zlib.crc32(b"00001-2")).integers(0, 256, (16, 24, 3), np.uint8)
    assert np.array_equal(np.asarray(data.picture(9)), noise)
    assert data.size(9) == (24, 16)
    assert everything[9][0] == "a picture of 00001 2"


@pytest.mark.parametrize(
    "changes", [{}, {"crop": "random", "least_scale": 0.5, "window": 4, "lanes": 3}]
)
def test_rows_do_not_depend_on_their_batch_or_on_the_process(
    pack: Path, changes: dict[str, Any]
) -> None:
    small = STAGE.model_copy(update={"size": 8})
    data = DataConfig(folder=pack, **changes)
    source = open_samples(data, small, 3, 4)
    together = source.rows(range(50))
    sent = pickle.loads(pickle.dumps(source))
    for position in (49, 0, 23):
        alone = sent.rows([position])
        assert torch.equal(alone.images[0], together.images[position])
        assert alone.prompts[0] == together.prompts[position]


def test_random_windows_show_all_of_a_picture_in_time(pack: Path) -> None:
    data = DataConfig(folder=pack, crop="random", least_scale=0.5)
    source = open_samples(data, STAGE.model_copy(update={"size": 4}), 0, 4)
    windows = [source._window(one, 24, 16, (4, 4)) for one in source.decide(range(400))]
    sides = np.array([window.right - window.left for window in windows])
    assert 8 <= sides.min() < 8.5 < 15.5 < sides.max() <= 16
    for first, last, length in (("left", "right", 24), ("top", "lower", 16)):
        assert 0 <= min(getattr(window, first) for window in windows) < 1
        assert length - 1 < max(getattr(window, last) for window in windows) <= length


def damage(pack: Path, shard: str, number: int, column: str = "offset") -> None:
    from pyarrow import parquet

    offset = parquet.read_table(pack / f"{shard}.parquet")[column][number].as_py()
    tar = bytearray((pack / f"{shard}.tar").read_bytes())
    tar[offset + 20] ^= 255
    (pack / f"{shard}.tar").write_bytes(tar)


@pytest.mark.parametrize("column", ["offset", "note_offset"])
def test_another_picture_stands_in_for_a_damaged_one(
    pack: Path, tmp_path: Path, column: str
) -> None:
    whole = samples(pack).rows(range(21))
    damage(pack, "00001", 2, column)
    log = tmp_path / "skipped.jsonl"
    stream = Stream(samples(pack), skipping=Skipping(0.0, log))
    part = RankSlice(21)
    batch = next(stream.batches(0, part))
    again = next(Stream(samples(pack)).batches(0, part))
    assert equal(batch, again)
    differing = [row for row in range(21) if not torch.equal(batch.images[row], whole.images[row])]
    assert len(differing) == 1
    assert "00001" in (batch.prompts[differing[0]] or "")
    (line,) = log.read_text().splitlines()
    assert "record 2 of" in json.loads(line)["skipped"]
    assert "checksum" in line


def test_a_run_stops_where_too_many_are_of_no_use(pack: Path) -> None:
    too_large = samples(pack, flip=False)
    stream = Stream(
        CaptionedSamples(
            tuple(type(one)(one.data, one.weight, (20, 20)) for one in too_large.sources),
            STAGE.model_copy(update={"size": 20}),
            0,
            too_large.config,
        )
    )
    with pytest.raises(UserError, match=r"24x16 is smaller than the 20x20 .*'cascade data check'"):
        next(stream.batches(0, RankSlice(4)))
    for number in range(3):
        damage(pack, "00000", number)
    stream = Stream(samples(pack), skipping=Skipping(0.05))
    with pytest.raises(UserError, match=r"rows have pictures .*raise data\.most_skipped"):
        for _ in islice(stream.batches(0, RankSlice(4)), 100):
            pass


def test_a_missing_and_a_truncated_shard_are_named(pack: Path) -> None:
    tar = pack / "00000.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-1024])
    with pytest.raises(UserError, match=r"00000\.tar or its index is not as pack\.json says"):
        samples(pack).rows(range(21))
    tar.unlink()
    with pytest.raises(UserError, match=r"There is no 00000\.tar"):
        samples(pack).rows(range(21))


def test_weights_and_prefixes_of_sets(pack: Path, tmp_path: Path) -> None:
    sets = (
        DataSetConfig(folder=pack, weight=3.0),
        DataSetConfig(folder=pack, weight=1.0, prefix="a drawing: "),
    )
    source = samples(sets=sets)
    prompts = [one.prompt or "" for one in source.decide(range(4096))]
    assert sum(prompt.startswith("a drawing: ") for prompt in prompts) == 1024
    identity = data_identity(source)
    assert json.loads(json.dumps(identity)) == identity
    moved = pack.rename(tmp_path / "moved")
    there = tuple(one.model_copy(update={"folder": str(moved)}) for one in sets)
    assert data_identity(samples(sets=there)) == identity


# Streams with worker processes


@pytest.mark.dist
def test_workers_change_no_row_and_resume_anywhere(pack: Path) -> None:
    part = RankSlice(6, rank=1, world_size=2)
    alone = list(islice(Stream(samples(pack)).batches(12, part), 9))
    helped = Stream(samples(pack), workers=2).batches(12, part)
    several = list(islice(helped, 9))
    assert all(map(equal, alone, several))
    later = next(Stream(samples(pack)).batches(12 + 6 * 5, part))
    assert equal(later, alone[5])


class _Killing:
    """Samples whose process is killed at a position, as often as it finds files to remove."""

    def __init__(self, samples: CaptionedSamples, at: int, lives: Path) -> None:
        self.samples, self.at, self.lives = samples, at, lives

    def rows(self, positions: Sequence[int]) -> Batch:
        if self.at in positions:
            for life in sorted(self.lives.iterdir())[:1]:
                life.unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return self.samples.rows(positions)


@pytest.mark.dist
def test_a_killed_worker_is_started_again_and_no_row_is_lost(pack: Path, tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    lives.mkdir()
    (lives / "one").touch()
    part = RankSlice(4)
    expected = list(islice(Stream(samples(pack)).batches(0, part), 6))
    killing = Stream(_Killing(samples(pack), 9, lives), workers=1)
    assert all(map(equal, islice(killing.batches(0, part), 6), expected))
    assert not list(lives.iterdir())


@pytest.mark.dist
@pytest.mark.slow
def test_a_run_ends_where_workers_are_killed_again_and_again(pack: Path, tmp_path: Path) -> None:
    lives = tmp_path / "lives"
    lives.mkdir()
    for number in range(9):
        (lives / f"{number}").touch()
    killing = Stream(_Killing(samples(pack), 9, lives), workers=1)
    with pytest.raises(UserError, match=r"are killed again and again .*set data\.workers lower"):
        list(islice(killing.batches(0, RankSlice(4)), 6))


@pytest.mark.dist
def test_workers_outlive_a_signal_that_ends_a_run(
    pack: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop takes its last step with what they make."""
    part = RankSlice(4)
    expected = list(islice(Stream(samples(pack)).batches(0, part), 12))
    batches = Stream(samples(pack), workers=1).batches(0, part)
    seen = [next(batches)]
    (worker,) = multiprocessing.active_children()
    for name in (signal.SIGINT, signal.SIGTERM):
        assert worker.pid is not None
        os.kill(worker.pid, name)
    seen += islice(batches, 11)
    assert all(map(equal, seen, expected))
    assert worker.is_alive()
    assert "was killed" not in caplog.text


_FOREVER = """
import multiprocessing
import pickle
import sys
from pathlib import Path

from cascade.data.stream import RankSlice, Stream

if __name__ == "__main__":
    samples = pickle.loads(Path(sys.argv[1]).read_bytes())
    batches = Stream(samples, workers=2).batches(0, RankSlice(4))
    next(batches)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    while True:
        next(batches)
"""


@pytest.mark.slow
@pytest.mark.dist
def test_workers_end_with_a_run_that_is_killed(pack: Path, tmp_path: Path) -> None:
    script, pickled = tmp_path / "run.py", tmp_path / "samples"
    script.write_text(_FOREVER)
    pickled.write_bytes(pickle.dumps(samples(pack)))
    with subprocess.Popen(
        [sys.executable, script, pickled], stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        workers = [int(word) for word in run.stdout.readline().split()]
        run.kill()
    assert len(workers) == 2
    for _ in range(100):
        if not any(map(_runs, workers)):
            return
        time.sleep(0.1)
    pytest.fail("workers live on")


def _runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.dist
def test_what_a_worker_has_to_say_arrives_as_one_sentence(pack: Path) -> None:
    (pack / "00001.tar").unlink()
    with pytest.raises(UserError, match=r"^There is no 00001\.tar in .*$"):
        list(islice(Stream(samples(pack), workers=1).batches(0, RankSlice(21)), 1))


@pytest.mark.gpu
@pytest.mark.dist
def test_workers_batches_are_pinned_and_normalised_on_the_gpu(pack: Path) -> None:
    batch = next(Stream(samples(pack), workers=1, pin=True).batches(0, RankSlice(8)))
    assert batch.images.is_pinned()
    assert batch.images.dtype == torch.uint8
    moved, expected = batch.to(torch.device("cuda")), batch.to(torch.device("cpu"))
    assert torch.equal(moved.images.cpu(), expected.images)


# Object stores


@pytest.fixture
def far(pack: Path) -> Iterator[str]:
    """The pack in fsspec's store in memory."""
    import fsspec

    system = fsspec.filesystem("memory")
    system.put(str(pack), "/data/pack", recursive=True)
    yield "memory://data/pack"
    system.rm("/data", recursive=True)


def test_a_far_pack_gives_the_rows_of_a_near_one(pack: Path, far: str, tmp_path: Path) -> None:
    near = samples(pack).rows(range(42))
    source = samples(far, cache=tmp_path / "cache")
    assert equal(source.rows(range(42)), near)
    assert data_identity(source) == data_identity(samples(pack))
    stream = Stream(source, bring=source.bring, ahead=8)
    assert equal(next(stream.batches(0, RankSlice(42))), near)


class _Failing:
    """A store that fails the first times it is asked for each file."""

    def __init__(self, system: Any, times: int) -> None:
        self.system, self.times, self.asked = system, times, dict[str, int]()

    def get_file(self, source: str, target: str) -> None:
        self.asked[source] = self.asked.get(source, 0) + 1
        if self.asked[source] <= self.times:
            raise ConnectionError("the store is busy")
        self.system.get_file(source, target)


def test_a_store_that_fails_twice_is_asked_again(
    pack: Path, far: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setattr("cascade.data.place._FIRST_WAIT", 0.001)
    system = _Failing(fsspec.filesystem("memory"), 2)
    monkeypatch.setattr("cascade.data.place.file_system", lambda address: (system, "/data/pack"))
    source = samples(far, cache=tmp_path / "cache")
    assert equal(source.rows(range(21)), samples(pack).rows(range(21)))
    assert set(system.asked.values()) == {3}
    system.times = 99
    with pytest.raises(UserError, match=r"could not be read \(the store is busy\)"):
        samples(far, cache=tmp_path / "other").rows(range(21))


def test_a_shard_that_arrives_damaged_is_fetched_again(
    pack: Path, far: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    monkeypatch.setattr("cascade.data.place._FIRST_WAIT", 0.001)
    with fsspec.open("memory://data/pack/00000.tar", "r+b") as file:
        file.seek(600)
        file.write(b"other")
    with pytest.raises(UserError, match=r"00000\.tar could not be read .* another checksum"):
        samples(far, cache=tmp_path / "cache").rows(range(21))
    assert not list((tmp_path / "cache").rglob("00000.tar"))


def test_the_cache_is_bounded_and_still_gives_every_row(
    pack: Path, far: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cascade.data.place._GRACE", 0.0)
    cache = tmp_path / "cache"
    size = (pack / "00002.tar").stat().st_size
    place = Place(far, cache, cache_bytes=2 * size)
    source = samples(far, cache=cache)
    one = type(source.sources[0])(Packed.open(place), 1.0, (SIZE, SIZE))
    bounded = CaptionedSamples((one,), STAGE, 3, source.config)
    assert equal(bounded.rows(range(42)), samples(pack).rows(range(42)))
    held = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    assert held <= 3 * size


def test_a_store_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"There is no pack\.json in memory://nowhere"):
        samples("memory://nowhere", cache=tmp_path)
    with pytest.raises(UserError, match=r"nosuch://x cannot be opened"):
        samples("nosuch://x", cache=tmp_path)
