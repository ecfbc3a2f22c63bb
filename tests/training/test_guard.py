"""Steps that would ruin a run: stopped at, left out or gone back behind; kept to be seen."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from cascade.data.batch import Batch
from cascade.data.stream import Samples
from cascade.errors import UserError
from cascade.stage import Stage
from cascade.training.distributed import Processes
from cascade.training.report import read_log

Run = Callable[..., Stage]
Same = Callable[[Stage, Stage], bool]
Spoiled = Callable[[Sequence[int], float], Samples]
BAD = {"spike": 1e4, "not finite": math.nan}
SPIKE = {"spike": 20.0, "window": 2}


@dataclass(frozen=True)
class Without:
    """The rows of a stream without some of its positions."""

    samples: Samples
    left_out: range

    def rows(self, positions: Sequence[int]) -> Batch:
        """See `cascade.data.batch.Samples`."""
        missing, first = len(self.left_out), self.left_out.start
        return self.samples.rows([p + missing * (p >= first) for p in positions])


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("action", ["skip", pytest.param("rollback", marks=pytest.mark.slow)])
def test_what_was_left_out_was_never_there(
    tmp_path: Path,
    run: Run,
    same: Same,
    samples: Samples,
    spoiled: Spoiled,
    action: str,
    kind: str,
) -> None:
    # Steps have four rows and every second one a checkpoint: the fourth step is spoiled.
    guard = {"action": action, **SPIKE}
    guarded = run(tmp_path / "guarded", rows=spoiled([13], BAD[kind]), guard=guard)
    steps, left_out = (5, range(12, 16)) if action == "skip" else (6, range(8, 16))
    clean = run(tmp_path / "clean", rows=Without(samples, left_out), guard=guard, steps=steps)
    assert same(guarded, clean)
    log = read_log(tmp_path / "guarded" / "log.jsonl")
    assert [line["step"] for line in log] == [1, 2, 3, 4, 5, 6]
    assert [line["images"] for line in log][2] == (12 if action == "skip" else 20)

    (incident,) = (tmp_path / "guarded" / "incidents").iterdir()
    assert incident.name == "step-000004-images-12"
    told = json.loads((incident / "rank-0.json").read_text())
    assert (told["step"], told["images"]) == (3, 12)
    assert not told["grad_norm"] <= 20 * told["median"]
    assert [row["position"] for row in told["rows"]] == [12, 13, 14, 15]
    assert [row["prompt"] for row in told["rows"]] == ["a dog", None, "a dog", None]
    assert told["rows"][0]["losses"].keys() == told["rows"][1]["losses"].keys() != set()
    assert Image.open(incident / "rank-0.png").size == (4 * 10 - 2, 8)


@pytest.mark.parametrize("action", ["skip", pytest.param("rollback", marks=pytest.mark.slow)])
def test_a_killed_run_leaves_out_the_same(
    tmp_path: Path,
    run: Run,
    same: Same,
    spoiled: Spoiled,
    killed_at: Callable[..., None],
    action: str,
) -> None:
    guard = {"action": action, **SPIKE}
    rows = spoiled([13], math.nan)
    undisturbed = run(tmp_path / "whole", rows=rows, guard=guard)
    for position in (10, 14, 18, 22):
        killed_at(position, tmp_path / "cut", rows=rows, guard=guard)
    assert same(run(tmp_path / "cut", rows=rows, guard=guard), undisturbed)


@pytest.mark.parametrize(
    ("guard", "positions", "told"),
    [
        ({"action": "stop", **SPIKE}, [13], "at step 4 "),
        ({"action": "skip", "most": 1}, [17, 21], "at step 6 "),
        ({"action": "rollback", "most": 2}, [9, 13, 17], "at step 3 "),
    ],
)
def test_a_run_that_cannot_be_helped_ends(
    tmp_path: Path,
    run: Run,
    spoiled: Spoiled,
    guard: dict[str, object],
    positions: list[int],
    told: str,
) -> None:
    rows = spoiled(positions, math.inf)
    every = 4 if guard["action"] == "skip" else 2
    with pytest.raises(UserError, match=f"{told}.*; look at it, lower the learning rate"):
        run(tmp_path, rows=rows, guard=guard, checkpoint_every=every)
    assert len(list((tmp_path / "incidents").iterdir())) == len(positions)


@dataclass(frozen=True)
class Agreed(Processes):
    """One of several processes, whose mean norm is given."""

    norm: float = 1.0

    def all_reduce_mean(self, value: torch.Tensor) -> torch.Tensor:
        """See `Processes`."""
        return value if value.ndim else torch.full_like(value, self.norm)


@pytest.mark.parametrize("norm", [2.0, math.nan])
def test_every_process_decides_by_the_norm_that_all_agree_on(
    tmp_path: Path, run: Run, norm: float
) -> None:
    agreed = Agreed(0, 1, torch.device("cpu"), norm=norm)
    run(tmp_path, processes=agreed, guard={"action": "skip"}, steps=1)
    (told,) = read_log(tmp_path / "log.jsonl")
    skipped = math.isnan(norm)
    assert told["grad_norm"] == (0 if skipped else norm)
    assert (tmp_path / "incidents").exists() is skipped


def test_a_sound_run_is_left_as_it_is(tmp_path: Path, run: Run, same: Same, whole: object) -> None:
    guarded = run(tmp_path, guard={"action": "rollback", **SPIKE})
    assert same(guarded, whole.stage)  # type: ignore[attr-defined]
    assert not (tmp_path / "incidents").exists()
