"""What the documentation promises: files behind its links, commands with their flags, settings."""

import ast
import importlib
import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from cascade.cli.app import app
from cascade.config.base import apply_override, merged
from cascade.config.data import DataConfig
from cascade.config.dreambooth import DreamBoothConfig, Recipe
from cascade.config.folders import cascade_folder
from cascade.config.recipes import RECIPES, recipe_of
from cascade.config.serve import ServeConfig
from cascade.config.train import PretrainConfig
from cascade.text.files import EncoderFiles
from cascade.text.identifier import find_identifiers

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "kernels" / "README.md",
    ROOT / "export" / "README.md",
    *sorted((ROOT / "cascade" / "zoo").glob("*/README.md")),
]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
by_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def _blocks(page: Path, language: str) -> list[str]:
    return [text for name, text in FENCE.findall(page.read_text("utf-8")) if name == language]


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@by_page
def test_relative_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        if not re.match(r"[a-z]+:", target) and (
            not file.exists() or (anchor and anchor not in _anchors(file))
        ):
            broken.append(target)
    assert broken == []


def test_records_name_no_place_on_a_machine() -> None:
    absolute = re.compile(r'"(?:/|[A-Za-z]:[\\/])[^"]*"')
    records = sorted((ROOT / "tools" / "results").glob("*.json"))
    assert records
    assert {r.name: absolute.findall(r.read_text("utf-8")) for r in records} == {
        r.name: [] for r in records
    }


def _calls(page: Path) -> Iterator[list[str]]:
    """The words after `cascade` of every call in the page's plain blocks."""
    for block in _blocks(page, "") + _blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            call = re.match(r"(?:torchrun .* -m )?cascade (.*)", line)
            if call:
                yield shlex.split(call.group(1), comments=True)


@by_page
def test_commands_and_their_flags_exist(page: Path) -> None:
    for words in _calls(page):
        command, rest = typer.main.get_command(app), list(words)
        while isinstance(command, TyperGroup):
            command = command.commands[rest.pop(0)]
        known = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        assert {word for word in rest if word.startswith("-")} <= known, words


def test_the_training_page_has_a_file_that_works() -> None:
    page = ROOT / "docs" / "train.md"
    values: dict[str, Any] = {}
    for text in _blocks(page, "toml"):  # a whole file, then parts of others
        values = merged(values, tomllib.loads(text))
        PretrainConfig.parse(values, "docs/train.md")
    settings = re.findall(r"^\| `([a-z_.]+ = [^`]+)`", page.read_text("utf-8"), re.MULTILINE)
    assert settings
    for setting in settings:
        apply_override(values, setting.replace(" = ", "=", 1))
    PretrainConfig.parse(values, "the settings named in docs/train.md")


def test_the_personalising_page_has_a_file_that_works() -> None:
    (text,) = _blocks(ROOT / "docs" / "personalise.md", "toml")
    values = tomllib.loads(text)
    values["recipe"] = recipe_of("mini", values["recipe"])
    config = DreamBoothConfig.parse(values, "docs/personalise.md")
    assert config.recipe.base.steps != RECIPES["paper"].base.steps


@by_page
def test_python_in_the_pages_imports_what_there_is(page: Path) -> None:
    for block in _blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), block


def test_the_reference_names_what_there_is() -> None:
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    named = [
        line.removeprefix("::: ").strip()
        for page in pages
        for line in page.read_text("utf-8").splitlines()
        if line.startswith("::: ")
    ]
    assert len(named) > 20
    for name in named:
        module, _, last = name.rpartition(".")
        found = importlib.import_module(module)
        assert hasattr(found, last) or importlib.util.find_spec(name), name


def test_the_data_page_has_settings_that_work() -> None:
    blocks = _blocks(ROOT / "docs" / "data.md", "toml")
    assert len(blocks) == 2
    for text in blocks:
        DataConfig.parse(tomllib.loads(text)["data"], "docs/data.md")


def test_the_serving_page_has_a_file_that_works() -> None:
    (text,) = _blocks(ROOT / "docs" / "serve.md", "toml")
    config = ServeConfig.parse(tomllib.loads(text), "docs/serve.md")
    assert config.options["pets:my-dog"].steps == 12


def test_the_table_of_recipes_is_current() -> None:
    text = (ROOT / "docs" / "personalise.md").read_text("utf-8")
    columns = [
        {"recipe": f"`{name}`", **dict(_figures(recipe))} for name, recipe in RECIPES.items()
    ]
    for row in columns[0]:
        cells = " | ".join(column[row] for column in columns)
        assert f"| {row} | {cells} |" in text


def test_the_identifier_of_the_pages_is_the_one_that_is_picked() -> None:
    tokenizer = EncoderFiles.open(cascade_folder("mini") / "text").tokenizer
    (picked,) = find_identifiers(tokenizer, "lower", count=1, seed=0)
    named = {
        name
        for page in PAGES
        for name in re.findall(r"\ba (\w{1,3}) (?:cat|dog)\b", page.read_text("utf-8"))
    }
    assert named <= {picked, "red"}


def _figures(recipe: Recipe) -> Iterator[tuple[str, str]]:
    for part, run in (("base", recipe.base), ("super-resolution", recipe.super_resolution)):
        rate = Decimal(str(run.optimizer.learning_rate)).normalize()
        yield f"{part}: steps", str(run.steps)
        yield f"{part}: learning rate", f"{rate:e}"
        yield f"{part}: photos a step", str(run.batch_size)
    yield "base: steps of warm-up", str(recipe.base.optimizer.warmup_steps)
    schedules = {run.optimizer.schedule for run in (recipe.base, recipe.super_resolution)}
    yield "learning-rate schedule of both", " and ".join(sorted(schedules))
    yield "class images", str(recipe.prior.images)
    yield "class images without their prompt", f"{recipe.prior.caption_dropout:g}"
    weight = f"{recipe.masks.unmasked_weight:g}" if recipe.masks else "off"
    yield "masks: weight of the background", weight
    rows = recipe.scene_rows
    yield "photos' rows with the subject in scenes", f"{rows.share if rows else 0:g}"
    yield "their pixels of the scene count", f"{rows.scene_weight:g}" if rows else "-"
    yield "scenes drawn", f"{rows.images if rows else 0}"
