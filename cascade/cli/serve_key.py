"""`cascade serve-key`: a client's key for `cascade serve`."""

import hashlib
import json
import os
import secrets
import tomllib
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from filelock import FileLock

from cascade.cli import values
from cascade.cli.options import Flag, Options, with_options
from cascade.config.serve import KeyConfig, KeyOptions, KeysConfig
from cascade.errors import UserError
from cascade.files import read_text, replacing, require_writable

PREFIX: Final = "dc-"
"""Begins every key, so that people and scanners of secrets know one when they see it."""

FLAGS = (
    Flag("models", ("models",), parser=values.name, metavar="NAME", shown="*"),
    Flag("requests_per_minute", ("requests_per_minute",)),
    Flag("pictures_per_day", ("pictures_per_day",)),
    Flag("admin", ("admin",), names=("--admin",)),
)


@with_options(KeyOptions, FLAGS)
def serve_key(
    options: Options[KeyOptions],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The client.")],
    keys: Annotated[
        Path | None,
        typer.Option(
            parser=values.path,
            metavar="FILE",
            help="Add its entry to this file, which is made if need be; without it the entry is "
            "shown.",
        ),
    ] = None,
) -> None:
    """Make a client's key, and show it this once.

    The file that 'cascade serve --keys' reads has its hash alone. Standard output is the key and
    nothing else.
    """
    key = PREFIX + secrets.token_urlsafe(32)
    asked = options.settings().model_dump(exclude_defaults=True)
    told = {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest(), **asked}
    KeyConfig.parse(told, "the command's arguments")
    entry = _entry(told)
    if keys is None:
        typer.echo(entry, err=True)
    else:
        _add(name, entry, keys)
        typer.echo(f"{keys} has the entry of '{name}'; its key, which is shown once:", err=True)
    typer.echo(key)


def _entry(values: dict[str, Any]) -> str:
    """Write the table of a key as TOML has it; of these values JSON's words are TOML's."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
    return "\n".join(["[[keys]]", *lines, ""])


def _add(name: str, entry: str, path: Path) -> None:
    """Append an entry to a file that only its owner may read; what stands there stays."""
    file = path.resolve()
    require_writable(file.parent)
    with FileLock(file.with_name(f".{file.name}.lock")):
        before = read_text(file) if file.exists() else ""
        if before.strip():
            known = KeysConfig.read(file).keys
            if name in [key.name for key in known]:
                raise UserError(
                    f"'{name}' has a key in {path}; take another name, or delete its entry there."
                )
            before = f"{before.rstrip()}\n\n"
        after = before + entry
        try:
            tomllib.loads(after)
        except tomllib.TOMLDecodeError as error:
            raise UserError(
                f"{path} takes no further entry ({error}); write each key as a table [[keys]]."
            ) from None
        with replacing(file) as partial:
            partial.touch(mode=0o600)
            with partial.open("w", encoding="utf-8") as written:
                written.write(after)
                written.flush()
                os.fsync(written.fileno())
