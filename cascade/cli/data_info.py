"""`cascade data info` and `cascade data check`: what a data set holds, and whether it is whole."""

from typing import Annotated, Final

import typer

from cascade.cli import values
from cascade.cli.console import Quiet
from cascade.cli.options import Flag, Options, with_options
from cascade.config.look import CheckConfig, InfoConfig
from cascade.errors import UserError
from cascade.files import require_writable

_SHEET: Final = "Sheet"

INFO_FLAGS: Final = (
    Flag("sheet", ("sheet",), _SHEET, parser=values.path, metavar="FILE"),
    Flag("pictures", ("pictures",), _SHEET),
    Flag("seed", ("seed",), _SHEET),
)
CHECK_FLAGS: Final = (
    Flag("quick", ("quick",), names=("--quick",)),
    Flag("sample", ("sample",)),
    Flag("seed", ("seed",)),
    Flag("workers", ("workers",)),
)


@with_options(InfoConfig, INFO_FLAGS)
def info(
    options: Options[InfoConfig],
    place: Annotated[
        str,
        typer.Argument(
            parser=values.name,
            metavar="PLACE",
            help="A pack, as a folder or an address such as s3://bucket/data; or a folder with "
            "images.npy and captions.jsonl.",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Tell it as JSON, for programs.")] = False,
) -> None:
    """Show a data set's pictures, sizes, captions, licences and sources, and some of them."""
    config = options.settings()
    if config.sheet is not None:
        require_writable(config.sheet.parent)

    from rich.console import Console

    from cascade.data.images import write_png
    from cascade.packing.looking import describe_data
    from cascade.packing.sheet import contact_sheet
    from cascade.packing.shown import described

    found = describe_data(place)
    if as_json:
        typer.echo(found.json())
    else:
        # A path or a caption such as "[v]" is no markup.
        Console(markup=False, emoji=False, highlight=False).print(described(found))
    if config.sheet is not None:
        write_png(contact_sheet(place, config.pictures, config.seed), config.sheet)


@with_options(CheckConfig, CHECK_FLAGS)
def check(
    options: Options[CheckConfig],
    place: Annotated[
        str,
        typer.Argument(
            parser=values.name,
            metavar="PLACE",
            help="A pack, as a folder or an address such as s3://bucket/data.",
        ),
    ],
    quiet: Quiet = False,
) -> None:
    """Compare a pack with its checksums, decode its pictures, and name every record at fault."""
    config = options.settings()

    from cascade.packing.checking import check_pack
    from cascade.progress import say

    found = check_pack(place, config)
    for fault in found.faults:
        typer.echo(str(fault))
    if found.faults:
        records = sum(bool(fault.key) for fault in found.faults)
        files = len(found.faults) - records
        raise UserError(
            f"{place} is not whole: {records} of {found.records} records and {files} of its files "
            "are at fault; copy the shards named above again, or pack them anew."
        )
    looked = "files compared" if config.quick else f"{found.decoded} of them decoded"
    say(f"{place} is whole: {found.records} records, {looked}.")
