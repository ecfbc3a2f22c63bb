"""What a table beside pictures says of them, as Hugging Face's imagefolder has it.

The rows lie in a database on disk while a folder is gone through: memory does not grow with them.
"""

import csv
import io
import json
import posixpath
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from cascade.data.pack import import_parquet
from cascade.errors import UserError
from cascade.packing.files import Files
from cascade.packing.plan import PlanWriter
from cascade.packing.records import LeftOut

METADATA: Final = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_FILE_NAME: Final = "file_name"


class Metadata:
    """Rows by the picture's file, a path from the table's folder.

    Args:
        table: one of `METADATA`.
        name: what people know it by.
        database: a file for the rows.
        plan: is told of lines that cannot be read.
        texts: columns that are no numbers, whatever a CSV has there.
    """

    def __init__(
        self, table: Files, name: str, database: Path, plan: PlanWriter, texts: frozenset[str]
    ) -> None:
        self._name, self._database = name, database
        database.unlink(missing_ok=True)
        self._rows = sqlite3.connect(database, isolation_level=None)
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute("PRAGMA synchronous = OFF")
        self._rows.execute("CREATE TABLE rows (file TEXT PRIMARY KEY, said TEXT) WITHOUT ROWID")
        self._rows.execute("BEGIN")
        for row in _rows(table, name, plan, texts):
            file = row.pop(_FILE_NAME, None)
            if not isinstance(file, str):
                plan.leave(LeftOut(name, f"a row without {_FILE_NAME}"))
                continue
            # Several rows of a picture have equally good captions.
            self._rows.execute(
                "INSERT INTO rows VALUES (?, ?) ON CONFLICT (file) "
                "DO UPDATE SET said = said || char(10) || excluded.said",
                (_clean(posixpath.normpath(file)), json.dumps(row)),
            )

    def take(self, file: str) -> list[dict[str, Any]]:
        """Return the rows of a picture, once."""
        file = _clean(file)
        found = self._rows.execute("SELECT said FROM rows WHERE file = ?", (file,)).fetchone()
        if found is None:
            return []
        self._rows.execute("DELETE FROM rows WHERE file = ?", (file,))
        return [json.loads(line) for line in str(found[0]).split("\n")]

    def close(self, plan: PlanWriter) -> None:
        """Leave out the rows whose picture is not there."""
        for (file,) in self._rows.execute("SELECT file FROM rows ORDER BY file"):
            plan.leave(LeftOut(f"{self._name}: {file}", "its file is not there"))
        self._rows.close()
        self._database.unlink()


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """Return what of a row may be a caption, a number, a licence, a source."""
    return {
        str(name): value
        for name, value in row.items()
        if isinstance(value, str | int | float)
        or (isinstance(value, list) and all(isinstance(one, str) for one in value))
    }


def _clean(text: str) -> str:
    """Return a text that a database takes: a file's name may be no UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _rows(
    table: Files, name: str, plan: PlanWriter, texts: frozenset[str]
) -> Iterator[dict[str, Any]]:
    if table.name.endswith(".parquet"):
        yield from _of_parquet(table, name)
        return
    with table.open() as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as lines:
        try:
            if table.name.endswith(".csv"):
                yield from _of_csv(lines, name, texts)
                return
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if isinstance(row, dict):
                    yield plain(row)
                else:
                    plan.leave(LeftOut(f"{name}:{number}", "a line that is no JSON object"))
        except UnicodeDecodeError as error:
            raise UserError(f"{name} is not UTF-8 text ({error}); save it as UTF-8.") from None


def _of_csv(lines: Iterable[str], name: str, texts: frozenset[str]) -> Iterator[dict[str, Any]]:
    reader = csv.DictReader(lines)
    _require_file_name(reader.fieldnames or (), name)
    try:
        for row in reader:
            yield {
                key: (value or "") if key in texts or key == _FILE_NAME else _number(value)
                for key, value in row.items()
                if isinstance(key, str)
            }
    except csv.Error as error:
        raise UserError(f"{name} is no CSV ({error}); mend it or use metadata.jsonl.") from None


def _of_parquet(table: Files, name: str) -> Iterator[dict[str, Any]]:
    parquet = import_parquet()
    import pyarrow

    try:
        with table.open() as stream, parquet.ParquetFile(stream) as file:
            _require_file_name(file.schema_arrow.names, name)
            for batch in file.iter_batches(1024):
                yield from map(plain, batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as error:
        told = str(error).splitlines()[0]
        raise UserError(f"{name} cannot be read ({told}); copy it again.") from None


def _require_file_name(columns: Any, name: str) -> None:
    if _FILE_NAME not in columns:
        raise UserError(
            f"{name} has no column {_FILE_NAME}; name in it each row's picture, from the folder "
            f"that the table is in. It has {', '.join(columns) or 'no columns'}."
        )


def _number(text: Any) -> Any:
    for kind in (int, float):
        with suppress(TypeError, ValueError):
            return kind(text)
    return text or ""
