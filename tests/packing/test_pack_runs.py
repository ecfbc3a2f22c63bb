"""A pack is the same whoever made it: stopped and gone on with, by one process or by several."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cascade.config.pack import PackConfig
from cascade.errors import UserError
from cascade.packing import part as packing_part
from cascade.packing.run import WORK, pack


@pytest.fixture
def photos(tmp_path: Path, picture: Callable[..., bytes]) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02}.jpg").write_bytes(picture(number))
        if number % 7:
            (folder / f"{number:02}.txt").write_text(f"number {number}")
    return folder


def config_of(photos: Path, output: Path, **settings: Any) -> PackConfig:
    base = {"sources": (str(photos),), "shard_records": 4, "held_out": 0.2, "workers": 1}
    return PackConfig(output=output, **{**base, **settings})


def bytes_of(folder: Path) -> dict[str, bytes]:
    assert not (folder / WORK).exists()
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_two_processes_make_the_bytes_of_one(photos: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    pack(config_of(photos, one))
    pack(config_of(photos, two, workers=2))
    assert bytes_of(one) == bytes_of(two)
    assert len(bytes_of(one)) > 10


def test_small_pieces_become_whole_shards(photos: Path, tmp_path: Path) -> None:
    manifest = pack(config_of(photos, tmp_path / "pack"))
    counts = [shard.records for shard in manifest.of_split("validation")]
    # Each part holds out one picture or so; what is together no more than a shard is one.
    assert all(first + second > 4 for first, second in pairwise(counts))
    assert sum(shard.records for shard in manifest.shards) + manifest.left_out["no caption"] == 30


@pytest.mark.parametrize("stops", [3, 8, 21])
def test_a_stopped_command_goes_on_to_the_same_bytes(
    stops: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    pack(config_of(photos, whole))
    prepared, count = packing_part.prepared, 0

    def until(*given: Any) -> Any:
        nonlocal count
        count += 1
        if count == stops:
            raise KeyboardInterrupt
        return prepared(*given)

    monkeypatch.setattr(packing_part, "prepared", until)
    with pytest.raises(KeyboardInterrupt):
        pack(config_of(photos, stopped))
    count = stops  # what is done is not done again
    assert not (stopped / "pack.json").exists()
    pack(config_of(photos, stopped))
    assert count - stops == 30 - (stops - 1) // 4 * 4
    assert bytes_of(whole) == bytes_of(stopped)


@pytest.mark.parametrize("stops", [0, 1, 3])
def test_a_command_stopped_while_it_finishes_goes_on(
    stops: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    pack(config_of(photos, whole))
    from cascade.packing import finish

    digest, count = finish.file_digest, 0

    def until(path: Path) -> str:
        nonlocal count
        count += 1
        if count == stops + 1:
            raise KeyboardInterrupt
        return digest(path)

    monkeypatch.setattr(finish, "file_digest", until)
    with pytest.raises(KeyboardInterrupt):
        pack(config_of(photos, stopped))
    pack(config_of(photos, stopped))
    assert bytes_of(whole) == bytes_of(stopped)


def test_a_command_stopped_before_copies_are_left_out_goes_on(
    photos: Path, tmp_path: Path, picture: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cascade.packing import run

    (photos / "copy.png").write_bytes(picture(1, kind="PNG"))
    (photos / "copy.txt").write_text("copy")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    manifest = pack(config_of(photos, whole, duplicates=2))
    assert manifest.left_out["duplicate"] == 1

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "drop_duplicates", stop)
    with pytest.raises(KeyboardInterrupt):
        pack(config_of(photos, stopped, duplicates=2))
    monkeypatch.undo()
    assert pack(config_of(photos, stopped, duplicates=2)) == manifest
    assert bytes_of(whole) == bytes_of(stopped)


@pytest.mark.dist
def test_a_killed_command_leaves_no_process_and_goes_on(photos: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    pack(config_of(photos, whole))
    words = f"pack {photos} -o {killed} --shard-records 4 --held-out 0.2 --workers 2"
    command = [sys.executable, "-m", "cascade", "data", *words.split()]
    with subprocess.Popen(command, start_new_session=True) as process:
        while not list(killed.glob(f"{WORK}/done-*")) and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert _ends(process.pid), "its processes end with it"
    pack(config_of(photos, killed))
    assert bytes_of(whole) == bytes_of(killed)


def _ends(group: int) -> bool:
    for _ in range(200):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.dist
def test_an_interrupted_command_leaves_no_process_at_once(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rich.progress.Progress.update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack(config_of(photos, tmp_path / "pack", workers=2))
    assert multiprocessing.active_children() == []


@pytest.mark.dist
def test_a_killed_process_ends_the_command_with_a_sentence(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cascade.packing import run

    monkeypatch.setattr(run, "_pack_in_process", _kill_me)
    with pytest.raises(UserError, match=r"was killed.*start the same command again"):
        pack(config_of(photos, tmp_path / "pack", workers=2))
    monkeypatch.undo()
    pack(config_of(photos, tmp_path / "pack"))


def _kill_me(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_other_settings_than_those_of_the_unfinished_pack_are_refused(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(packing_part, "prepared", stop)
    with pytest.raises(KeyboardInterrupt):
        pack(config_of(photos, tmp_path / "pack"))
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"unfinished pack of other settings \(least_side\)"):
        pack(config_of(photos, tmp_path / "pack", least_side=8))
    done = pack(config_of(photos, tmp_path / "pack", workers=2))
    assert pack(config_of(photos, tmp_path / "pack")) == done  # it is there already
    with pytest.raises(UserError, match="holds another pack"):
        pack(config_of(photos, tmp_path / "pack", least_side=8))


def test_a_full_disk_is_told_and_gone_on_from(
    photos: Path, tmp_path: Path, full_disk: Callable[[int], Any]
) -> None:
    with full_disk(9000), pytest.raises(UserError, match="cannot be written"):
        pack(config_of(photos, tmp_path / "pack"))
    assert pack(config_of(photos, tmp_path / "pack")).shards
