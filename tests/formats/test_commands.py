"""`cascade import`, `cascade export-diffusers` and named timesteps, as the console runs them."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cascade.cli.app import main
from cascade.config.folders import read_manifest
from cascade.pipeline import print_licence


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run `cascade`; returns its exit status and everything it printed."""
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["cascade", *map(str, arguments)])
        capsys.readouterr()
        print_licence.cache_clear()  # as a process of its own has printed none yet
        with pytest.raises(SystemExit) as end:
            main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out + printed.err

    return command


Run = Callable[..., tuple[int, str]]


def test_from_diffusers_to_pictures_to_diffusers(
    run: Run, pipelines: tuple[Path, Path], tmp_path: Path
) -> None:
    one, two = pipelines
    ours = tmp_path / "ours"
    status, told = run("import", "--from", two, "--from", one, "--output", ours)
    assert status == 0, told
    assert "its stages are base8, sr32" in told
    assert told.count("non-commercial research only") == 1
    assert read_manifest(ours).text_encoder == str((one / "text_encoder").resolve())
    status, told = run("info", ours)
    assert status == 0
    assert "ancestral, 100 steps, guidance 7" in told
    status, told = run(
        "sample", "--cascade", ours, "--prompt", "a dog", "--num-images", 1, "--output",
        tmp_path / "pictures", "--timesteps", "fast27", "--timesteps", "super27",
    )  # fmt: skip
    assert status == 0, told
    assert told.count("27/27") == 2
    status, told = run("export-diffusers", "--cascade", ours, "--output", tmp_path / "theirs")
    assert status == 0, told
    assert (tmp_path / "theirs" / "base8" / "model_index.json").is_file()
    assert (tmp_path / "theirs" / "sr32" / "model_index.json").is_file()


def test_a_diffusers_folder_is_sampled_from_directly(
    run: Run, pipelines: tuple[Path, Path], tmp_path: Path
) -> None:
    status, told = run(
        "sample", "--cascade", pipelines[0], "--prompt", "a dog", "--num-images", 1,
        "--steps", 2, "--output", tmp_path / "pictures",
    )  # fmt: skip
    assert status == 0, told
    assert told.count("non-commercial research only") == 1


def test_without_a_text_encoder(run: Run, my_pipelines: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.rmtree(my_pipelines[0] / "text_encoder")
    given = ["--from", my_pipelines[0], "--from", my_pipelines[1], "--output", tmp_path / "ours"]
    status, told = run("import", *given, "--copy-text-encoder")
    assert status == 2
    assert "There is no text encoder folder" in told
    status, told = run("import", *given)
    assert status == 0, told
    assert "use the cascade with --embeddings" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--timesteps", "fast27", "--steps", 3), "give one of them"),
        (("--timesteps", "fast27") * 3, "3 lists of timesteps for 2 stages"),
        (("--timesteps", "fast28"), "there is no list 'fast28'; known are fast27"),
    ],
)
def test_contradicting_timesteps(
    run: Run, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    status, told = run("sample", "--prompt", "a", "--output", tmp_path / "out", *arguments)
    assert status == 2
    assert message in told
    assert not (tmp_path / "out").exists()


def test_a_text_encoder_of_its_own(
    run: Run, my_pipelines: tuple[Path, Path], tmp_path: Path
) -> None:
    one, two = my_pipelines
    ours, kept = tmp_path / "ours", tmp_path / "T5" / "text_encoder"
    for name in ("text_encoder", "tokenizer"):
        shutil.move(one / name, kept.with_name(name))
    status, told = run("import", "--from", one, "--from", two, "--output", ours)
    assert status == 0, told
    assert "make it again with --text-encoder" in told
    asked = ("--prompt", "a dog", "--num-images", 1, "--output", tmp_path / "drawn", "--steps", 1)
    status, told = run("sample", "--cascade", ours, *asked)
    assert status == 2
    assert "cascade import --text-encoder" in told
    again = tmp_path / "again"
    flags = ("--text-encoder", kept, "--output", again)
    status, told = run("import", "--from", one, "--from", two, *flags)
    assert status == 0, told
    assert "There is no" not in told
    status, told = run("sample", "--cascade", again, *asked)
    assert status == 0, told


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_a_swapped_scheduler_is_told_what_to_do(
    run: Run, my_pipelines: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    path = my_pipelines[0] / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": name}))
    status, told = run("import", "--from", my_pipelines[0], "--output", tmp_path / "ours")
    assert status == 2
    assert f"'_class_name' is '{name}'" in told
    assert "put the original file of the checkpoint back" in told
