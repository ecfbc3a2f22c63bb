"""The Dockerfile, as far as it can be tried without Docker: what it copies, installs and starts."""

import json
import re
import shutil
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cascade.cli.app import app
from cascade.config.serve import ServeConfig

Steps = list[tuple[str, str]]


@pytest.fixture(scope="module")
def steps(repository: Path) -> Steps:
    """Its instructions, each with the rest of its line."""
    text = re.sub(r"^#.*\n", "", (repository / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = filter(None, text.replace("\\\n", " ").splitlines())
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def _of(steps: Steps, name: str) -> list[str]:
    return [rest for word, rest in steps if word == name]


def _copied(steps: Steps) -> Iterator[str]:
    for rest in _of(steps, "COPY"):
        if not rest.startswith("--from"):
            yield from rest.split()[:-1]


@pytest.mark.slow
def test_what_it_copies_makes_the_whole_wheel(
    steps: Steps, repository: Path, tmp_path: Path
) -> None:
    ignored = (repository / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(_copied(steps))
    source = tmp_path / "source"
    source.mkdir()
    caches = shutil.ignore_patterns("__pycache__")
    for name in _copied(steps):
        if (repository / name).is_dir():
            shutil.copytree(repository / name, source / name, ignore=caches)
        else:
            shutil.copy(repository / name, source)
    wheels = []
    for root in (repository, source):
        place = tmp_path / f"wheel-{root.name}"
        (path,) = WheelBuilder(str(root)).build(directory=str(place), versions=["standard"])
        with zipfile.ZipFile(path) as archive:
            wheels.append(sorted(name for name in archive.namelist() if "RECORD" not in name))
    assert wheels[0] == wheels[1]


def test_it_installs_the_pinned_versions_and_extras_that_exist(
    steps: Steps, repository: Path
) -> None:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    (install,) = (rest for rest in _of(steps, "RUN") if "pip install" in rest)
    constraints = re.findall(r"--constraint (\S+)", install)
    assert constraints == ["constraints-cpu.txt"]
    assert set(constraints) <= set(_copied(steps))
    (extras,) = re.findall(r"'\.\[(.+)\]'", install)
    known = project["optional-dependencies"]
    assert set(extras.split(",")) == {"export", "serve"} <= known.keys()
    pins = dict(re.findall(r"^(\S+)==(\S+)$", (repository / constraints[0]).read_text(), re.M))
    for line in (each for name in extras.split(",") for each in known[name]):
        wanted = Requirement(line)
        assert wanted.specifier.contains(pins[wanted.name]), line
    images = {rest.partition(" ")[0] for rest in _of(steps, "FROM")}
    (version,) = (re.fullmatch(r"python:(\d+\.\d+)-slim", image) for image in images)
    assert version
    assert SpecifierSet(project["requires-python"]).contains(version.group(1))


def test_it_starts_the_server_itself_and_not_as_root(steps: Steps) -> None:
    (words,) = map(json.loads, _of(steps, "ENTRYPOINT"))  # exec form: signals reach it
    assert words[:2] == ["cascade", "serve"]
    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    known = {name for each in command.params for name in each.opts}
    assert {word for word in words if word.startswith("--")} <= known
    assert _of(steps, "USER")[-1] not in ("", "0", "root")


def test_its_port_and_health_are_the_server_s(steps: Steps) -> None:
    port = ServeConfig().port
    assert _of(steps, "EXPOSE") == [str(port)]
    (health,) = _of(steps, "HEALTHCHECK")
    words = json.loads(health[health.index("[") :])
    compile(words[2], "HEALTHCHECK", "exec")
    assert f"http://127.0.0.1:{port}/health" in words[2]
