"""The common base of every setting, and how settings are read from TOML."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from cascade.errors import UserError
from cascade.files import read_text

NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

Name = Annotated[str, StringConstraints(pattern=NAME, max_length=100)]
"""The name of a stage, a model, a subject, an engine: one component of a path, and nothing else."""

MOST_THREADS: Final = 512
"""Of an engine on a CPU: more take longer to start than to draw."""

# Ranges of numbers: what is outside is a slip of the hand, and would hang or overflow much later.
# Strict, so that neither "3" nor `true` is a number.
Count = Annotated[int, Field(strict=True, gt=0, le=10**9)]
"""Of steps."""

Rows = Annotated[int, Field(strict=True, gt=0, le=2**16)]
"""Pictures worked on at once, or in one optimizer step."""

Pictures = Annotated[int, Field(strict=True, gt=0, le=10**6)]
"""Pictures drawn."""

MOST_DRAWN: Final = 100_000
"""Pictures of one call: no one looks through a folder of more, and tools no longer list it."""

Drawn = Annotated[int, Field(strict=True, gt=0, le=MOST_DRAWN)]
"""Pictures of one call."""

MOST_AT_ONCE: Final = 1024
"""Pictures of one batch: 64 pixels wide, they keep any device busy, and memory grows with them."""

AtOnce = Annotated[int, Field(strict=True, gt=0, le=MOST_AT_ONCE)]
"""Pictures of one batch."""

Looks = Annotated[int, Field(strict=True, ge=0, le=10**3)]
"""Pictures drawn of a prompt for people to look at; 0 is none."""

Side = Annotated[int, Field(strict=True, gt=0, le=2**14)]
"""Of a picture, pixels."""

MOST_SIDE: Final = 4096
"""Pixels: one step from the published cascades' 1024, sixteen times their memory and time."""

Size = Annotated[int, Field(strict=True, gt=0, le=MOST_SIDE)]
"""Of a picture that is drawn, pixels."""

Width = Annotated[int, Field(strict=True, gt=0, le=2**14)]
"""Channels of a layer."""

Seed = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**64)]

Share = Annotated[float, Field(strict=True, ge=0.0, le=1.0)]

Factor = Annotated[float, Field(strict=True, ge=0.0, le=1000.0)]

Texts = Annotated[
    tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)
]
"""One text, or several."""

Positive = Annotated[float, Field(strict=True, gt=0.0, le=1000.0)]
"""A factor that may not be 0."""


_MEMBERS = ("function-", "literal[", "lax-or-strict[")
_SUBJECT = re.compile(r"^(String|Tuple) should")
_SHOWN = 60  # characters of a wrong value


class Frozen(BaseModel):
    """An immutable, fully typed group of settings that refuses keys it does not know."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        revalidate_instances="always",  # `model_copy` changes values unchecked
    )

    def __init__(self, **values: Any) -> None:
        """Build the settings from keywords.

        Raises:
            UserError: as `parse`.
        """
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise UserError(_sentence(type(self), error, type(self).__name__, {})) from None

    # pydantic's own mark of an `__init__` that does no more than validate: groups inside of others
    # are validated without it, so that a fault is told with its whole place.
    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]

    @classmethod
    def parse(
        cls, values: Mapping[str, Any], source: str, flags: Mapping[str, str] | None = None
    ) -> Self:
        """Build the settings from plain values.

        Args:
            source: where they come from, for the error's sentence.
            flags: setting, such as "base.steps", to the command's flag that gave it.

        Raises:
            UserError: a key is unknown (the nearest known one is named) or a value is wrong.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(_sentence(cls, error, source, flags or {})) from None

    @classmethod
    def read(cls, path: Path, overrides: Iterable[str] = ()) -> Self:
        """Read the settings from a TOML file and apply overrides of the form `a.b=value`.

        Raises:
            UserError: the file is missing or is not TOML, an override is malformed, or as `parse`.
        """
        values = read_toml(path)
        for override in overrides:
            apply_override(values, override)
        return cls.parse(values, str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file holds.

    Raises:
        UserError: the file is missing or malformed.
    """
    if not path.is_file():
        raise UserError(f"There is no configuration file {path}; check the path.")
    try:
        return tomllib.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # a number of 5000 digits is a ValueError too
        raise UserError(f"{path} is not valid TOML ({error}); mend that line.") from None


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set one nested value in place from `a.b=value`; the value is written as in TOML.

    A value that is not TOML on its own (`adamw`, `runs/x`) is taken as a string.

    Raises:
        UserError: the override has no `=`, or goes through something that is not a table.
    """
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UserError(f"--set {override} has no 'key=value' form; write for instance a.b=3.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *path, last = key.strip().split(".")
    for name in path:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise UserError(f"--set {override}: '{name}' is a single value and holds no settings.")
    values[last] = value


def merged(start: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with others laid over them."""
    found = deepcopy(dict(start))
    for name, value in over.items():
        before = found.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            value = merged(before, value)
        found[name] = value
    return found


def _sentence(
    cls: type[BaseModel], error: ValidationError, source: str, flags: Mapping[str, str]
) -> str:
    items = error.errors(include_url=False)
    # A list whose entry is wrong is told to be too short as well: only the entry is at fault.
    outer = {item["loc"][:end] for item in items for end in range(len(item["loc"]))}
    problems = [_problem(cls, item, flags) for item in items if item["loc"] not in outer]
    # One flag may stand for several settings: its fault is told once.
    once: dict[tuple[str, str], str] = {}
    for flag, name, fault in problems:
        once.setdefault((flag or name, fault), f"{name}: {fault}" if name else fault)
    return f"In {source}: " + "; ".join(once.values()) + "."


def _problem(cls: type[BaseModel], item: Any, flags: Mapping[str, str]) -> tuple[str, str, str]:
    """Name the flag, if there is one, the setting, and what is wrong with it."""
    # A union's member names (`function-after[...]`) stand in pydantic's location: leave them out.
    where = [str(part) for part in item["loc"] if not str(part).startswith(_MEMBERS)]
    paths = (".".join(where[:end]) for end in range(len(where), 0, -1))
    flag = next((flags[path] for path in paths if path in flags), "")
    name = ".".join(where)
    named = f"{flag} ({name})" if flag else name
    if item["type"] != "extra_forbidden":
        return flag, named, _fault(item)
    known = sorted(_fields_at(cls, where[:-1]))
    nearest = difflib.get_close_matches(where[-1], known, n=1, cutoff=0.5)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"known are {', '.join(known)}"
    return "", "", f"'{name}' is not a setting ({hint})"


def _fault(item: Any) -> str:
    """Say what is wrong with a value, in words that follow the setting's name."""
    held = _shown(item["input"])
    match item["type"]:
        case "missing":
            return "is missing"
        case "path_type":
            return f"must be a path, not {held}"
        case "tuple_type":
            return f"must be a list, not {held}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return f"must be a table of settings, not {held}"
        case "string_pattern_mismatch":
            return f"must be one plain name of letters, digits, '-' and '_', not {held}"
    message = str(item["msg"]).removeprefix("Value error, ").replace(" after validation", "")
    if not message.startswith("Input should be"):
        return _SUBJECT.sub("must", message)
    return f"must{message.removeprefix('Input should')}, not {held}"


def _shown(value: object) -> str:
    """Format a wrong value for a person, cut short."""
    if isinstance(value, Mapping):
        return "a table"
    try:
        text = repr(value)
    except ValueError:  # a number of more digits than Python writes
        return "so large a number"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _fields_at(cls: type[BaseModel], path: list[str]) -> set[str]:
    for name in path:
        inner = model_of(cls.model_fields[name].annotation) if name in cls.model_fields else None
        if inner is None:
            break
        cls = inner
    return set(cls.model_fields)


def model_of(annotation: Any) -> type[Frozen] | None:
    """Return the settings class inside an annotation: `X`, `X | None` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = model_of(inner)
        if found is not None:
            return found
    return None
