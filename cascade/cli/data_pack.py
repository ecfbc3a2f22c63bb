"""`cascade data pack`: captioned pictures become shards."""

from typing import Annotated

import typer

from cascade.cli import values
from cascade.cli.console import Quiet, resumable
from cascade.cli.options import Flag, Options, with_options
from cascade.config.pack import PackConfig

_WHAT, _SHARDS = "Which pictures", "Shards"

FLAGS = (
    Flag("output", ("output",), names=values.OUTPUT, parser=values.writable, metavar="FOLDER"),
    Flag("image_column", ("image_column",), metavar="NAME"),
    Flag("caption_column", ("caption_column",), metavar="NAME"),
    Flag("class_names", ("class_names",), parser=values.existing, metavar="FILE"),
    Flag("class_caption", ("class_caption",), metavar="TEXT"),
    Flag("least_side", ("least_side",), _WHAT),
    Flag("most_aspect", ("most_aspect",), _WHAT),
    Flag("where", ("where",), _WHAT, metavar="CONDITION"),
    Flag("duplicates", ("duplicates",), _WHAT, metavar="BITS"),
    Flag("held_out", ("held_out",), _WHAT, metavar="SHARE"),
    Flag("shrink", ("shrink",), _SHARDS, metavar="SIDE"),
    Flag("shard_size", ("shard_size",), _SHARDS),
    Flag("shard_records", ("shard_records",), _SHARDS),
    Flag("by_aspect", ("by_aspect",), _SHARDS, names=("--by-aspect",)),
    Flag("workers", ("workers",)),
)


@with_options(PackConfig, FLAGS)
def pack(
    options: Options[PackConfig],
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            parser=values.name,
            metavar="SOURCE",
            help="A folder of pictures, a webdataset tar, a Parquet file, an array data set, a "
            "pack, or a folder of them; a path or an address such as s3://bucket/data.",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Pack captioned pictures into shards that training streams.

    The same command goes on after an interruption. Every picture is decoded once as proof; what is
    left out is told with the reason.
    """
    found = options.layered(options.read_file())
    config = options.parse({**found, "sources": sources} if sources else found)

    from cascade.packing.run import pack as run

    with resumable():
        run(config)
