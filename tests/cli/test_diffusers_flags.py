"""A command line written for diffusers: every flag is taken, or answered by what to do instead."""

from collections.abc import Callable
from typing import Any

import pytest

from cascade.cli.diffusers_flags import ELSEWHERE, VALUES, sorted_out
from cascade.errors import UserError

Command = Callable[..., Any]
OWN = {"--seed", "--lr-scheduler", "--mixed-precision", "--help"}


@pytest.mark.parametrize("flag", ELSEWHERE)
@pytest.mark.parametrize("equals", [False, True])
@pytest.mark.parametrize("underscores", [False, True])
def test_what_is_elsewhere_is_taken_out_with_its_value(
    flag: str, equals: bool, underscores: bool
) -> None:
    spelt = "--" + flag[2:].replace("-", "_") if underscores else flag
    value = ["some value"] if ELSEWHERE[flag].takes_value else []
    given = [f"{spelt}={value[0]}"] if equals and value else [spelt, *value]
    kept, told = sorted_out([*given, "--seed", "3"], OWN)
    assert kept == ["--seed", "3"]
    assert told == [(flag, ELSEWHERE[flag])]


@pytest.mark.parametrize(("flag", "value"), VALUES)
def test_a_value_of_diffusers_becomes_one_of_ours_or_is_refused(flag: str, value: str) -> None:
    found = VALUES[flag, value]
    assert found.refused != bool(found.instead)
    for given in ([f"{flag}={value}"], [flag, value.replace("-", "_")]):
        kept, told = sorted_out(given, OWN)
        assert kept == ([flag, found.instead] if found.instead else [])
        assert [one for _, one in told] == [found]


def test_our_own_flags_stay_as_they_are() -> None:
    ours = ["--seed=3", "--lr-scheduler", "cosine", "--mixed_precision=bf16", "photos", "--help"]
    expected = ["--seed=3", "--lr-scheduler", "cosine", "--mixed-precision", "bf16"]
    assert sorted_out(ours, OWN) == ([*expected, "photos", "--help"], [])


def test_flags_nobody_knows_are_told_at_once() -> None:
    with pytest.raises(UserError, match="no flags --frob, --twiddle_it;"):
        sorted_out(["--frob", "1", "--seed", "2", "--twiddle_it"], OWN)
    assert sorted_out(["--frob", "1"], OWN)[0] == ["--frob", "1"]  # Typer says what is near


def test_what_would_train_something_else_is_refused_at_once(
    command: Command, tmp_path: Any, photos: Any
) -> None:
    done = command(
        *("dreambooth", "--instance_data_dir", photos, "--class_noun", "dog"),
        *("--output_dir", tmp_path / "new", "--train_text_encoder", "--num_train_epochs", "2"),
        *("--mixed_precision", "fp16", "--report_to", "wandb"),
    )
    assert done.status == 2
    told = "--train-text-encoder: it stays frozen, as in Imagen; leave it out; --num-train-epochs:"
    assert told in done.err
    assert "--mixed-precision fp16: it overflows" in done.err
    assert not (tmp_path / "new").exists()
