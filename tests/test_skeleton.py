"""What an installed user gets: declared dependencies, light settings, a whole wheel."""

import ast
import configparser
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cascade.plugins import COMMANDS, LIBRARIES, OPENERS, points

KERNELS = {
    "forward",
    "backward",
    "backward_small",
    "fake_gpu",
    "percentile",
    "plan",
    "slab",
    "tiles",
}
COMPARED = {"apex", "xformers"}  # where they are installed; nothing here needs them
OURS = {"cascade", "cascade_kernels", "cascade_bench", "cascade_export"}


@pytest.fixture(scope="module")
def project(repository: Path) -> dict[str, Any]:
    """The `[project]` table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    return table


def _sources(repository: Path) -> list[Path]:
    packages = (
        "cascade",
        "kernels/cascade_kernels",
        "kernels/cascade_bench",
        "export/cascade_export",
    )
    return [path for name in packages for path in sorted((repository / name).rglob("*.py"))]


def _names(requirements: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in requirements}


def _imports(tree: ast.AST) -> Iterator[str]:
    """Top-level names of the absolute imports anywhere below `tree`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def _foreign(tree: ast.AST) -> set[str]:
    return set(_imports(tree)) - OURS - set(sys.stdlib_module_names)


def _without_function_bodies(source: str) -> ast.Module:
    """The module with only the imports that importing it carries out."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            typing_only = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            return None if typing_only else self.generic_visit(node)

    tree = Strip().visit(ast.parse(source))
    assert isinstance(tree, ast.Module)
    return tree


@cache
def _installed() -> Mapping[str, list[str]]:
    return packages_distributions()


def _distributions(module: str) -> set[str]:
    known = _installed().get(module, [module])
    return {canonicalize_name(name) for name in known}


def test_modules_import_only_declared_dependencies(
    repository: Path, project: dict[str, Any]
) -> None:
    required = _names(project["dependencies"])
    every = required.union(*map(_names, project["optional-dependencies"].values()))
    undeclared: list[str] = []
    for path in _sources(repository):
        source = path.read_text()
        at_import = _foreign(_without_function_bodies(source))
        where_used = _foreign(ast.parse(source)) - at_import
        # Imported when a kernel runs, or by a command that exports: never before.
        kernel = "kernels" in path.parts and path.stem in KERNELS
        extra = kernel or {"cascade_export"} & set(path.parts) or path.parent.name == "serve"
        importable = every if extra else required
        for allowed, modules in ((importable, at_import), (every, where_used)):
            undeclared += [
                f"{path.relative_to(repository)}: {name}"
                for name in sorted(modules - COMPARED)
                if not _distributions(name) & allowed
            ]
    assert undeclared == []


def test_constraints_pin_every_direct_dependency(repository: Path, project: dict[str, Any]) -> None:
    lines = (repository / "constraints-cpu.txt").read_text().splitlines()
    pins = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, _, version = line.partition("==")
            pins[canonicalize_name(name)] = version
    extras = project["optional-dependencies"]
    for line in project["dependencies"] + extras["dev"] + extras["evaluate"]:
        wanted = Requirement(line)
        pin = pins.get(canonicalize_name(wanted.name))
        assert pin, f"{wanted.name} is not pinned"
        assert wanted.specifier.contains(pin), f"the pin {pin} does not satisfy {line}"


def test_pins_bring_no_gpu_packages(repository: Path) -> None:
    pins = (repository / "constraints-cpu.txt").read_text()
    assert not re.search(r"^(nvidia|cuda)", pins, flags=re.MULTILINE)


def test_settings_load_without_torch(repository: Path) -> None:
    """`cascade --help` and a mistake in a configuration must answer at once."""
    names = [
        "cascade.config" if path.stem == "__init__" else f"cascade.config.{path.stem}"
        for path in sorted((repository / "cascade" / "config").glob("*.py"))
    ]
    code = f"import sys, {', '.join(names)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "transformers", "numpy"} & set(done.stdout.split())


@pytest.fixture(scope="module")
def wheel_file(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(repository)).build(directory=str(folder), versions=["standard"])
    return Path(path)


@pytest.fixture(scope="module")
def wheel(wheel_file: Path) -> set[str]:
    """The names of the files in it."""
    with zipfile.ZipFile(wheel_file) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_the_benchmark_works_from_the_wheel(wheel_file: Path) -> None:
    """Its command is registered there, and it finds the configurations that its shapes follow."""
    root = wheel_file.parent / "root"
    with zipfile.ZipFile(wheel_file) as archive:
        archive.extractall(root)
    done = subprocess.run(
        [sys.executable, "-m", "cascade", "bench", "kernels", "--shapes", "if-v"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "No case has 'if-v' in its name; try 'if-i-m'" in done.stderr


def test_wheel_holds_the_packages_and_nothing_else(wheel: set[str]) -> None:
    tops = {name.partition("/")[0] for name in wheel}
    assert {name for name in tops if not name.endswith(".dist-info")} == {
        "cascade",
        "cascade_bench",
        "cascade_export",
        "cascade_kernels",
    }
    assert {"cascade/errors.py", "cascade_kernels/__init__.py", "cascade/py.typed"} <= wheel


def test_wheel_holds_every_data_file(repository: Path, wheel: set[str]) -> None:
    """Templates, the small cascade and everything else that code reads beside itself."""
    data = {
        path.relative_to(root).as_posix()
        for root, name in (
            (repository, "cascade"),
            (repository / "kernels", "cascade_kernels"),
            (repository / "export", "cascade_export"),
        )
        for path in (root / name).rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert "cascade/zoo/mini/cascade.json" in data
    assert data <= wheel


def test_wheel_holds_every_configuration(repository: Path, wheel: set[str]) -> None:
    configs = {f"cascade/configs/{path.name}" for path in (repository / "configs").glob("*.toml")}
    assert configs
    assert configs <= wheel


def test_the_wheel_registers_what_the_checkout_does(
    wheel_file: Path, project: dict[str, Any]
) -> None:
    held = configparser.ConfigParser(delimiters="=")
    held.optionxform = str  # type: ignore[assignment, method-assign]
    with zipfile.ZipFile(wheel_file) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        held.read_string(archive.read(name).decode())
    written = project["entry-points"]
    assert {group: dict(held[group]) for group in written} == written
    assert {COMMANDS, OPENERS, LIBRARIES} == written.keys()
    assert all(callable(point.load()) for point in points(COMMANDS).values())
