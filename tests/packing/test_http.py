"""Packs and tars behind an HTTP server that fails twice for every file, and knows no ranges."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cascade.config.pack import PackConfig
from cascade.data.packed import Packed
from cascade.data.place import Place
from cascade.packing.run import pack


class _Busy(SimpleHTTPRequestHandler):
    """Serves a folder."""

    asked: ClassVar[Counter[str]] = Counter()

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        if self.asked[self.path] <= 2:
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address that it is served at."""
    monkeypatch.setattr("cascade.data.place._FIRST_WAIT", 0.001)
    folder = tmp_path / "served"
    folder.mkdir()
    _Busy.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Busy, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_busy_server_s_pack_is_read(
    served: tuple[Path, str], tmp_path: Path, write_pack: Callable[..., Any], record: Any
) -> None:
    folder, address = served
    write_pack(folder, {"00000": [record(f"{i}", (f"picture {i}",)) for i in range(5)]})
    far = Packed.open(Place(address, tmp_path / "cache"))
    near = Packed.open(Place(str(folder), tmp_path / "cache"))
    for index in range(5):
        assert far.captions(index) == near.captions(index)
        assert far.picture(index).tobytes() == near.picture(index).tobytes()
    assert set(_Busy.asked.values()) == {3}


def test_a_busy_server_s_tar_is_packed(
    served: tuple[Path, str], tmp_path: Path, tar_of: Callable[..., bytes], picture: Any
) -> None:
    folder, address = served
    members = {}
    for number in range(40):
        members[f"{number:02d}.jpg"] = picture(number)
        members[f"{number:02d}.txt"] = f"picture {number}".encode()
    (folder / "data.tar").write_bytes(tar_of(members.items()))
    near = pack(
        PackConfig(sources=(str(folder / "data.tar"),), output=tmp_path / "near", workers=1)
    )
    far = pack(PackConfig(sources=(f"{address}/data.tar",), output=tmp_path / "far", workers=1))
    assert [shard.records for shard in far.shards] == [40]
    first = Packed.open(Place(str(tmp_path / "far"), tmp_path / "cache"))
    other = Packed.open(Place(str(tmp_path / "near"), tmp_path / "cache"))
    assert list(first.all_captions()) == list(other.all_captions())
    assert near.left_out == far.left_out == {}
