"""Records of measurements: what is a result and what is not, their tables and means."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cascade import environment, results
from cascade.config.base import Frozen
from cascade.environment import UNKNOWN, commit
from cascade.errors import UserError
from cascade.results import Result, means
from cascade.tables import Table, explained


class Settings(Frozen):
    """What a measurement is told."""

    rounds: int = 3


def _result(figures: dict[str, Any], **changes: Any) -> Result:
    return Result.of("bench", Settings(), figures, **changes)


@pytest.mark.parametrize(
    ("commit", "trial", "said"),
    [
        ("3f2a1bc", "", ""),
        ("none (version 0.1.0)", "", ""),
        ("3f2a1bc-dirty", "", "not that of a commit (3f2a1bc-dirty); commit it and measure again"),
        (UNKNOWN, "", "name it in DREAMCASCADE_COMMIT"),
        ("3f2a1bc", "a dry run", "a dry run"),
    ],
)
def test_only_what_others_can_repeat_is_called_a_result(
    commit: str, trial: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "environment", lambda: {"commit": commit, "machine": "a CPU"})
    found = _result({"seconds": 1.5}, trial=trial, packages=["torch", "none-such"])
    assert found.trial.endswith(said)
    assert bool(found.trial) == bool(said)
    path = found.write(tmp_path / "of.base", [Table(["what", "s"], [["a", 1.5]])])
    assert path.name == ("of.base.trial.json" if said else "of.base.json")
    assert Result.load(path) == found
    assert found.environment["none-such"] == "not installed"
    text = path.with_suffix(".md").read_text()
    assert ("A trial and no result" in text) == bool(said)
    assert "| a | 1.5 |" in text
    assert "machine a CPU" in text


def test_a_record_tells_machine_versions_and_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/cascade", "bench", "train", "--name", "a b"])
    found = _result({})
    assert found.command == "cascade bench train --name 'a b'"
    assert found.settings == {"rounds": 3}
    told = {"date", "commit", "machine", "features", "system", "python", "torch"}
    assert told <= found.environment.keys()
    assert found.environment["features"].startswith("PyTorch uses ")


def test_a_changed_checkout_has_no_clean_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cascade").mkdir()
    file = tmp_path / "cascade" / "environment.py"
    monkeypatch.setattr(environment, "__file__", str(file))
    monkeypatch.delenv("DREAMCASCADE_COMMIT", raising=False)
    assert not commit().endswith("-dirty")  # no checkout
    file.write_text("a = 1\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    clean = commit()
    assert results.not_reproducible(clean) == ""
    file.write_text("a = 2\n")
    assert commit() == f"{clean}-dirty"
    monkeypatch.setenv("DREAMCASCADE_COMMIT", "abc")  # of a copy without its history
    assert commit() == "abc"


def test_a_damaged_record_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"kind": "bench"}))
    with pytest.raises(UserError, match="holds no results that this version reads"):
        Result.load(path)


def test_means_are_over_what_is_known() -> None:
    scores = [{"a": {"x": 1.0, "y": None}}, {"a": {"x": 3.0, "y": 5.0}}]
    (by_stage,) = means([_result({"scores": {"base": one}}) for one in scores])
    assert by_stage.markdown().splitlines()[2] == "| a | 2 ± 1.414 | 5 |"
    (of_one,) = means([_result({"stage": "base", "scores": one}) for one in scores])
    assert of_one.rows == by_stage.rows
    with pytest.raises(UserError, match="holds no scores"):
        means([_result({})])
    other = _result({}).model_copy(update={"kind": "evaluate"})
    with pytest.raises(UserError, match="different kinds"):
        means([_result({}), other])


def test_a_table_shows_figures_short_and_the_unknown_as_a_dash() -> None:
    table = Table(["name", "x"], [["a", 1234.5678], ["b", None], ["c", 7]], "A note.")
    assert table.markdown() == (
        "| name | x |\n| --- | --- |\n| a | 1235 |\n| b | – |\n| c | 7 |\n\nA note.\n"
    )
    with pytest.raises(ValueError, match="a row of 1 values under 2 columns"):
        Table(["a", "b"], [["x"]])
    assert explained({"a": len, "b": len}).count("Return the number of items") == 1
