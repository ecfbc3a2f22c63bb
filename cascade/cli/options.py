"""Command-line options made from settings: name, type, range, help and default are the field's own.

A command is a function whose first parameter is `Options`; `with_options` gives it an option for
each of its flags, and `--config FILE` and `--set A.B=C`, by which every setting can be given.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Generic, TypeVar, Union, get_args, get_origin

import typer
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from cascade.cli import values
from cascade.config.base import Frozen, apply_override, model_of, read_toml

M = TypeVar("M", bound=Frozen)
Run = Callable[..., None]
_FAR: Final = 10**9

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        parser=values.path,
        metavar="FILE",
        help="Read settings from a TOML file; flags replace what it says.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=C",
        help="Replace any setting, written as in the file; may be repeated.",
    ),
]


@dataclass(frozen=True)
class Flag:
    """An option that stands for settings.

    Attributes:
        name: its Python name; `--max-train-steps` of `max_train_steps`.
        paths: the settings it replaces, "recipe.base.steps"; the first one tells type, range and
            help.
        panel: of the help.
        names: its spellings, where they are not the name's.
        parser: of text, where the field's type alone does not say how.
        metavar: what the help calls the value.
        kind: its type, where that is not the field's.
        shown: the default that the help tells, where that is not the field's.
        note: words that the help adds to the field's.
        help: the help, where it is another than the field's.
    """

    name: str
    paths: tuple[str, ...]
    panel: str | None = None
    names: tuple[str, ...] = ()
    parser: Callable[[str], Any] | None = None
    metavar: str | None = None
    kind: Any = None
    shown: str | None = None
    note: str = ""
    help: str = ""

    @property
    def spelt(self) -> str:
        """The first spelling, as people type it."""
        return (self.names or (f"--{self.name.replace('_', '-')}",))[0].partition("/")[0]


@dataclass(frozen=True)
class Options(Generic[M]):
    """The options that a command was given.

    Attributes:
        model: of the command's settings.
        flags: the command's, by name.
        values: those that were given, by the flag's name.
        file: the settings' file.
        overrides: of `--set`.
    """

    model: type[M]
    flags: Mapping[str, Flag]
    values: Mapping[str, Any]
    file: Path | None = None
    overrides: Sequence[str] = field(default=())

    @property
    def source(self) -> str:
        """Names where the settings come from, in the sentence of a mistake."""
        flags = "the command's flags"
        return flags if self.file is None else f"{self.file} and {flags}"

    @property
    def spelt(self) -> dict[str, str]:
        """Each setting that has a flag, and the flag as people type it."""
        return {path: flag.spelt for flag in self.flags.values() for path in flag.paths}

    def read_file(self) -> dict[str, Any]:
        """Read the settings' file; empty where there is none."""
        return {} if self.file is None else read_toml(self.file)

    def layered(self, start: Mapping[str, Any]) -> dict[str, Any]:
        """Nested values with those of the flags laid over them."""
        found = deepcopy(dict(start))
        for name, value in self.values.items():
            for path in self.flags[name].paths:
                set_at(found, path, value)
        return found

    def overridden(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """Nested values with what `--set` says."""
        changed = deepcopy(dict(found))
        for override in self.overrides:
            apply_override(changed, override)
        return changed

    def parse(self, found: Mapping[str, Any]) -> M:
        """Apply `--set` and check the values."""
        return self.model.parse(self.overridden(found), self.source, self.spelt)

    def settings(self) -> M:
        """Return the settings: the file's, over them the flags, then `--set`."""
        return self.parse(self.layered(self.read_file()))


def with_options(model: type[M], flags: Iterable[Flag]) -> Callable[[Run], Run]:
    """Make a command of a function of `Options`: its further parameters stay options too."""
    by_name = {flag.name: flag for flag in flags}

    def decorate(run: Run) -> Run:
        _, *own = inspect.signature(run).parameters.values()
        made = [_parameter(model, flag) for flag in by_name.values()]
        extra = [_keyword("config", ConfigFile), _keyword("override", Overrides)]

        @functools.wraps(run)
        def command(**given: Any) -> None:
            file, overrides = given.pop("config"), given.pop("override")
            flagged = {name: given.pop(name) for name in by_name}
            chosen = {name: value for name, value in flagged.items() if value is not None}
            run(Options(model, by_name, chosen, file, tuple(overrides or ())), **given)

        parameters = [*made, *(one.replace(kind=one.KEYWORD_ONLY) for one in own), *extra]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return decorate


def field_at(model: type[Frozen], path: str) -> FieldInfo:
    """Return the field of a nested setting."""
    first, _, rest = path.partition(".")
    found = model.model_fields[first]
    if not rest or rest.isdecimal():
        return found
    inner = model_of(found.annotation)
    assert inner is not None, path  # the program's own mistake
    return field_at(inner, rest)


def set_at(found: dict[str, Any], path: str, value: object) -> None:
    """Set a nested value, where there is a place for it: a part that is None is off."""
    first, _, rest = path.partition(".")
    if not rest:
        found[first] = value
        return
    inner = found.setdefault(first, {})
    if isinstance(inner, tuple | list) and rest.isdecimal():  # of the decays of AdamW
        found[first] = (*inner[: int(rest)], value, *inner[int(rest) + 1 :])
    elif isinstance(inner, dict):  # what else a file may have there is refused when it is parsed
        set_at(inner, rest, value)


def help_of(model: type[Frozen], flag: Flag) -> str:
    """Return a flag's help: the field's description and range."""
    found = field_at(model, flag.paths[0])
    words = flag.help or f"{found.description or ''}{flag.note}"
    return f"{words[:1].upper()}{words[1:].rstrip('.')}.{_range(found)}"


def _keyword(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _parameter(model: type[Frozen], flag: Flag) -> inspect.Parameter:
    found = field_at(model, flag.paths[0])
    kind = _plain(found.annotation) if flag.kind is None else flag.kind
    names = flag.names or (flag.spelt,)
    if kind is bool and not flag.names:
        names = (f"{flag.spelt}/--no-{flag.spelt[2:]}",)
    option = typer.Option(
        *names,
        help=help_of(model, flag),
        rich_help_panel=flag.panel,
        parser=flag.parser,
        metavar=flag.metavar or ("TEXT" if kind == list[str] else None),  # Typer says "list[str]"
        show_default=_default(found) if flag.shown is None else flag.shown,
    )
    return _keyword(flag.name, Annotated[kind | None, option])


def _plain(annotation: Any) -> Any:
    """Convert a field's type for Typer: no `None`, no range, a tuple as a list."""
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(one for one in get_args(annotation) if one is not NoneType)
    if get_origin(annotation) is Annotated:
        return _plain(get_args(annotation)[0])
    if get_origin(annotation) is tuple:
        return list[_plain(get_args(annotation)[0])]  # type: ignore[misc]
    return annotation


def _range(found: FieldInfo) -> str:
    """Format the range of a field for the help."""
    whole = _plain(found.annotation) is int
    low = high = None
    for limit in _limits(found):
        match limit:
            case Ge(ge=int() | float() as bound):
                low = bound, "<="
            case Gt(gt=int() | float() as bound):
                low = (bound + 1, "<=") if whole else (bound, "<")
            case Le(le=int() | float() as bound):
                high = bound, "<="
            case Lt(lt=int() | float() as bound):
                high = bound, "<"
    # Limits that nobody comes near tell nothing.
    below = f"{low[0]:g} {low[1]} " if low and abs(low[0]) < _FAR else ""
    above = f" {high[1]} {high[0]:g}" if high and abs(high[0]) < _FAR else ""
    return f" [{below}x{above}]" if below or above else ""


def _limits(found: FieldInfo) -> Iterator[Any]:
    """Return the limits of a field, also those of a type that may be None."""
    yield from found.metadata
    for part in get_args(found.annotation):
        for limit in getattr(part, "__metadata__", ()):
            yield from limit.metadata if isinstance(limit, FieldInfo) else (limit,)


def _default(found: FieldInfo) -> str | bool:
    """Format a field's default; False shows none."""
    value = None if found.is_required() else found.get_default(call_default_factory=True)
    if value is None or value == ():
        return False
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)
