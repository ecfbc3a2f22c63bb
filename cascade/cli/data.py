"""`cascade data`: data sets of many pictures."""

import typer

from cascade.cli.data_info import check, info
from cascade.cli.data_pack import pack

data = typer.Typer(help="Data sets of many pictures.", no_args_is_help=True)
data.command()(pack)
data.command()(info)
data.command()(check)
