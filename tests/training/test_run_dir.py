"""A run's folder: one process at a time, one run, and a refusal that says what differs."""

import json
import os
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from cascade.errors import UserError
from cascade.training.distributed import Processes
from cascade.training.run_dir import RunClaim, acquire_run_dir, require_free

ALONE = Processes(0, 1, torch.device("cpu"))
RUN: dict[str, object] = {
    "noun": "dog",
    "stages": ("base", "sr"),
    "recipe": {"steps": 4, "rate": 1e-3, "masks": None, "deep": {"seed": 0}},
}


def _asked(folder: Path, growing: frozenset[str] = frozenset(), **changes: object) -> RunClaim:
    recipe = {**RUN["recipe"], **changes.pop("recipe", {})}  # type: ignore[dict-item]
    return RunClaim(folder, {**RUN, **changes, "recipe": recipe}, growing, "go on")


def _claim(
    folder: Path, growing: frozenset[str] = frozenset(), **changes: object
) -> AbstractContextManager[None]:
    return acquire_run_dir(_asked(folder, growing, **changes), ALONE)


def _begun(folder: Path) -> Path:
    """A folder in which a run has left a checkpoint."""
    with _claim(folder):
        (folder / "runs" / "base" / "checkpoints" / "step-2").mkdir(parents=True)
    return folder


def test_the_same_run_is_taken_again_wherever_it_lies(tmp_path: Path) -> None:
    _begun(tmp_path / "run").rename(tmp_path / "moved")
    with _claim(tmp_path / "moved"):
        assert json.loads((tmp_path / "moved" / "run.json").read_text())["noun"] == "dog"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"noun": "cat"}, 'noun is "dog" there and "cat" now;'),
        ({"stages": ("base",)}, r'stages is \["base", "sr"\] there and \["base"\] now;'),
        ({"recipe": {"steps": 9}}, r"recipe\.steps is 4 there and 9 now;"),
        ({"recipe": {"deep": {"seed": 1}}}, r"recipe\.deep\.seed is 0 there and 1 now;"),
        ({"recipe": {"masks": "auto"}}, r'recipe\.masks is not set there and "auto" now;'),
        ({"new": 1}, "new is not set there and 1 now;"),
        (
            {"noun": "x" * 99, "a": 1, "b": 2, "c": 3},
            "a is not set there and 1 now, b .*, c .*, and 1 more;",
        ),
    ],
)
def test_another_run_is_refused_by_what_differs(
    tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    folder = _begun(tmp_path / "run")
    before = (folder / "run.json").read_bytes()
    with pytest.raises(UserError, match=told), _claim(folder, **changes):
        pass
    assert (folder / "run.json").read_bytes() == before


def test_a_run_that_has_left_nothing_gives_way(tmp_path: Path) -> None:
    with _claim(tmp_path / "run"):
        pass
    with _claim(tmp_path / "run", noun="cat"):
        assert json.loads((tmp_path / "run" / "run.json").read_text())["noun"] == "cat"


def test_only_what_may_grow_may_grow(tmp_path: Path) -> None:
    folder, steps = _begun(tmp_path / "run"), frozenset({"recipe.steps"})
    with _claim(folder, steps, recipe={"steps": 9}):
        pass
    for refused in (8, None, "12"):
        with pytest.raises(UserError, match=r"recipe\.steps is 9"):
            _claim(folder, steps, recipe={"steps": refused}).__enter__()


def test_a_foreign_folder_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"), _claim(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_second_start_is_refused_by_whom_the_folder_is_held(tmp_path: Path) -> None:
    with _claim(tmp_path / "run"):
        told = f"in use by process {os.getpid()} on "
        with pytest.raises(UserError, match=told), _claim(tmp_path / "run"):
            pass
    with _claim(tmp_path / "run"):
        pass


HOLD = """
import sys, torch
from pathlib import Path
from cascade.training.distributed import Processes
from cascade.training.run_dir import RunClaim, acquire_run_dir
with acquire_run_dir(RunClaim(Path(sys.argv[1]), {}), Processes(0, 1, torch.device("cpu"))):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_looking_before_a_run_refuses_the_same_and_leaves_nothing(tmp_path: Path) -> None:
    require_free(_asked(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    begun = _begun(tmp_path / "run")
    require_free(_asked(begun))
    with pytest.raises(UserError, match='noun is "dog" there and "cat" now;'):
        require_free(_asked(begun, noun="cat"))
    with _claim(begun), pytest.raises(UserError, match="is in use by"):
        require_free(_asked(begun))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").touch()
    with pytest.raises(UserError, match="is not empty and holds no run"):
        require_free(_asked(tmp_path / "full"))
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]


@pytest.mark.dist
def test_a_process_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"in use by process {other.pid} on "),
            acquire_run_dir(RunClaim(tmp_path / "run", {}), ALONE),
        ):
            pass
        other.kill()
    with acquire_run_dir(RunClaim(tmp_path / "run", {}), ALONE):
        pass
