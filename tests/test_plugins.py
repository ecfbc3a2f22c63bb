"""Commands and folders that other packages bring, in a checkout that was never installed too."""

import json
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from cascade import plugins
from cascade.plugins import COMMANDS, OPENERS, opener, points

PLAIN = """
import importlib.metadata, json, sys
importlib.metadata.entry_points = lambda group: []
from cascade.cli.app import app
made = [one.name for one in app.registered_commands]
for group in app.registered_groups:
    made += [f"{group.name} {one.name}" for one in group.typer_instance.registered_commands]
print(json.dumps([made, "torch" in sys.modules]))
"""


def test_a_checkout_that_was_never_installed_has_every_command() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLAIN], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names, torch = json.loads(done.stdout)
    assert not torch
    assert {"export", "export-triton", "bench stages"} <= set(points(COMMANDS)) <= set(names)


@pytest.mark.usefixtures("absent")
def test_a_package_that_is_not_there_brings_nothing() -> None:
    assert "export" not in points(COMMANDS)
    assert points(OPENERS) == {}


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The export's package is not on the path."""
    found = plugins.find_spec
    monkeypatch.setattr(
        plugins, "find_spec", lambda name: None if name == "cascade_export" else found(name)
    )


def test_installed_packages_bring_theirs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    theirs = EntryPoint("notes.txt", "pathlib:Path", OPENERS)
    missing = EntryPoint("other.txt", "no_such_package:open", OPENERS)
    monkeypatch.setattr(plugins, "entry_points", lambda group: [theirs, missing])
    assert points(OPENERS)["notes.txt"] == theirs
    assert "other.txt" not in points(OPENERS)
    assert opener(tmp_path) is None
    (tmp_path / "notes.txt").touch()
    found = opener(tmp_path)
    assert found.load() is Path
