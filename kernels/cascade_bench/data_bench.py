"""`cascade bench data`: pictures a second, start and memory of everybody who feeds a training."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch

from cascade.data.pack import MANIFEST
from cascade.errors import UserError
from cascade.progress import say
from cascade.results import Result
from cascade.tables import Table, Value
from cascade_bench.data_feeds import Asked
from cascade_bench.data_fresh import PARTS, Fresh, Job
from cascade_bench.data_packs import SIZES, SMALL, linked, photo_like, smallest
from cascade_bench.data_providers import COPIES, PROVIDERS
from cascade_bench.data_speed import DataProblem
from cascade_bench.harness import bench
from cascade_bench.problem import Case, Problem
from cascade_bench.providers import known
from cascade_bench.settings import DataBenchConfig

PACKAGES: Final = ("pillow", "pyarrow", "webdataset", "datasets")
_MEBIBYTE: Final = 2**20


def bench_data(config: DataBenchConfig, output: Path) -> tuple[Result, bool, list[Table]]:
    """Measure into `data` of a folder; return tables of what large packs take as well."""
    names = known(config.against, PROVIDERS)
    _require_sides(config)
    with TemporaryDirectory() as scratch:
        cases = _cases(names, config, Path(scratch)) if "speed" in config.modes else []
        result, whole = bench("bench data", cases, output / "data", config, packages=PACKAGES)
    if not whole or config.modes == ("speed",):
        return result, whole, []
    large = _large(names, config)
    figures: dict[str, Any] = {
        mode: {str(records): _dumped(by_name) for records, by_name in of.items()}
        for mode, of in large.items()
    }
    result = result.model_copy(update={"figures": {**result.figures, **figures}})
    tables = [_TABLES[mode](of, config) for mode, of in large.items()]
    result.write(output / "data", tables)
    return result, whole, tables


def _dumped(by_name: Mapping[str, Fresh]) -> dict[str, Any]:
    return {name: one.model_dump(mode="json") for name, one in by_name.items()}


def _cases(names: Sequence[str], config: DataBenchConfig, scratch: Path) -> list[Case]:
    """Return a case for each size of pictures."""

    def opened(size: int) -> Problem:
        folder = _pack(config, scratch, size)
        asked = Asked(folder, scratch / folder.name, size, config.batch, config.workers)
        batches = -(-config.records // config.batch)
        return DataProblem(
            device=torch.device("cpu"),
            providers={name: partial(PROVIDERS[name], asked) for name in names},
            ours=names[0],
            baseline=names[0],
            modes=("reading",),
            images=batches * config.batch,
            asked=asked,
            batches=batches,
        )

    told = f"B{config.batch}, {config.workers} workers"
    return [
        Case("pictures", f"{size}x{size}", told, partial(opened, size)) for size in config.sizes
    ]


def _require_sides(config: DataBenchConfig) -> None:
    """Refuse sizes above that of the smallest picture: ours leaves it out, others enlarge it."""
    if config.data is None:
        most, source = max(map(min, SIZES)), "What is made without --data"
    elif (config.data / MANIFEST).is_file():
        most, source = smallest(config.data), str(config.data)
    else:
        raise UserError(f"There is no pack in {config.data}; give a folder with {MANIFEST}.")
    if "speed" in config.modes and max(config.sizes) > most:
        raise UserError(f"{source} has pictures of {most} pixels; give no --size above that.")


def _pack(config: DataBenchConfig, scratch: Path, size: int) -> Path:
    """Return a pack without pictures smaller than a size."""
    if config.data is not None:
        return config.data
    chosen = [one for one in SIZES if min(one) >= size]
    folder = scratch / f"pack-{len(chosen)}"
    if not folder.is_dir():
        folder.mkdir()
        photo_like(folder, config.records, chosen)
    return folder


Found = Mapping[int, Mapping[str, Fresh]]
"""By the records of a pack, and by the provider."""


def _large(names: Sequence[str], config: DataBenchConfig) -> Mapping[str, Found]:
    """Let fresh processes open large packs, and read on in the last."""
    asked = [name for name in names if name not in COPIES]
    for name in sorted(COPIES.intersection(names)):
        say(f"{name} copies every picture of a pack before it gives one; it opens no large one.")
    found: dict[str, dict[int, dict[str, Fresh]]] = {
        mode: {} for mode in config.modes if mode != "speed"
    }
    for records in config.indexed:
        modes = [mode for mode in found if mode == "start-up" or records == config.indexed[-1]]
        if not modes:
            continue
        with TemporaryDirectory() as folder:
            linked(Path(folder), records)
            for mode in modes:
                pictures = config.pictures if mode == "memory" else config.batch
                found[mode][records] = {
                    name: fresh(_job(name, Path(folder), records, pictures, config))
                    for name in asked
                }
    return found


def _job(name: str, folder: Path, records: int, pictures: int, config: DataBenchConfig) -> Job:
    return Job(
        provider=name,
        folder=folder,
        scratch=folder / "scratch",
        size=SMALL,
        batch=config.batch,
        workers=config.workers,
        start=records // 2,
        pictures=pictures,
    )


def fresh(job: Job) -> Fresh:
    """Let a fresh process read; return what it took."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_text(job.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", "cascade_bench.data_fresh", str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"{job.provider} read nothing of a large pack; its error is above.")
    return Fresh.model_validate_json(done.stdout.splitlines()[-1])


def _start_up(found: Found, config: DataBenchConfig) -> Table:
    head = ["pictures of the pack", "provider", "opened, s", "a choice made, s", "first batch, s"]
    rows: list[list[Value]] = [
        [f"{records:,}", name, one.opened, one.decided, one.first, _mebibytes(one.peak)]
        for records, by_name in found.items()
        for name, one in by_name.items()
    ]
    note = (
        "In a fresh process, from its first step on, the program being loaded. Chosen is a record "
        "in the middle, where the stream goes on; a stream without positions begins anew. Memory "
        "is the most that the process held up to the choice, beside the program. Every shard is a "
        "link to the same, of 10,000 pictures, which lies in the system's cache."
    )
    return Table([*head, "memory, MiB"], rows, note)


def _memory(found: Found, config: DataBenchConfig) -> Table:
    ends = [f"to {part * config.pictures // PARTS:,}" for part in range(1, PARTS + 1)]
    rows: list[list[Value]] = [
        [f"{records:,}", name, *map(_mebibytes, one.held)]
        for records, by_name in found.items()
        for name, one in by_name.items()
    ]
    note = (
        f"The most, in MiB, that a process and its {config.workers} workers held, with the program "
        f"itself, while so many pictures of {SMALL} pixels were read; what they share is "
        "counted once."
    )
    return Table(["pictures of the pack", "provider", *ends], rows, note)


def _mebibytes(size: int) -> int:
    return round(size / _MEBIBYTE)


_TABLES: Final[Mapping[str, Callable[[Found, DataBenchConfig], Table]]] = {
    "start-up": _start_up,
    "memory": _memory,
}
