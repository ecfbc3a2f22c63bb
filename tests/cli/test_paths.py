"""Every command and every kind of bad path: one sentence, status 2, at once, nothing made."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer

from cascade.cli import values
from cascade.cli.app import app
from cascade.files import require_writable

Command = Callable[..., Any]
READ = (
    values.cascade,
    values.existing,
    values.folder,
    values.named_cascade,
    values.named_folder,
)
WRITTEN = (values.writable,)


def _commands(group: typer.Typer, words: tuple[str, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for made in group.registered_commands:
        name = made.name or made.callback.__name__.replace("_", "-")
        yield (*words, name), made.callback
    for inner in group.registered_groups:
        yield from _commands(inner.typer_instance, (*words, str(inner.name)))


def _holds_path(hint: object) -> bool:
    return hint is Path or any(map(_holds_path, get_args(hint)))


def _options() -> Iterator[tuple[tuple[str, ...], str, Any, bool]]:
    """Words of the command, the flag, its declaration, and whether it takes paths."""
    for words, callback in _commands(app):
        for name, hint in get_type_hints(callback, include_extras=True).items():
            if get_origin(hint) is not Annotated:
                continue
            kind, told = hint.__origin__, hint.__metadata__[0]
            declared = [word for word in told.param_decls or () if word.startswith("--")]
            flag = declared[0] if declared else f"--{name.replace('_', '-')}"
            is_argument = isinstance(told, typer.models.ArgumentInfo)
            yield words, "" if is_argument else flag, told, _holds_path(kind)


OPTIONS = list(_options())
PATHS = [(words, flag, told) for words, flag, told, paths in OPTIONS if paths or told.parser]


def test_every_flag_that_takes_a_path_has_a_parser() -> None:
    missing = [(words, flag) for words, flag, told, paths in OPTIONS if paths and not told.parser]
    assert missing == []
    assert len(PATHS) > 25


def test_every_flag_and_argument_has_its_words() -> None:
    assert [(*words, flag) for words, flag, told, _ in OPTIONS if not told.help] == []


def test_where_files_go_has_two_spellings_everywhere() -> None:
    # Typer keeps the first name of an annotated option in its default's place.
    spelt = [
        {told.default, *told.param_decls}
        for _, flag, told, _ in OPTIONS
        if flag.startswith("--output")
    ]
    assert len(spelt) > 8
    assert all(names == {"--output", "--output-dir", "-o"} for names in spelt)


@pytest.mark.parametrize("words", [("info",), ("export-triton",), ("bench", "stages")])
def test_what_a_command_reads_has_two_spellings(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    flag = "--cascade" if words == ("info",) else "--bundle"
    output = () if words == ("info",) else ("-o", "out")
    one, other = (command(*words, *spelt, *output) for spelt in (("here",), (flag, "here")))
    assert one == other
    assert (one.status, one.err.count("Error: here is no")) == (2, 1)
    for spelt in ((), ("here", flag, "here")):
        done = command(*words, *spelt, *output)
        assert done.status == 2
        assert f"as {flag[2:].upper()} or as {flag}." in done.err


def test_words_are_text() -> None:
    for parser in (values.name, values.path):
        with pytest.raises(typer.BadParameter, match="It is empty"):
            parser(" ")
    with pytest.raises(typer.BadParameter, match="bytes that are no text"):
        values.name("nope-\udcff")
    assert values.path("nope-\udcff") == Path("nope-\udcff")  # a file may be called so


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Kinds of paths that are neither a folder nor can become one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    return {
        "empty": "",
        "blank": " ",
        "a file": "file",
        "below a file": "file/below",
        "too long": "x" * 300,
        "too long a path": "/".join(["x" * 200] * 30),
        "a loop": "loop",
        "not of this world": "/proc/nope",
        "broken bytes": "nope-\udcff",
        "markup": "[red]nope[/red]",
    }


@pytest.mark.parametrize(
    ("words", "flag", "told"), PATHS, ids=[" ".join([*words, flag]) for words, flag, _ in PATHS]
)
def test_bad_paths(
    command: Command,
    bad: dict[str, str],
    tmp_path: Path,
    words: tuple[str, ...],
    flag: str,
    told: Any,
) -> None:
    before = sorted(tmp_path.rglob("*"))
    harmless = {"broken bytes", "markup"}  # names that a new folder may well have
    for kind, text in bad.items():
        if told.parser in WRITTEN and kind in harmless:
            continue
        if told.parser in (values.path, values.name, values.existing) and kind == "a file":
            continue
        if told.parser is values.name and kind not in ("empty", "blank") and flag:
            continue
        if told.parser not in (*READ, *WRITTEN, values.path, values.name):
            continue
        done = command(*words, *([flag] if flag else []), text)
        assert done.status == 2, (kind, done)
        assert "Traceback" not in done.err, kind
        assert done.err.strip(), kind
        assert sorted(tmp_path.rglob("*")) == before, kind


@pytest.mark.parametrize("relative", ["new", "new/deep/er", "."])
def test_a_place_that_can_be_written_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, relative: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (Path(relative), tmp_path / relative):
        require_writable(place)
    assert list(tmp_path.iterdir()) == []


WITHOUT_TORCH = """
import sys
from cascade.__main__ import main
for words in {commands}:
    sys.argv = ["cascade", *words]
    try:
        main()
    except SystemExit as end:
        assert end.code == 2, (words, end.code)
print(sorted({{"torch", "transformers", "numpy"}} & set(sys.modules)))
"""


def test_a_wrong_path_is_answered_before_torch_is_imported(tmp_path: Path) -> None:
    """What makes the answer quick; how quick it is depends on the machine."""
    commands = [
        ["info", "nowhere"],
        ["sample", "--prompt", "a dog", "--cascade", "nowhere"],
        ["sample", "--prompt", "a dog", "--bundle", "nowhere"],
        ["sample", "--prompt", "a dog", "--embeddings", "nowhere"],
        ["sample", "--prompt", "a dog", "--output", "/proc/nope"],
        ["dreambooth", "--instance-data-dir", "nowhere"],
        ["dreambooth", "--output-dir", "/proc/nope"],
        ["train", "nowhere.toml"],
        ["embed", "--encoder", "nowhere"],
        ["embed", "--captions", "nowhere.txt"],
        ["identifiers", "--cascade", "nowhere"],
        ["import", "--from", "nowhere"],
        ["export-diffusers", "--cascade", "nowhere"],
        ["export", "--cascade", "nowhere"],
        ["export", "--into", "nowhere"],
        ["export-triton", "nowhere"],
        ["bench", "stages", "--bundle", "nowhere"],
        ["serve", "--cascade", "nowhere"],
        ["serve", "--cascade", "it=nowhere"],
        ["serve", "--bundle", "it=nowhere"],
        ["serve", "--keys", "nowhere.toml"],
    ]
    program = WITHOUT_TORCH.format(commands=commands)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1"])
def test_a_console_of_another_encoding_is_no_error(tmp_path: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "cascade", "info", "猫"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"There is no cascade at \\u732b;" in done.stderr
