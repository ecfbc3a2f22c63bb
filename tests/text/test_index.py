"""Keys are found whatever halves they share."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from cascade.text.index import KEY_BYTES, Index


def _key(high: int, low: int) -> bytes:
    return high.to_bytes(8) + low.to_bytes(8)


def test_keys_that_share_a_half_are_told_apart(tmp_path: Path) -> None:
    largest = 2**64 - 1
    stored = [
        [(0, 0), (5, 7), (largest, largest)],
        [(5, 8), (2**63, 1), (2**63 + 1, 1), (5, 6)],
    ]
    paths = []
    for number, keys in enumerate(stored):
        data = b"".join(_key(*key) for key in keys)
        tensors = {
            "keys": torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, KEY_BYTES),
            "lengths": torch.arange(1, len(keys) + 1, dtype=torch.int32),
        }
        paths.append(tmp_path / f"{number}.safetensors")
        save_file(tensors, paths[-1])
    index = Index.read(paths)
    assert len(index) == 7
    for number, keys in enumerate(stored):
        for place, key in enumerate(keys):
            start = place * (place + 1) // 2  # rows 1 + 2 + ... before it
            assert index.find(_key(*key)) == (number, start, place + 1)
    for absent in ((5, 9), (4, 7), (2**63, 2), (1, 0), (largest, 0)):
        assert index.find(_key(*absent)) is None


def test_nothing_is_found_in_nothing() -> None:
    assert Index.read([]).find(_key(1, 2)) is None
