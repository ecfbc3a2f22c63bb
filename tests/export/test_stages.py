"""Stages traced side by side are what one process traces; a killed process is told."""

import multiprocessing
from contextlib import ExitStack
from pathlib import Path

import pytest

from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.stages import StageWriter, Tracers
from cascade_export.graph.precision import DEFAULT_ISLANDS
from cascade_export.settings import ExportOptions


@pytest.mark.slow
def test_processes_trace_what_one_does(eager: Cascade, bundle: Bundle, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    writer = StageWriter(tmp_path, ExportOptions(), dict, 2, lambda *step: told.append(step))
    assert writer.write(eager.stages, {}) == bundle.manifest.stages
    names = [stage.config.name for stage in eager.stages]
    ends = [(f"export {name}", done, 1) for done in (0, 1) for name in names]
    assert told == ends
    # What is there already is not traced again.
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("graph.onnx")}
    assert writer.write(eager.stages, {}) == bundle.manifest.stages
    assert kept == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("graph.onnx")}


def test_a_killed_process_is_told(eager: Cascade, tmp_path: Path) -> None:
    config = eager.stages[0].config
    with ExitStack() as stack:
        tracers = Tracers(2, stack)
        tracers.begin(config, tmp_path, "fp32", DEFAULT_ISLANDS)
        graph = tracers.begin(config, tmp_path, "fp32", DEFAULT_ISLANDS)
        for process in multiprocessing.active_children():
            process.kill()
        with pytest.raises(UserError, match="was killed, perhaps for want of memory"):
            graph()
