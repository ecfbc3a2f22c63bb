"""`cascade train` with the file of a whole cascade."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascade.cli.console import Status
from cascade.config.cascade_run import CascadeRunConfig
from cascade.training.report import read_log
from cascade.whole import read_stages

Command = Callable[..., Any]


@pytest.fixture
def whole(tmp_path: Path, training_file: Callable[..., Path]) -> Path:
    """The file of a cascade of two stages, beside theirs; its output is `made`."""
    for name in ("base16", "sr32"):
        training_file(
            tmp_path,
            name,
            train={"steps": 5, "batch_size": 2, "log_every": 1},
            validation={"images_per_prompt": 0, "x0_rows": 0},
            output="nowhere",
        )
    file = tmp_path / "cascade.toml"
    file.write_text(
        f'output = "{tmp_path / "made"}"\nrecipe = "mini"\n'
        '[[stages]]\nconfig = "base16.toml"\noverrides = ["train.steps=2"]\n'
        '[[stages]]\nconfig = "sr32.toml"\noverrides = ["train.steps=3"]\n'
    )
    return file


def test_the_cascades_of_the_configurations_are_chains(repository: Path) -> None:
    files = sorted((repository / "configs" / "cascade").glob("*.toml"))
    assert len(files) == 2
    for file in files:
        config = CascadeRunConfig.read(file)
        sizes = [stage.run.stage.size for stage in read_stages(config, file.parent)]
        assert sizes == [64, 256, 1024][: len(sizes)]


@pytest.mark.slow
def test_one_command_trains_all_stages_and_goes_on(
    command: Command, whole: Path, tmp_path: Path
) -> None:
    made = tmp_path / "made"
    planned = command("train", whole, "--dry-run")
    assert planned.status == 0
    assert not made.exists()
    stopped = command("train", whole, "--minutes", "0")
    assert stopped.status == Status.TIME_IS_UP
    assert "Stage 'base16' ended with status 3; the same command goes on" in stopped.err
    assert not (made / "runs" / "sr32").exists()
    ended = command("train", whole, "--set", "side_by_side=true")
    assert ended.status == 0
    assert f"The cascade is in {made / 'cascade'}." in ended.out
    for name, steps in (("base16", 2), ("sr32", 3)):
        log = read_log(made / "runs" / name / "log.jsonl")
        assert [line["step"] for line in log] == list(range(1, steps + 1))
    manifest = json.loads((made / "cascade" / "cascade.json").read_text())
    assert (manifest["name"], manifest["recipe"]) == ("made", "mini")
    assert manifest["stages"] == ["base16", "sr32"]
    drawn = command(
        "sample", "--cascade", made / "cascade", "--prompt", "a dog", "-o", made / "drawn"
    )
    assert drawn.status == 0
    assert command("train", whole).status == 0  # nothing is left to do


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--plan"], "A plan is made of one stage; give its file."),
        (["--set", "stages=[{config='sr32.toml'}]"], "put the stages"),
        (["--set", "stages=[{config='none.toml'}]"], "There is no configuration file"),
        (["--set", "stages=[]"], "stages"),
        (["--set", "stages=[{config='base16.toml', overrides=['a=1']}]"], "'a' is not a setting"),
        (["--set", "out=1"], "'out' is not a setting (did you mean 'output'?)"),
    ],
)
def test_a_mistake_is_told_before_any_stage_is_trained(
    command: Command, whole: Path, tmp_path: Path, words: list[str], said: str
) -> None:
    refused = command("train", whole, *words)
    assert refused.status == Status.MISTAKE
    assert said in refused.err
    assert not (tmp_path / "made").exists()


def test_stages_of_different_encoders_and_torchrun_are_refused(
    command: Command, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = whole.with_name("sr32.toml")
    changed.write_text(changed.read_text().replace('/text"', '/other"'))
    assert "takes its text from elsewhere" in command("train", whole).err
    for name, value in {"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert "run the command without torchrun" in command("train", whole).err
