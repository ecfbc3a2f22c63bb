"""`cascade serve`: cascades behind the OpenAI Images API."""

import re
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cascade.cli import values
from cascade.cli.console import Quiet, Status
from cascade.cli.options import Flag, Options, with_options
from cascade.cli.shared import TEXT_FLAGS
from cascade.config.base import NAME
from cascade.config.engine import BundleOptions
from cascade.config.folders import BUNDLED, cascade_folder, read_manifest
from cascade.config.serve import KeysConfig, ServeConfig, ServerEngines
from cascade.errors import UserError
from cascade.plugins import LIBRARIES, opener
from cascade.progress import spell, warn

if TYPE_CHECKING:
    from cascade.serve.library import Library

_BUNDLES, _ACCESS, _LOAD = "Bundles", "Access", "Load"

FLAGS = (
    Flag("cascade", ("cascades",), parser=values.named_cascade, metavar="[NAME=]FOLDER"),
    Flag("bundle", ("bundles",), parser=values.named_folder, metavar="[NAME=]FOLDER"),
    Flag("host", ("host",), parser=values.name),
    Flag("port", ("port",)),
    Flag("device", ("device",)),
    Flag("threads", ("engines.threads",)),
    Flag("max_memory", ("max_memory",)),
    Flag("warm_up", ("warm_up",)),
    Flag("reload", ("reload",)),
    Flag("drain", ("drain",)),
    Flag("traces", ("traces",), parser=values.name, metavar="URL"),
    *TEXT_FLAGS,
    Flag("engine", ("engine",), _BUNDLES, parser=values.name, metavar="NAME"),
    Flag("spinning", ("engines.spinning",), _BUNDLES),
    Flag("compile", ("engines.compiled",), _BUNDLES, names=("--compile",)),
    Flag("keys", ("keys",), _ACCESS, parser=values.existing, metavar="FILE"),
    Flag("hosts", ("hosts",), _ACCESS, parser=values.name, metavar="NAME"),
    Flag("origins", ("origins",), _ACCESS, parser=values.name, metavar="ORIGIN"),
    Flag("batching", ("batch.mode",), _LOAD),
    Flag("rows", ("batch.rows",), _LOAD),
    Flag("at_once", ("batch.at_once",), _LOAD),
    Flag("calls", ("batch.calls",), _LOAD),
    Flag("waiting", ("limits.waiting",), _LOAD),
)


@dataclass(frozen=True)
class Source:
    """A folder that models come from.

    Attributes:
        opener: of its plugin; None for a cascade's own folder.
    """

    folder: Path
    opener: EntryPoint | None


@with_options(ServeConfig, FLAGS)
def serve(options: Options[ServeConfig], quiet: Quiet = False) -> None:
    """Serve cascades and bundles to clients of the OpenAI Images API.

    SIGTERM and Ctrl-C end it when what was asked is drawn; given twice, at once.
    """
    config = options.settings()
    sources = _sources(config)
    _check_engines(config, sources)
    if config.keys is not None:
        _check_keys(config.keys)
    try:
        from cascade.serve.app import create_app
        from cascade.serve.logs import write_lines
        from cascade.serve.metrics import Metrics
        from cascade.serve.process import listening, run, url
    except ModuleNotFoundError as error:
        if str(error.name).startswith("cascade"):
            raise
        raise UserError(
            f"Serving needs {error.name}; run: pip install 'dreamcascade[serve]'."
        ) from None
    from cascade.serve.models import Models
    from cascade.serve.scheduler import Scheduler

    with listening(config.host, config.port) as listener:
        room = None if config.max_memory is None else config.max_memory * 10**6
        models = Models(_libraries(config, sources), config.options, room, config.texts)
        metrics = Metrics()
        scheduler = Scheduler(models, config.batch, config.limits, metrics)
        app = create_app(models, scheduler, config, metrics)
        write_lines(sys.stderr, quiet)
        told = f"Serving {', '.join(models.names())} at {url(listener)}"
        clean = run(app, listener, scheduler, config, told)
    if not clean:
        warn(f"Not all was drawn within {spell(config.drain)}; what was left is cancelled.")
        raise typer.Exit(Status.TIME_IS_UP)


def _sources(config: ServeConfig) -> dict[str, Source]:
    """Return where models come from, by name."""
    bundles = [(text, True) for text in config.bundles]
    cascades = [(text, False) for text in config.cascades or (() if bundles else BUNDLED[:1])]
    found: dict[str, Source] = {}
    for text, is_bundle in (*cascades, *bundles):
        given, place = values.named(text)
        folder = values.folder(place) if is_bundle else cascade_folder(place)
        own = place if place in BUNDLED else folder.resolve().name
        name = own if given is None else given
        if not re.fullmatch(NAME, name):
            raise UserError(f"'{name}' is no name of a model; call it as in NAME={place}.")
        if name in found:
            raise UserError(
                f"{found[name].folder} and {folder} are both called '{name}'; call one of them "
                f"otherwise, as in NAME={place}."
            )
        found[name] = Source(folder, _opener(folder, is_bundle))
    return found


def _opener(folder: Path, is_bundle: bool) -> EntryPoint | None:
    """Return what opens a bundle; None for a cascade's own folder."""
    point = opener(folder, LIBRARIES)
    if point is None and is_bundle:
        raise UserError(
            f"{folder} is no bundle; make one with 'cascade export', or give it as --cascade."
        )
    if point is None:
        read_manifest(folder)
    return point


def _check_engines(config: ServeConfig, sources: Mapping[str, Source]) -> None:
    """Refuse flags that only a bundle has a use for."""
    if any(source.opener for source in sources.values()):
        return
    own = ServerEngines()
    for flag, changed in (
        ("--engine", config.engine is not None),
        ("--spinning", config.engines.spinning != own.spinning),
        ("--compile", config.engines.compiled != own.compiled),
    ):
        if changed:
            raise UserError(f"{flag} belongs to a bundle; give --bundle too.")


def _check_keys(keys: Path) -> None:
    """Read the keys before any work, and say so where everybody could."""
    KeysConfig.read(keys)
    if keys.stat().st_mode & stat.S_IROTH:
        warn(f"Everybody on this machine may read {keys}; run: chmod 600 {keys}")


def _libraries(config: ServeConfig, sources: Mapping[str, Source]) -> "dict[str, Library]":
    """Open what models come from; no weights are read yet."""
    import torch

    from cascade.environment import usable_device
    from cascade.serve.folder import CascadeFolder

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = None if config.device is None else usable_device(config.device)
    text = config.embeddings, config.encoder_mode
    options = config.engines.model_dump() | {"threads": config.threads}
    engines = BundleOptions(engine=config.engine, **options)
    found: dict[str, Library] = {}
    for name, source in sources.items():
        if source.opener is None:
            found[name] = CascadeFolder(source.folder, device, *text)
        else:
            found[name] = source.opener.load()(source.folder, device, *text, engines)
    return found
