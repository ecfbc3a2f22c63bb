"""`cascade doctor`: what this machine has of what the project can use."""

from typing import Annotated

import typer

from cascade.errors import UserError


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Tell it as JSON, for programs.")] = False,
) -> None:
    """Show the software, devices, extras and folders of this machine, and what is amiss."""
    from rich.console import Console

    from cascade.dreambooth.class_images import default_folder
    from cascade.info.doctor import diagnose
    from cascade_kernels.launch_table import user_table

    found = diagnose(
        {"class images": default_folder(), "kernels' tables": user_table("any").parent}
    )
    if as_json:
        typer.echo(found.json())
    else:
        Console(markup=False, emoji=False, highlight=False).print(found.table())
    if found.faults:
        raise UserError(" ".join(found.faults))
