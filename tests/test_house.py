"""House rules that a linter does not know: a list of words in one place, small files, functions."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("cascade", "kernels", "export", "tools", "examples", "docs")
LONGEST_FILE, LONGEST_FUNCTION, MOST_PARAMETERS = 300, 60, 10
# A training loop is one page.
LONG = {("cascade/training/loop.py", "train")}
# An operation's inputs: seven tensors, and how they are used.
MANY = {("kernels/cascade_kernels/group_norm_film_silu/op.py", "group_norm_film_silu")}


@pytest.fixture(scope="module")
def trees(repository: Path) -> dict[str, ast.Module]:
    """Every module outside of the tests, parsed."""
    return {
        path.relative_to(repository).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for package in PACKAGES
        for path in sorted((repository / package).rglob("*.py"))
    }


def _functions(trees: dict[str, ast.Module]) -> Iterator[tuple[str, ast.FunctionDef]]:
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                yield path, node


def _word_sets(tree: ast.Module) -> Iterator[frozenset[object]]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Subscript)
            and isinstance(node.value, ast.Name)
            and node.value.id == "Literal"
        ):
            parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            words = [part.value for part in parts if isinstance(part, ast.Constant)]
            if len(words) == len(parts) > 1:
                yield frozenset(words)


def test_no_list_of_words_stands_twice(trees: dict[str, ast.Module]) -> None:
    places = defaultdict(list)
    for path, tree in trees.items():
        for words in _word_sets(tree):
            places[words].append(path)
    assert {words: found for words, found in places.items() if len(found) > 1} == {}


def test_files_and_functions_are_small(trees: dict[str, ast.Module], repository: Path) -> None:
    files = {
        path: lines
        for path in trees
        if (lines := len((repository / path).read_text(encoding="utf-8").splitlines()))
        > LONGEST_FILE
    }
    functions = {
        (path, node.name): length
        for path, node in _functions(trees)
        if (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    }
    assert (files, functions.keys() - LONG) == ({}, set())


def test_functions_take_few_parameters(trees: dict[str, ast.Module]) -> None:
    counts = {
        (path, node.name): count
        for path, node in _functions(trees)
        if not any("jit" in ast.unparse(decorator) for decorator in node.decorator_list)
        and (count := len([*node.args.args, *node.args.kwonlyargs])) > MOST_PARAMETERS
    }
    assert counts.keys() - MANY == set()
