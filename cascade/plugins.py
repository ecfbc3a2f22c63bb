"""Entry points of other packages: commands, and kinds of folders that they open.

    [project.entry-points."dreamcascade.commands"]    "bench stages", a command's words: a function
    [project.entry-points."dreamcascade.openers"]     a file's name: what opens a folder with it
    [project.entry-points."dreamcascade.libraries"]   a file's name: what serves a folder with it

An installed distribution has them in its metadata, a checkout in its pyproject.toml. Nothing here
imports torch, nor a plugin before it is asked for.
"""

import tomllib
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Final

COMMANDS: Final = "dreamcascade.commands"
OPENERS: Final = "dreamcascade.openers"
LIBRARIES: Final = "dreamcascade.libraries"
_PROJECT: Final = Path(__file__).resolve().parent.parent / "pyproject.toml"


def points(group: str) -> dict[str, EntryPoint]:
    """Return a group's entry points by name; the checkout's own are there if their package is."""
    found = {point.name: point for point in entry_points(group=group)}
    if _PROJECT.is_file():
        project = tomllib.loads(_PROJECT.read_text("utf-8")).get("project", {})
        own = project.get("entry-points", {}).get(group, {})
        found |= {name: EntryPoint(name, value, group) for name, value in own.items()}
    return {name: point for name, point in found.items() if find_spec(point.module.split(".")[0])}


def opener(folder: Path, group: str = OPENERS) -> EntryPoint | None:
    """Return what opens a folder; None where it holds no file that says so.

    Loaded, it is called with (folder, device, embeddings, encoder mode, `BundleOptions`), and
    returns a `cascade.pipeline.Cascade`, or a `cascade.serve.library.Library` of `LIBRARIES`.
    """
    known = points(group)
    return next((known[name] for name in known if (folder / name).is_file()), None)
