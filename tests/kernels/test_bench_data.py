"""`cascade bench data`: equal pictures first, then numbers that belong to them."""

import io
import itertools
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from cascade.data.pack import MANIFEST, PackManifest, read_index
from cascade.errors import UserError
from cascade.results import Result
from cascade_bench import data_bench, data_packs
from cascade_bench.data_bench import bench_data
from cascade_bench.data_feeds import Asked, Feed, Named, Squared
from cascade_bench.data_fresh import PARTS, Fresh, Job, read
from cascade_bench.data_packs import SIZES, linked, photo_like, smallest
from cascade_bench.data_processes import Peak, family, processor_seconds, resident
from cascade_bench.data_providers import PROVIDERS
from cascade_bench.data_speed import DataProblem
from cascade_bench.harness import cases_of
from cascade_bench.settings import DataBenchConfig
from cascade_bench.tables import tables

pytest.importorskip("pyarrow")
SMALL = ((80, 64), (64, 48))
PACKAGES = {"webdataset": "webdataset", "webdataset-reduced": "webdataset", "datasets": "datasets"}
Command = Callable[..., Any]


@pytest.fixture(scope="module")
def pack(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine pictures of two sizes, in eight shards."""
    folder = tmp_path_factory.mktemp("pack")
    photo_like(folder, 9, SMALL)
    return folder


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_packs, "_LINKED", 8)
    monkeypatch.setattr(data_bench, "SIZES", SMALL)


def members(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """Each picture of a pack by its shard and key, as any reader of tars finds it."""
    for shard in PackManifest.load(folder / MANIFEST).of_split("train"):
        with tarfile.open(folder / shard.tar) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                if member.name.endswith(".jpg"):
                    yield shard.name, member.name.removesuffix(".jpg"), file.read()


def plain(asked: Asked, change: Callable[[Tensor], Tensor] = torch.clone) -> Feed:
    """The pictures in order, by this process."""
    shown = Squared(asked.size, asked.kernel)
    rows = [
        (change(shown(Image.open(io.BytesIO(data)))), (shard, key))
        for shard, key, data in members(asked.folder)
    ]
    images = itertools.cycle([image for image, _ in rows])

    def named() -> Named:
        first = rows[: asked.batch]
        return Named(torch.stack([image for image, _ in first]), [name for _, name in first])

    return Feed(
        (torch.stack(list(itertools.islice(images, asked.batch))) for _ in itertools.count()),
        named,
        decide=rows.__getitem__ if asked.start < len(rows) else None,
    )


@pytest.fixture
def known_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new provider is one function and one entry."""
    for name, change in (("plain", torch.clone), ("mirrored", lambda image: image.flip(-1))):
        monkeypatch.setitem(PROVIDERS, name, partial(plain, change=change))  # type: ignore[arg-type]


def problem(folder: Path, scratch: Path, name: str, size: int = 16) -> DataProblem:
    asked = Asked(folder, scratch, size, batch=6, workers=1)
    return DataProblem(
        device=torch.device("cpu"),
        providers={name: partial(PROVIDERS[name], asked)},
        ours=name,
        baseline=name,
        modes=("reading",),
        images=12,
        asked=asked,
        batches=2,
    )


@pytest.mark.dist
@pytest.mark.slow
@pytest.mark.parametrize("name", PROVIDERS)
def test_every_provider_shows_pillow_s_picture_of_the_whole_file(
    name: str, pack: Path, tmp_path: Path
) -> None:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    of = problem(pack, tmp_path, name)
    feed = of.providers[name]()
    assert of.gate()(feed) <= 1
    first = next(feed.batches)
    assert (first.shape, first.dtype) == ((6, 3, 16, 16), torch.uint8)
    watch = of.watch(of.call(feed, "reading"))
    assert (watch.method, watch.cold() > 0) == ("wall clock", True)
    assert len(watch.processor) == 1


@pytest.mark.parametrize("name", ["ours"])
def test_our_rows_are_checked_as_those_of_others(name: str, pack: Path, tmp_path: Path) -> None:
    of = problem(pack, tmp_path, name, size=48)
    feed = of.providers[name]()
    assert of.gate()(feed) <= 1
    shards = {(shard, key) for shard, key, _ in members(pack)}
    assert set(feed.named().names) <= shards
    assert feed.decide is not None
    assert feed.decide(5) == feed.decide(5)


@pytest.mark.usefixtures("known_here")
def test_pictures_are_compared_before_they_are_timed(tmp_path: Path) -> None:
    config = DataBenchConfig(
        against="plain,mirrored", sizes=(16, 64), batch=4, records=9, rounds=2, modes=("speed",)
    )
    result, whole, large = bench_data(config, tmp_path)
    assert (whole, large) == (True, [])
    cases = cases_of(result)
    assert [(case.case, case.images, case.ours) for case in cases] == [
        ("16x16", 12, "plain"),
        ("64x64", 12, "plain"),
    ]
    for case in cases:
        assert {row.provider: row.status for row in case.rows} == {
            "plain": "ok",
            "mirrored": "wrong",
        }
    times, rates, processors = tables(result)
    assert times.head[0] == "pictures, reading, ms"
    assert rates.head[0] == "pictures, reading, images/s"
    time = cases[0].time("reading", "plain")
    assert time is not None
    row = dict(zip(rates.head, rates.rows[0], strict=True))
    assert (row["plain"], row["mirrored"]) == (f"{12e6 / time:.4g}", "")
    assert rates.note == ""
    assert processors.head[2:] == rates.head[2:]
    assert dict(zip(processors.head, processors.rows[0], strict=True))["mirrored"] == ""


def test_who_is_not_installed_is_told_of_and_left_out(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("webdataset", "datasets"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(PROVIDERS, "plain", plain)  # type: ignore[arg-type]
    config = DataBenchConfig(
        against="plain,webdataset,datasets",
        data=pack,
        sizes=(16,),
        batch=4,
        records=4,
        rounds=2,
        modes=("speed",),
    )
    (case,) = cases_of(bench_data(config, tmp_path)[0])
    told = {row.provider: (row.status, row.reason) for row in case.rows}
    for package in ("webdataset", "datasets"):
        assert told[package][0] == "cannot"
        assert f"pip install {package}" in told[package][1]
    assert told["plain"] == ("ok", "")


def test_webdataset_needs_a_shard_for_each_worker(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    (tmp_path / "pack").mkdir()
    photo_like(tmp_path / "pack", 1, SMALL)
    asked = Asked(tmp_path / "pack", tmp_path, 16, batch=1, workers=2)
    with pytest.raises(RuntimeError, match="a shard for each of 2 workers"):
        PROVIDERS["webdataset"](asked)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"against": "ours,fast"}, "--against ours,fast is no list of ours, webdataset"),
        ({"data": Path("nowhere")}, "no pack in nowhere"),
        ({"sizes": (16, 65)}, "without --data has pictures of 64 pixels; give no --size above"),
    ],
)
def test_mistakes_are_told_before_anything_is_made(
    change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=told):
        bench_data(DataBenchConfig(**change), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_pack_with_smaller_pictures_is_refused(pack: Path, tmp_path: Path) -> None:
    assert smallest(pack) == 48
    config = DataBenchConfig(data=pack, sizes=(49,), modes=("speed",))
    with pytest.raises(UserError, match="pictures of 48 pixels; give no --size above"):
        bench_data(config, tmp_path)


def test_the_pictures_made_are_those_of_the_index(pack: Path) -> None:
    shards = PackManifest.load(pack / MANIFEST).shards
    assert [shard.records for shard in shards] == [2] + [1] * 7
    found = {(shard, key): data for shard, key, data in members(pack)}
    assert len(found) == 9
    for number, shard in enumerate(shards):
        tar = (pack / shard.tar).read_bytes()
        for part in read_index(pack / shard.index):
            for row in part.to_pylist():
                data = tar[row["offset"] : row["offset"] + row["size"]]
                assert data == found[shard.name, row["key"]], number
                with Image.open(io.BytesIO(data)) as image:
                    assert image.size == (row["width"], row["height"])
                    assert image.size == SMALL[int(row["key"]) % 2]
    assert len(set(found.values())) == 9


def test_the_usual_pictures_are_as_large_as_photos() -> None:
    assert (min(SIZES), max(SIZES)) == ((512, 384), (2048, 1536))


def test_links_stand_for_any_number_of_records(tmp_path: Path) -> None:
    linked(tmp_path, 8 * 300 - 3)
    manifest = PackManifest.load(tmp_path / MANIFEST)
    assert [shard.records for shard in manifest.shards] == [8] * 300
    assert sum(not file.is_symlink() for file in tmp_path.iterdir()) == 3
    (part,) = read_index(tmp_path / manifest.shards[-1].index, ["key"])
    assert part.num_rows == 8
    assert (tmp_path / manifest.shards[-1].tar).stat().st_size == manifest.shards[0].size


@pytest.mark.usefixtures("known_here")
@pytest.mark.parametrize("start", [3, 10**6])
def test_what_reading_takes_is_told_part_by_part(start: int, pack: Path, tmp_path: Path) -> None:
    job = Job(
        provider="plain",
        folder=pack,
        scratch=tmp_path,
        size=16,
        batch=2,
        workers=1,
        start=start,
        pictures=24,
    )
    found = read(job)
    assert len(found.held) == PARTS
    assert min(found.held) > 2**24
    assert (found.decided is None) == (start > 9)
    assert 0 < found.opened <= (found.decided or found.first) <= found.first


@pytest.mark.dist
@pytest.mark.slow
def test_a_large_pack_is_opened_by_a_fresh_process(tmp_path: Path) -> None:
    config = DataBenchConfig(
        against="ours,datasets",
        modes=("memory", "start-up"),
        sizes=(16,),
        batch=2,
        indexed=(80,),
        pictures=40,
    )
    result, whole, (memory, start) = bench_data(config, tmp_path)
    assert whole
    assert Result.load(result.path(tmp_path / "data")) == result
    assert [row[:2] for row in start.rows] == [["80", "ours"]]
    assert [row[:2] for row in memory.rows] == [["80", "ours"]]
    assert memory.head[2:] == ["to 10", "to 20", "to 30", "to 40"]
    figures: Any = result.figures
    assert Fresh.model_validate(figures["memory"]["80"]["ours"]).held == tuple(
        figures["memory"]["80"]["ours"]["held"]
    )


def test_a_fresh_process_that_fails_is_told_of(pack: Path, tmp_path: Path) -> None:
    job = Job(
        provider="nobody",
        folder=pack,
        scratch=tmp_path,
        size=16,
        batch=2,
        workers=1,
        start=0,
        pictures=2,
    )
    with pytest.raises(UserError, match="nobody read nothing of a large pack"):
        data_bench.fresh(job)


def test_a_family_is_a_process_and_what_it_starts() -> None:
    held = "x = b'1' * 2**26; import os; s = sum(range(10**6)); print('ready', flush=True); input()"
    command = [sys.executable, "-c", held]
    with Peak() as memory:
        before = memory.take()
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            assert family()[0] == os.getpid()
            assert child.pid in family()
            assert processor_seconds([child.pid]) > 0
            assert resident([child.pid]) > 2**26
            memory.take()
            assert memory.take() > before + 2**25
            child.communicate("\n")
    assert child.pid not in family()
    assert processor_seconds([child.pid]) == resident([child.pid]) == 0


def test_its_flags_reach_it(
    command: Command, pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[tuple[DataBenchConfig, Path]] = []

    def bench(config: DataBenchConfig, output: Path) -> tuple[Result, bool, list[Any]]:
        received.append((config, output))
        return Result.of("bench data", config, {"cases": [], "peaks": None}), True, []

    monkeypatch.setattr(data_bench, "bench_data", bench)
    words = ("--size", "16,32", "--indexed", "100", "--workers", 3, "--modes", "speed,memory")
    words += ("--data", pack, "--records", 7, "--batch", 2, "--pictures", 50, "--rounds", 4)
    done = command("bench", "data", *words, "--output", tmp_path)
    assert done.status == 0, done.err
    config = DataBenchConfig(
        sizes=(16, 32),
        indexed=(100,),
        workers=3,
        modes=("speed", "memory"),
        data=pack,
        records=7,
        batch=2,
        pictures=50,
        rounds=4,
    )
    assert received == [(config, tmp_path)]
