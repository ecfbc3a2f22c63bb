"""Results of measurements: the one format of every figure that is kept.

A figure counts only with the code, the machine and the command that gave it. Where one of them is
not known, or nobody else could have the same code, the file's own name says that it is a trial.
"""

import shlex
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Self

from pydantic import JsonValue, ValidationError

from cascade.config.base import Frozen
from cascade.environment import DIRTY, UNKNOWN, environment
from cascade.errors import UserError
from cascade.files import write_bytes
from cascade.tables import Table, shown

TRIAL: Final = ".trial"
"""Stands in the names of files that hold no result."""


class Result(Frozen):
    """A command's measurement.

    Attributes:
        kind: what was measured, such as "evaluate stage".
        trial: why this is no result; empty for a result.
        command: what measures it again.
        environment: date, commit, machine, its features, versions.
        settings: of the measurement.
        figures: what was found.
    """

    kind: str
    trial: str = ""
    command: str
    environment: dict[str, str]
    settings: dict[str, JsonValue]
    figures: dict[str, JsonValue]

    @classmethod
    def of(
        cls,
        kind: str,
        settings: Frozen,
        figures: dict[str, Any],
        *,
        packages: Sequence[str] = (),
        also: Mapping[str, str] | None = None,
        trial: str = "",
    ) -> Self:
        """Record what was found by this process.

        Args:
            also: what else is told of the environment.
            trial: why it is no result, such as "a dry run".
        """
        here = environment() | {package: _version(package) for package in packages}
        here |= also or {}
        return cls(
            kind=kind,
            trial=trial or not_reproducible(here["commit"]),
            command=shlex.join(["cascade", *sys.argv[1:]]),
            environment=here,
            settings=settings.model_dump(mode="json"),
            figures=figures,
        )

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a record."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise UserError(
                f"{path} holds no results that this version reads ({error.error_count()} "
                "mistakes); remove it and measure again."
            ) from None

    def path(self, stem: Path) -> Path:
        """Name the file: `STEM.json` of a result, `STEM.trial.json` of a trial."""
        # Not `with_suffix`: what follows a point in the name is not its ending.
        return Path(f"{stem}{TRIAL if self.trial else ''}.json")

    def write(self, stem: Path, tables: Sequence[Table] = ()) -> Path:
        """Write the record as JSON and its tables as Markdown beside it.

        Returns:
            The JSON file.
        """
        path = self.path(stem)
        write_bytes((self.model_dump_json(indent=1) + "\n").encode(), path)
        write_bytes(self.markdown(tables).encode(), Path(f"{str(path).removesuffix('.json')}.md"))
        return path

    def markdown(self, tables: Sequence[Table]) -> str:
        """Write tables under what they are, and where they were measured."""
        trial = f"**A trial and no result: {self.trial}.**\n\n" if self.trial else ""
        where = ", ".join(f"{key} {value}" for key, value in self.environment.items())
        body = "\n".join(table.markdown() for table in tables)
        return f"{trial}{body}\n`{self.command}`: {where}.\n"


def means(results: Sequence[Result]) -> list[Table]:
    """Return the mean of every score over results of one kind, ± its standard deviation.

    What is not known in some results is the mean over the others.
    """
    if len({result.kind for result in results}) != 1:
        raise UserError("These records are of different kinds; give those of one command.")
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for result in results:
        for part, name, key, value in _scores(result):
            found.setdefault(part, {}).setdefault(name, {}).setdefault(key, []).append(value)
    note = f"Means over {len(results)} records, ± their standard deviations."
    return [_means(part, of, note) for part, of in found.items()]


def _scores(result: Result) -> Iterator[tuple[str, str, str, float]]:
    """Yield the known scores of a record: a table, a line of it, a column, the figure."""
    scores = result.figures.get("scores")
    if not isinstance(scores, dict):
        raise UserError(f"A record of '{result.kind}' holds no scores; nothing to average.")
    # Of one stage the record has one table.
    stage = result.figures.get("stage")
    tables = {stage: scores} if isinstance(stage, str) else scores
    for part, lines in tables.items():
        for name, figures in lines.items() if isinstance(lines, dict) else ():
            for key, value in figures.items() if isinstance(figures, dict) else ():
                if isinstance(value, int | float):
                    yield part, name, key, float(value)


def _means(part: str, found: Mapping[str, Mapping[str, Sequence[float]]], note: str) -> Table:
    columns = list(dict.fromkeys(key for of in found.values() for key in of))
    rows = [[name, *(_spread(of.get(key, ())) for key in columns)] for name, of in found.items()]
    return Table([part, *columns], rows, note)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return shown(None)
    spread = f" ± {shown(statistics.stdev(values))}" if values[1:] else ""
    return f"{shown(statistics.fmean(values))}{spread}"


def not_reproducible(commit: str) -> str:
    """Say why nobody else can have this code; empty where everybody can."""
    if commit.endswith(DIRTY):
        return f"the code is not that of a commit ({commit}); commit it and measure again"
    if commit == UNKNOWN:
        return "the code's commit is not known; name it in DREAMCASCADE_COMMIT"
    return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
