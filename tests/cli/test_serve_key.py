"""`cascade serve-key`: keys are shown once, and files keep their hashes and everything else."""

import hashlib
import stat
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascade.config.serve import KeysConfig

Command = Callable[..., Any]


def test_the_file_has_the_hash_of_what_standard_output_is(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "new" / "keys.toml"
    made = command("serve-key", "me", "--keys", file)
    assert made.status == 0
    key = made.out.removesuffix("\n")
    assert len(key) > 40
    assert key not in file.read_text() + made.err
    (entry,) = KeysConfig.read(file).keys
    assert (entry.name, entry.models, entry.admin) == ("me", ("*",), False)
    assert entry.sha256 == hashlib.sha256(key.encode()).hexdigest()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_an_entry_is_added_to_what_stands_there(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    assert command("serve-key", "me", "--keys", file).status == 0
    before = "# ours\n" + file.read_text() + "# the end"
    file.write_text(before)
    file.chmod(0o644)
    asked = ("--models", "my-*", "--models", "mini:cat", "--requests-per-minute", 3)
    more = ("--pictures-per-day", 50, "--admin")
    made = command("serve-key", "you", "--keys", file, *asked, *more)
    assert made.status == 0
    assert file.read_text().startswith(before)
    *_, entry = KeysConfig.read(file).keys
    assert entry.name == "you"
    assert entry.models == ("my-*", "mini:cat")
    assert (entry.requests_per_minute, entry.pictures_per_day, entry.admin) == (3, 50, True)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_two_keys_differ_and_an_entry_can_be_shown_instead(command: Command) -> None:
    made = [command("serve-key", "me") for _ in range(2)]
    assert made[0].out != made[1].out
    for each in made:
        (entry,) = KeysConfig.parse(tomllib.loads(each.err), "what is shown").keys
        assert entry.sha256 == hashlib.sha256(each.out.strip().encode()).hexdigest()


@pytest.mark.parametrize(
    ("held", "words", "told"),
    [
        ("", ("a b",), "name: must be one plain name"),
        ("", ("me", "--requests-per-minute", 0), "--requests-per-minute"),
        ("", ("me", "--set", "sha256=0"), "'sha256' is not a setting"),
        ("nonsense", ("me",), "is not valid TOML"),
        ("keys = 3", ("me",), "keys: must be a list"),
        (f'keys = [{{name = "a", sha256 = "{"0" * 64}"}}]', ("me",), "as a table [[keys]]."),
        (f'[[keys]]\nname = "me"\nsha256 = "{"0" * 64}"', ("me",), "'me' has a key in "),
    ],
)
def test_what_cannot_be_added_leaves_the_file_as_it_was(
    command: Command, tmp_path: Path, held: str, words: tuple[object, ...], told: str
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(held)
    refused = command("serve-key", *words, "--keys", file)
    assert refused.status == 2
    assert told in refused.err
    assert refused.out == ""
    assert file.read_text() == held


def test_a_full_disk_loses_no_key(
    command: Command, tmp_path: Path, full_disk: Callable[[int], Any]
) -> None:
    file = tmp_path / "keys.toml"
    assert command("serve-key", "me", "--keys", file).status == 0
    before = file.read_text()
    with full_disk(len(before) + 10):
        refused = command("serve-key", "you", "--keys", file)
    assert (refused.status, refused.out) == (2, "")
    assert file.read_text() == before
