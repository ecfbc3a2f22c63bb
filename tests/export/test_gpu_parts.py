"""The GPU suite's parts for engines go through without a GPU as far as that is possible."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def parts(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The modules as `python tools/gpu_suite.py` sees them."""
    monkeypatch.syspath_prepend(str(repository / "tools"))
    importlib.import_module("gpu.tensorrt")
    yield importlib.import_module("gpu")
    for name in [name for name in sys.modules if name.partition(".")[0] == "gpu"]:
        del sys.modules[name]


@pytest.mark.slow
def test_what_needs_no_gpu_passes_in_a_dry_run(parts: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    if torch.cuda.is_available():
        pytest.skip("a dry run is for machines without a GPU")
    context = parts.pieces.Context(tmp_path, 5.0, (), None, True)
    pieces = {piece.name: piece for piece in parts.export.export_pieces(context)}
    assert "was built in" in pieces["rtx validity"].run(context)
    assert "relative error" in pieces["onnxruntime parity"].run(context)
    assert (tmp_path / "graphs" / "if-i-m-small-32-fp16" / "graph.onnx").is_file()
    with pytest.raises(parts.pieces.NotCheckedError, match="driver"):
        pieces["rtx refit build"].run(context)


def test_full_tensorrt_is_not_checked_where_it_is_not_installed(
    parts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    context = parts.pieces.Context(tmp_path, 5.0, (), None, True)
    for piece in parts.tensorrt.tensorrt_pieces(context):
        with pytest.raises(parts.pieces.NotCheckedError, match=r"install it: pip install"):
            piece.run(context)
