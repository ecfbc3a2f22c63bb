"""The stages of a bundle: graphs, weights and settings.

A stage that an earlier, interrupted export has written is taken as it is. Tracing takes most of the
time and one core, so that stages are traced side by side.
"""

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from cascade.config.base import Frozen
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.files import read_json, scratch, write_bytes
from cascade.launch import end_with_parent
from cascade.sampling import OnStep
from cascade.stage import Stage
from cascade_export.bundle.manifest import StageEntry, describe_weights
from cascade_export.bundle.requirements import exporter_versions
from cascade_export.graph.graph import GRAPH, Graph
from cascade_export.graph.numerics import Precision
from cascade_export.graph.precision import DEFAULT_ISLANDS
from cascade_export.graph.quantize import Inputs, quantize
from cascade_export.graph.trace import trace_stage, write_stage_weights
from cascade_export.graph.weights import WEIGHTS, digest
from cascade_export.settings import ExportOptions

CONFIG: Final = "config.json"
_RECORD: Final = "export.json"

Calibration: TypeAlias = Callable[[], Mapping[str, Sequence[Inputs]]]
"""Samples the network calls of a calibration, by stage, the first time it is called."""


class _Record(Frozen):
    """The sources of an exported stage, and the hashes of what was written."""

    source: str
    precision: Precision
    quantised: tuple[str, ...] = ()
    islands: tuple[str, ...]
    versions: dict[str, str]
    graph: str
    weights: str


class Tracers:
    """Traces stages in several processes, of which this is one.

    Args:
        workers: how many.
        stack: ends the others.
    """

    def __init__(self, workers: int, stack: ExitStack) -> None:
        self._others, self._stack = workers - 1, stack
        self._busy = False
        self._pool: ProcessPoolExecutor | None = None

    def begin(
        self, config: StageConfig, folder: Path, precision: Precision, islands: tuple[str, ...]
    ) -> Callable[[], Graph]:
        """Begin as `trace_stage`; the result is there when what is returned is called.

        Raises:
            UserError: when that is called: the process was killed.
        """
        asked = config, folder, precision, islands
        if not (self._others and self._busy):
            self._busy = True
            return partial(trace_stage, *asked)
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._others, context, end_with_parent)
            self._stack.callback(self._pool.shutdown, cancel_futures=True)
        return partial(_result, self._pool.submit(trace_stage, *asked).result)


def _result(await_graph: Callable[[], Graph]) -> Graph:
    try:
        return await_graph()
    except BrokenProcessPool:
        raise UserError(
            "A process of this export was killed, perhaps for want of memory; start the same "
            "command again: it goes on."
        ) from None


@dataclass(frozen=True)
class StageWriter:
    """Writes stages into the folder of a draft.

    Attributes:
        calibration: is asked for where graphs are quantized.
        workers: processes that trace.
        report: is told of every stage, as the steps of sampling.
    """

    output: Path
    options: ExportOptions
    calibration: Calibration
    workers: int
    report: OnStep

    def write(
        self, stages: Sequence[Stage], islands: Mapping[str, tuple[str, ...]]
    ) -> dict[str, StageEntry]:
        """Write what is not there yet; return all entries by name.

        Args:
            islands: by stage, modules that stay in fp32 beside the default ones.
        """
        with ExitStack() as stack:
            tracers = Tracers(self.workers, stack)
            begun = [
                self._begin(stage, islands.get(stage.config.name, ()), tracers, stack)
                for stage in stages
            ]
            return {
                stage.config.name: finish() for stage, finish in zip(stages, begun, strict=True)
            }

    def _begin(
        self, stage: Stage, islands: tuple[str, ...], tracers: Tracers, stack: ExitStack
    ) -> Callable[[], StageEntry]:
        name, precision = stage.config.name, self.options.precision
        folder = self.output / "stages" / name
        self.report(f"export {name}", 0, 1)
        wanted = {
            "source": stage.fingerprint(),
            "precision": precision,
            "quantised": self._quantized,
            "islands": islands,
            "versions": exporter_versions(),
        }
        record = _read_record(folder)
        if record is not None and record.model_dump(include=set(wanted)) == wanted:
            return partial(self._entry, stage.config, record)
        (folder / _RECORD).unlink(missing_ok=True)
        kept = (*DEFAULT_ISLANDS, *islands)
        plain = stack.enter_context(scratch()) if self._quantized else folder
        write_stage_weights(stage, plain, precision, kept)
        graph = tracers.begin(stage.config, plain, precision, kept)
        return lambda: self._entry(stage.config, self._record(name, wanted, graph()))

    @property
    def _quantized(self) -> tuple[str, ...]:
        """What a quantized graph depends on beside the rest; nothing for a plain one."""
        if self.options.quantization == "none":
            return ()
        return (self.options.quantization, *self.options.calibration_prompts)

    def _record(self, name: str, wanted: Mapping[str, Any], graph: Graph) -> _Record:
        """Quantize a traced graph, if that is asked, and note what has come of it."""
        folder = self.output / "stages" / name
        if self._quantized:
            graph = quantize(graph, self.calibration()[name], folder, self.options.quantization)
        hashes = {"graph": graph.sha256, "weights": digest(folder / WEIGHTS)}
        record = _Record.model_validate({**wanted, **hashes})
        write_bytes((record.model_dump_json(indent=2) + "\n").encode(), folder / _RECORD)
        return record

    def _entry(self, config: StageConfig, record: _Record) -> StageEntry:
        folder = self.output / "stages" / config.name
        # Written in any case: the record does not tell whether what lies there is whole.
        write_bytes((config.model_dump_json(indent=2) + "\n").encode(), folder / CONFIG)
        self.report(f"export {config.name}", 1, 1)
        return StageEntry(
            config=digest(folder / CONFIG),
            graph=record.graph,
            weights=describe_weights(self.output, folder / WEIGHTS, record.weights),
            islands=record.islands,
        )


def _read_record(folder: Path) -> _Record | None:
    """Read what an earlier export has written, if all of it is there and unaltered."""
    path = folder / _RECORD
    if not path.is_file():
        return None
    record = _Record.parse(read_json(path), str(path))
    files = {GRAPH: record.graph, WEIGHTS: record.weights}
    whole = all((folder / f).is_file() and digest(folder / f) == sha for f, sha in files.items())
    return record if whole else None
