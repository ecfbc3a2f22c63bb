"""`cascade identifiers`: rare tokens that can name a subject."""

from typing import Annotated

import typer

from cascade.cli import values


def identifiers(
    cascade: Annotated[
        str,
        typer.Option(parser=values.cascade, metavar="FOLDER", help="A cascade folder, or 'mini'."),
    ] = "mini",
    count: Annotated[int, typer.Option(min=1, help="How many.")] = 10,
    seed: Annotated[int, typer.Option(help="The draw is a function of it.")] = 0,
) -> None:
    """Find rare tokens that survive the cascade's own text cleaning and tokenizer."""
    from cascade.config.folders import cascade_folder, read_manifest, read_stage_config
    from cascade.text.files import find_vocabulary
    from cascade.text.identifier import find_identifiers
    from cascade.text.tokenizer import Tokenizer

    folder = cascade_folder(cascade)
    manifest = read_manifest(folder)
    text = read_stage_config(folder / manifest.stages[0]).text
    tokenizer = Tokenizer(find_vocabulary(folder / manifest.text_encoder))
    for identifier in find_identifiers(tokenizer, text.cleaning, count, seed):
        typer.echo(identifier)
