"""The GPU suite remembers what passed, goes on where it stopped, and hides no failure."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch


@pytest.fixture
def pieces(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module as `python tools/gpu_suite.py` sees it."""
    monkeypatch.syspath_prepend(str(repository / "tools"))
    yield importlib.import_module("gpu.pieces")
    for name in ("gpu.kernel_checks", "gpu.program", "gpu.pieces", "gpu"):
        sys.modules.pop(name, None)


def _context(pieces: ModuleType, folder: Path, minutes: float = 5.0, **changes: Any) -> Any:
    given = {"shapes": (), "commit": None, "dry_run": True, **changes}
    return pieces.Context(folder, minutes, **given)


def test_a_piece_that_passed_is_not_run_again(pieces: ModuleType, tmp_path: Path) -> None:
    runs: list[str] = []

    def good(_: object) -> str:
        runs.append("good")
        return "found"

    def bad(_: object) -> str:
        runs.append("bad")
        raise pieces.FailedError("wrong by half")

    def absent(_: object) -> str:
        raise pieces.NotCheckedError("no such tool")

    both = [pieces.Piece("a good one", good), pieces.Piece("bad", bad)]
    assert pieces.run_pieces("part", both, _context(pieces, tmp_path)) == "failed"
    assert pieces.run_pieces("part", both, _context(pieces, tmp_path)) == "failed"
    assert runs == ["good", "bad", "bad"]
    held = json.loads((tmp_path / "part" / "bad.json").read_text())
    assert (held["status"], held["found"]) == ("failed", "wrong by half")
    assert (tmp_path / "part" / "a-good-one.json").is_file()
    others = [both[0], pieces.Piece("absent", absent)]
    assert pieces.run_pieces("part", others, _context(pieces, tmp_path)) == "passed"


def test_a_failure_is_known_until_the_piece_passes(pieces: ModuleType, tmp_path: Path) -> None:
    context = _context(pieces, tmp_path)

    def bad(_: object) -> str:
        raise pieces.FailedError("wrong")

    pieces.run_pieces("part", [pieces.Piece("a", bad)], context)
    assert pieces.pieces_that("failed", "part", context) == ["a"]
    assert pieces.pieces_that("failed", "other", context) == []
    pieces.run_pieces("part", [pieces.Piece("a", lambda _: "found")], context)
    assert pieces.pieces_that("failed", "part", context) == []


def test_no_table_is_written_beside_a_failure(pieces: ModuleType, tmp_path: Path) -> None:
    checks = importlib.import_module("gpu.kernel_checks")
    context = _context(pieces, tmp_path)

    def bad(_: object) -> str:
        raise pieces.FailedError("wrong gradients")

    pieces.run_pieces(checks.KERNELS, [pieces.Piece("tests x", bad)], context)
    table = checks.kernel_pieces(context)[-1]
    for _ in range(2):
        with pytest.raises(pieces.FailedError, match=r"no table is written: tests x failed"):
            table.run(context)
        assert pieces.run_pieces(checks.KERNELS, [table], context) == "failed"
    assert not (tmp_path / "sm_90.json").exists()


def test_what_passed_elsewhere_or_in_a_dry_run_does_not_count(
    pieces: ModuleType, tmp_path: Path
) -> None:
    runs: list[object] = []
    piece = pieces.Piece("a", lambda context: runs.append(context) or "found")
    for changes in ({}, {"commit": "abc"}, {"dry_run": False}):
        pieces.run_pieces("part", [piece], _context(pieces, tmp_path, **changes))
    assert len(runs) == 3
    pieces.run_pieces("part", [piece], _context(pieces, tmp_path, dry_run=False))
    assert len(runs) == 3


def test_no_piece_begins_when_the_time_is_up(pieces: ModuleType, tmp_path: Path) -> None:
    piece = pieces.Piece("a", lambda _: pytest.fail("it was begun"))
    assert pieces.run_pieces("part", [piece], _context(pieces, tmp_path, 0.0)) == "incomplete"
    assert not (tmp_path / "part" / "a.json").exists()


def _suite(repository: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/gpu_suite.py", *map(str, arguments)],
        cwd=repository,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_without_a_gpu_only_a_dry_run_is_possible(repository: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = _suite(repository, "--part", "kernels", "--output", tmp_path)
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stderr
    assert "Traceback" not in done.stderr
    late = _suite(
        repository, "--part", "network", "--output", tmp_path, "--minutes", 0, "--dry-run"
    )
    assert late.returncode == 3
    assert "training step" in late.stdout


@pytest.mark.slow
def test_a_dry_run_of_the_network_goes_through(repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("a dry run is for machines without a GPU")
    done = _suite(repository, "--part", "network", "--output", tmp_path, "--dry-run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "This was a dry run" in done.stdout
    record = json.loads((tmp_path / "network-tiny-training-step.json").read_text())
    assert record["dry_run"] is True
    assert set(record["timings"]) == {"triton", "reference"}
