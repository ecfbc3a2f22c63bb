"""The commands from the outside: help, flags, exit status, files."""

import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cascade.cli import app as program
from cascade.cli.app import app
from cascade.cli.console import Status
from cascade.config.dreambooth import DreamBoothConfig
from cascade.config.recipes import RECIPES
from cascade.environment import usable_device
from cascade.pipeline import Cascade
from cascade.text.identifier import check_identifier
from cascade.text.tokenizer import Tokenizer

ENDS = {
    signal.SIGINT: Status.INTERRUPTED,
    signal.SIGTERM: Status.REQUEUE,
    signal.SIGUSR1: Status.REQUEUE,
}
COMMANDS = sorted(
    made.name or made.callback.__name__.replace("_", "-")
    for made in app.registered_commands
    if made.callback is not None
)
Command = Callable[..., Any]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(command: Command, name: str) -> None:
    shown = command(name, "--help")
    assert shown.status == 0
    assert "Usage:" in shown.out
    assert shown.err == ""


def test_help_lists_the_commands_and_loses_no_words(command: Command) -> None:
    shown = command("--help")
    assert shown.status == 0
    assert all(name in shown.out for name in COMMANDS)
    assert "[V]" in command("dreambooth", "--help").out
    assert "[0 <= x <= 1]" in command("sample", "--help").out


def test_version(command: Command) -> None:
    assert command("--version").out.strip() == version("dreamcascade")


@pytest.mark.parametrize("arguments", [(), ("smaple",), ("sample",), ("sample", "--stpes", "3")])
def test_usage_errors_exit_with_two(command: Command, arguments: tuple[str, ...]) -> None:
    assert command(*arguments).status == 2


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from cascade.cli.app import app; app(['--help'], standalone_mode=False); "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_info_and_identifiers(command: Command, tiny_cascade: Path) -> None:
    shown = command("info", tiny_cascade)
    assert shown.status == 0
    assert "base16" in shown.out
    listed = command("identifiers", "--cascade", tiny_cascade, "--count", 5, "--seed", 1)
    found = listed.out.split()
    assert listed.status == 0
    assert len(set(found)) == 5
    tokenizer = Tokenizer(tiny_cascade / "text" / "spiece.model")
    for identifier in found:
        check_identifier(tokenizer, "lower", identifier, "dog")
    again = command("identifiers", "--cascade", tiny_cascade, "--count", 5, "--seed", 1)
    assert again.out == listed.out


def pixels(path: Path) -> bytes:
    with Image.open(path) as picture:
        return picture.tobytes()


def test_sample_s_flags_reach_the_sampler(
    command: Command, tiny_cascade: Path, tmp_path: Path
) -> None:
    common = ("sample", "--cascade", tiny_cascade, "--prompt", "a dog", "--num_images", 1)
    changes: dict[str, tuple[object, ...]] = {
        "plain": (),
        "sampler": ("--sampler", "heun"),
        "underscored": ("--sampler", "dpmpp_2m", "--steps", 3),  # the base's own settings
        "steps": ("--steps", 7),
        "guidance": ("--guidance", 9),
        "level": ("--noise_level", 0.9),
        "seed": ("--seed", 1),
    }
    drawn = {}
    for name, change in changes.items():
        assert command(*common, *change, "-o", tmp_path / name, "--device", "cpu").status == 0
        files = sorted((tmp_path / name).glob("*/*.png"))
        drawn[name] = {path.parent.name: pixels(path) for path in files}
    plain = drawn.pop("plain")
    assert drawn.pop("underscored")["base16"] == plain["base16"]
    assert drawn["level"].pop("base16") == plain["base16"]
    for pictures in drawn.values():
        assert all(pictures[stage] != plain[stage] for stage in pictures)
    stopped = command(*common, "-o", tmp_path / "base", "--last_stage", "base16")
    assert stopped.status == 0
    assert pixels(tmp_path / "base" / "base16" / "00-0.png") == plain["base16"]
    assert not (tmp_path / "base" / "sr32").exists()


@pytest.mark.parametrize("number", ENDS)
def test_sampling_that_is_stopped_keeps_its_pictures(
    command: Command,
    tiny_cascade: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    sample = Cascade.sample_batches

    def stopped(self: Cascade, *arguments: Any) -> Any:
        yield next(sample(self, *arguments))
        signal.raise_signal(number)

    monkeypatch.chdir(tmp_path)  # without --output they go into `pictures`
    common = ("sample", "--cascade", tiny_cascade, "--prompt", "a dog")
    with monkeypatch.context() as patch:
        patch.setattr(Cascade, "sample_batches", stopped)
        done = command(*common, "--batch_size", 2)
    assert done.status == ENDS[number]
    assert "the same command goes on from here" in done.err
    assert len(list(tmp_path.rglob("*.png"))) == 4
    again = command(*common, "--batch_size", 2)
    assert "2 of 4 pictures were there already." in again.out
    assert "The grid is pictures/grid.png" in again.out
    assert len(list(tmp_path.rglob("*.png"))) == 9


def test_the_default_device_is_usable() -> None:
    assert usable_device("cpu") == "cpu"
    assert usable_device(usable_device(None)) == usable_device(None)


def test_the_cascade_names_its_recipe(
    command: Command, received: list[DreamBoothConfig], tiny_cascade: Path
) -> None:
    short = ("--instance_data_dir", tiny_cascade, "--class_noun", "dog", "--output_dir", "y")
    assert command("dreambooth", *short, "--cascade", tiny_cascade).status == 0
    assert received[0].recipe == RECIPES["mini"]
    assert received[0].class_noun == "dog"
    assert received[0].stages == ()
    off = ("--cascade", tiny_cascade, "--no-prior-preservation")
    assert command("dreambooth", *short, *off).status == 0
    assert received[1].recipe.prior is None


@pytest.mark.parametrize("number", ENDS)
def test_an_interrupt_says_how_to_go_on_where_it_does(
    command: Command, monkeypatch: pytest.MonkeyPatch, repository: Path, number: signal.Signals
) -> None:
    def interrupted(*_: object) -> None:
        signal.raise_signal(number)

    before = signal.getsignal(number)
    monkeypatch.setattr("cascade.training.pretrain.pretrain", interrupted)
    stopped = command("train", repository / "configs" / "mini-base64.toml")
    assert stopped.status == ENDS[number]
    assert "the same command goes on from here" in stopped.err
    assert signal.getsignal(number) == before


def test_an_interrupt_of_what_begins_anew_promises_nothing(
    command: Command, tiny_cascade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cascade.info.folder.describe", interrupted)
    stopped = command("info", tiny_cascade)
    assert (stopped.status, stopped.err) == (130, "Interrupted.\n")


@pytest.mark.slow
def test_nobody_else_is_heard() -> None:
    """Packages that are merely installed have nothing to say to a command."""
    done = subprocess.run(
        [sys.executable, "-m", "cascade", "info", "mini"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""


def test_pillow_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says of a photo's damaged notes is no concern of who trains on its pixels."""

    def damaged(_: object) -> None:
        warnings.warn_explicit(
            "Corrupt EXIF data", UserWarning, "", 1, module="PIL.TiffImagePlugin"
        )

    monkeypatch.setattr(program, "run_command", damaged)
    with warnings.catch_warnings(record=True) as heard:
        program.main()
    assert heard == []
