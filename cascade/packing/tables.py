"""Pictures in Parquet files: their bytes, Hugging Face's {bytes, path}, or paths of files."""

from collections.abc import Iterator
from typing import Any, Final

from cascade.config.pack import PackConfig
from cascade.data.pack import import_parquet
from cascade.errors import UserError
from cascade.packing.files import Files, Unreadable
from cascade.packing.plan import Part, PlanWriter
from cascade.packing.records import MOST_BYTES, TOO_LARGE, Found, LeftOut

_IMAGES: Final = ("image", "img", "picture", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes")
_PATHS: Final = ("file_name", "image_path", "path", "file", *_IMAGES)
_DAMAGED: Final = "a Parquet file, or a part of it, that cannot be read"
_AT_ONCE: Final = 16  # rows in memory
_BUFFER: Final = 2**20  # bytes of a column that are read at once


def plan_table(file: Files, name: str, config: PackConfig, plan: PlanWriter) -> None:
    """Cut a Parquet file into ranges of its row groups."""
    parquet = import_parquet()
    import pyarrow

    try:
        with file.open() as stream, parquet.ParquetFile(stream) as table:
            image_column(table.schema_arrow, name, config)
            groups = [table.metadata.row_group(at) for at in range(table.num_row_groups)]
            sizes = [(group.num_rows, group.total_byte_size) for group in groups]
    except (pyarrow.ArrowException, OSError) as error:
        plan.leave(LeftOut(name, _DAMAGED, _first_line(error)))
        return
    except Unreadable as error:
        plan.leave(LeftOut(name, str(error)))
        return
    most_rows, most_bytes = config.shard_records, config.shard_size << 20
    first = rows = size = 0
    for at, (more_rows, more) in enumerate(sizes):
        if at > first and (rows + more_rows > most_rows or size + more > most_bytes):
            plan.part("table", file.address, name, first=first, last=at)
            first, rows, size = at, 0, 0
        rows, size = rows + more_rows, size + more
    if rows:
        plan.part("table", file.address, name, first=first, last=len(sizes))


def image_column(schema: Any, name: str, config: PackConfig) -> str:
    """Return the column of the pictures, the one asked for or the likeliest."""
    for asked in (config.image_column, config.caption_column):
        if asked is not None and asked not in schema.names:
            raise UserError(f"{name} has no column '{asked}'; it has {', '.join(schema.names)}.")
    if config.image_column is not None:
        return config.image_column
    holding = [field.name for field in schema if _holds_bytes(field.type)]
    named = [column for column in _IMAGES if column in holding]
    if named or len(holding) == 1:
        return (named or holding)[0]
    paths = [column for column in _PATHS if column in schema.names and not holding]
    if not paths:
        raise UserError(
            f"Which column of {name} holds the pictures is not clear; name it with "
            f"--image-column: it has {', '.join(schema.names)}."
        )
    return paths[0]


def read_table(part: Part, config: PackConfig) -> Iterator[Found | LeftOut]:
    """Yield the records of a range of row groups."""
    parquet = import_parquet()
    import pyarrow

    file = Files(part.address)
    # A group at a time: of one that is damaged, the rest is lost, and the next ones are not.
    for group in range(part.first, part.last):
        number = 0
        try:
            with file.open() as stream, parquet.ParquetFile(stream, buffer_size=_BUFFER) as table:
                column = image_column(table.schema_arrow, part.name, config)
                columns = [
                    field.name
                    for field in table.schema_arrow
                    if field.name == column or _is_said(field.type)
                ]
                before = sum(table.metadata.row_group(at).num_rows for at in range(group))
                for batch in table.iter_batches(_AT_ONCE, row_groups=[group], columns=columns):
                    for row in batch.to_pylist():
                        number += 1
                        yield _found(row, column, file, f"{part.name}#{before + number - 1}")
        except (pyarrow.ArrowException, OSError) as error:
            source = f"{part.name}, row group {group} from row {number}"
            yield LeftOut(source, _DAMAGED, _first_line(error))
        except Unreadable as error:
            yield LeftOut(part.name, str(error))


def _found(row: dict[str, Any], column: str, file: Files, source: str) -> Found | LeftOut:
    picture = row.pop(column)
    if isinstance(picture, dict):
        picture = picture.get("bytes") or picture.get("path")
    if isinstance(picture, str):
        return read_file(Files(file.address.rpartition("/")[0] or ".").inside(picture), source, row)
    if not isinstance(picture, bytes):
        return LeftOut(source, "no picture")
    if len(picture) > MOST_BYTES:
        return LeftOut(source, TOO_LARGE, f"{len(picture)} bytes")
    return Found(source, picture, (row,))


def read_file(file: Files, source: str, *rows: dict[str, Any], **more: Any) -> Found | LeftOut:
    """Return a picture that is a file."""
    try:
        return Found(source, file.read(), rows, **more)
    except Unreadable as error:
        return LeftOut(source, str(error))


def _holds_bytes(kind: Any) -> bool:
    import pyarrow.types as types

    if types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_said(kind: Any) -> bool:
    """Report whether a column may be captions, numbers, a licence, a source."""
    import pyarrow.types as types

    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
        return bool(types.is_string(kind) or types.is_large_string(kind))
    tests = (types.is_string, types.is_large_string, types.is_integer, types.is_floating)
    return any(test(kind) for test in (*tests, types.is_boolean))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")
