"""The common base of every setting, and how settings are read from TOML."""

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from cascade.errors import UserError
from cascade.files import read_text

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
"""The name of a stage, a model, a subject, an engine: one component of a path, and nothing else."""


class Frozen(BaseModel):
    """An immutable, fully typed group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, values: Mapping[str, Any], source: str) -> Self:
        """Build the settings from plain values.

        Args:
            values: nested mappings, as a TOML or JSON file holds them.
            source: where they come from, for the error's sentence.

        Raises:
            UserError: a key is unknown (the nearest known one is named) or a value is wrong.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(_sentence(cls, error, source)) from None

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


def _sentence(cls: type[BaseModel], error: ValidationError, source: str) -> str:
    problems = [_problem(cls, item) for item in error.errors(include_url=False)]
    return f"In {source}: " + "; ".join(problems) + "."


def _problem(cls: type[BaseModel], item: Any) -> str:
    # A union's member names (`function-after[...]`) stand in pydantic's location: leave them out.
    where = [str(part) for part in item["loc"] if not str(part).startswith("function-")]
    name = ".".join(where) or "the settings"
    if item["type"] != "extra_forbidden":
        return f"{name}: {item['msg'].removeprefix('Value error, ')}"
    known = sorted(_fields_at(cls, where[:-1]))
    nearest = difflib.get_close_matches(where[-1], known, n=1, cutoff=0.5)
    hint = f"did you mean '{nearest[0]}'?" if nearest else f"known are {', '.join(known)}"
    return f"'{name}' is not a setting; {hint}"


def _fields_at(cls: type[BaseModel], path: list[str]) -> set[str]:
    for name in path:
        inner = _model_of(cls.model_fields[name].annotation) if name in cls.model_fields else None
        if inner is None:
            break
        cls = inner
    return set(cls.model_fields)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """The settings class inside an annotation such as `X`, `X | None` or `tuple[X, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_of(inner)
        if found is not None:
            return found
    return None
