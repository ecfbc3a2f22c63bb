"""The demonstration: its photos, and flags that the commands know."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer
from PIL import Image
from typer.core import TyperGroup

from cascade.cli.app import app
from cascade.config.recipes import RECIPES
from cascade.data.images import read_photos
from cascade.errors import UserError


@pytest.fixture
def demo(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module as `python tools/demo.py` sees it."""
    pytest.importorskip("skimage", reason="extra 'evaluate' not installed")
    monkeypatch.syspath_prepend(str(repository / "tools"))
    yield importlib.import_module("demo")
    sys.modules.pop("demo", None)


def test_it_brings_photos_or_takes_a_folder_s(
    demo: ModuleType, photos: Path, tmp_path: Path
) -> None:
    for shipped in ("cat", "cup"):
        assert len(read_photos(demo.photos_of(shipped, None, tmp_path / shipped)).paths) == 4
    assert demo.photos_of(str(photos), "dog", tmp_path) == photos
    with pytest.raises(UserError, match="Say with --class what the photos in mine show"):
        demo.photos_of("mine", None, tmp_path)
    with pytest.raises(UserError, match="give the folder with --subject"):
        demo.photos_of("cat", "dog", tmp_path)


def test_photos_are_copied_with_all_that_says_where_the_subject_is(
    demo: ModuleType, photos: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    Image.new("RGBA", (64, 64), (200, 0, 0, 90)).save(mine / "a.png")
    Image.new("RGB", (64, 64)).save(mine / "b.png")
    Image.new("L", (64, 64), 255).save(mine / "b-masklabel.png")
    copies, held_out = demo.set_apart(mine, tmp_path / "copies")
    assert held_out is None  # of so few none is kept out
    assert {path.name for path in copies.iterdir()} == {"a.png", "b.png", "b-masklabel.png"}
    assert all(path.read_bytes() == (mine / path.name).read_bytes() for path in copies.iterdir())
    copies, held_out = demo.set_apart(photos, tmp_path / "copies")
    assert {path.name for path in copies.iterdir()} == {"0.png", "1.png", "2.png"}
    assert held_out == photos / "3.png"


def test_its_commands_have_these_flags(
    demo: ModuleType, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, ...]] = []

    def run(*command: str) -> None:
        ran.append(command)
        if "--output-dir" in command:
            Path(command[command.index("--output-dir") + 1]).mkdir()

    monkeypatch.setattr(demo, "run", run)
    demo.main(str(photos), "dog", tmp_path, "mini")
    assert [command[0] for command in ran] == ["dreambooth"] * 3 + ["evaluate"]
    for command in ran:
        group, rest = typer.main.get_command(app), list(command)
        while isinstance(group, TyperGroup):
            group = group.commands[rest.pop(0)]
        with group.make_context("demo", rest):  # parses, and runs nothing
            pass
    half = str(round(RECIPES["mini"].base.steps / 2))
    assert [half in command for command in ran] == [True, True, False, False]


def test_plain_dreambooth_has_the_class_alone_as_often_as_the_recipe(demo: ModuleType) -> None:
    flags = demo.kinds("mini")["plain-dreambooth"]
    recipe = RECIPES["mini"]
    assert recipe.prior is not None
    prompts = recipe.class_prompts("a cat", recipe.prior.variations)
    shown = [prompts[number % len(prompts)] for number in range(recipe.prior.images)]
    images = int(flags[flags.index("--num-class-images") + 1])
    assert images == shown.count("a cat")
