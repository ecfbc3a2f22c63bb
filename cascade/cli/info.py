"""`cascade info`: what a cascade folder holds."""

from typing import Annotated

import typer


def info(
    path: Annotated[str, typer.Argument(help="A cascade folder, or 'mini'.")],
) -> None:
    """Show a cascade's stages, sizes, conventions, subject and licence."""
    from rich.console import Console

    from cascade.info import describe

    # A path or an identifier such as "[v]" is no markup.
    Console(markup=False, emoji=False, highlight=False).print(describe(path))
