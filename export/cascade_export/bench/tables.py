"""What `cascade bench stages` found, as JSON and as Markdown tables."""

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cascade.files import write_bytes
from cascade_export.bench.cold_start import ENGINE
from cascade_export.bench.stages import StageBench


def write_bench(result: StageBench, folder: Path) -> Path:
    """Write the figures as JSON and the tables beside them; returns the JSON's path."""
    # A cascade's name is what a person calls it, and no name of a file.
    name = re.sub("[^A-Za-z0-9_-]+", "-", result.cascade)[:100]
    stem = f"{name}-{result.engine}-{result.precision}"
    path = folder / f"{stem}.json"
    text = json.dumps(result.model_dump(mode="json"), indent=1)
    write_bytes((text + "\n").encode(), path)
    write_bytes(bench_tables(result).encode(), path.with_suffix(".md"))
    return path


def bench_tables(result: StageBench) -> str:
    """Return the figures as Markdown."""
    told = dict(result.environment)
    machine = told.pop("machine")
    before, after = result.load_average
    lines = [
        f"`{result.cascade}` on {result.engine} in {result.precision}, {machine} "
        f"({', '.join(f'{key} {value}' for key, value in told.items())}); load average "
        f"{before:.1f} before and {after:.1f} after.",
        "",
        *_calls(result),
    ]
    if result.first_pictures:
        lines += ["", *_first_pictures(result)]
    return "\n".join(lines) + "\n"


def _calls(result: StageBench) -> list[str]:
    eager = {(one.stage, one.batch): one.p50 for one in result.latencies if one.provider == "eager"}
    head = ("stage", "pictures", "provider", "p50, ms", "p95, ms", "steps/s", "eager's p50 / p50")
    rows = []
    for one in result.latencies:
        base = eager.get((one.stage, one.batch))
        rows.append(
            (
                one.stage,
                str(one.batch),
                _provider(one.provider, result),
                f"{one.p50:.1f}",
                f"{one.p95:.1f}",
                f"{one.throughput:.2f}",
                "–" if base is None else f"{base / one.p50:.2f}",
            )
        )
    return _table(head, rows)


def _first_pictures(result: StageBench) -> list[str]:
    head = ("first picture of a fresh process", "seconds", "peak memory, MiB")
    rows = [
        (_provider(one.provider, result), f"{one.seconds:.1f}", _memory(one.peak_mebibytes))
        for one in result.first_pictures
    ]
    return _table(head, rows)


def _provider(name: str, result: StageBench) -> str:
    return f"**{result.engine}**" if name == ENGINE else name


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _memory(mebibytes: float | None) -> str:
    return "not known" if mebibytes is None else f"{mebibytes:.0f}"
