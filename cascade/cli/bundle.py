"""The flags of a bundle: which fine-tune, and how its engines run."""

from pathlib import Path
from typing import Annotated, Final

import typer

from cascade.cli import values
from cascade.cli.options import Flag
from cascade.config.engine import BundleOptions
from cascade.errors import UserError

_PANEL: Final = "Bundles"
_ENGINE_FLAGS: Final = (
    Flag("subject", ("engines.subject",), _PANEL, parser=values.name, metavar="NAME"),
    Flag("engine", ("engines.engine",), _PANEL, parser=values.name, metavar="NAME"),
    Flag("threads", ("engines.threads",), _PANEL),
    Flag("spinning", ("engines.spinning",), _PANEL),
    Flag("compile", ("engines.compiled",), _PANEL, names=("--compile",)),
    Flag("max_memory", ("engines.max_memory",), _PANEL),
)
BUNDLE_FLAGS: Final = (
    Flag("bundle", ("bundle",), _PANEL, parser=values.folder, metavar="FOLDER"),
    *_ENGINE_FLAGS,
)

BundleArgument = Annotated[
    Path | None,
    typer.Argument(parser=values.folder, metavar="BUNDLE", help="An exported cascade."),
]
BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", parser=values.folder, metavar="FOLDER", help="The same as BUNDLE."),
]


def refuse_without_bundle(options: BundleOptions) -> None:
    """Refuse flags that only a bundle has a use for.

    Raises:
        UserError: one is given.
    """
    for flag in _ENGINE_FLAGS:
        name = flag.paths[0].removeprefix("engines.")
        if getattr(options, name) != BundleOptions.model_fields[name].default:
            spelt = flag.spelt if name != "spinning" else "--no-spinning"
            raise UserError(f"{spelt} belongs to a bundle; give --bundle too.")
