"""`cascade embed` from its flags to a store."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cascade.cli.app import app
from cascade.config.folders import read_stage_config
from cascade.config.stage import TextConfig
from cascade.errors import UserError
from cascade.text.store import EmbeddingStore


def _embed(store: Path, *arguments: str) -> EmbeddingStore:
    result = CliRunner().invoke(app, ["embed", "--output", str(store), *arguments])
    if result.exception is not None:
        raise result.exception
    return EmbeddingStore.open(store)


def test_a_cascade_brings_its_conventions(tiny_cascade: Path, tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a dog\na cat\n")
    store = _embed(
        tmp_path / "store",
        *("--cascade", str(tiny_cascade), "--captions", str(tmp_path / "captions.txt")),
        *("--caption", "a hat", "--encoder-mode", "layerwise", "--device", "cpu"),
    )
    store.require(["a dog", "a cat", "A Hat", ""])
    text = read_stage_config(tiny_cascade / "base16").text
    store.check_text(text)


def test_the_command_in_the_error_adds_what_is_missing(tiny_cascade: Path, tmp_path: Path) -> None:
    store = _embed(tmp_path / "store", "--cascade", str(tiny_cascade), "--caption", "a dog")
    with pytest.raises(UserError) as error:
        store.row("a teapot")
    arguments = shlex.split(str(error.value).partition("cascade embed ")[2])
    _embed(tmp_path / "store", *arguments).require(["a teapot", "a dog"])


def test_an_encoder_alone_takes_the_flags(encoder_folder: Path, tmp_path: Path) -> None:
    store = _embed(
        tmp_path / "store",
        *("--encoder", str(encoder_folder), "--caption", "a dog", "--cleaning", "deepfloyd"),
        *("--max-length", "77", "--unmasked"),
    )
    store.check_text(TextConfig(max_length=77, cleaning="deepfloyd", masked=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to embed"),
        (["--caption", "a"], "one of the two"),
        (["--caption", "a", "--cascade", "mini", "--encoder", "."], "one of the two"),
        (["--caption", "a", "--cascade", "mini", "--max-length", "9"], "has its own conventions"),
        (["--caption", "a", "--cascade", "mini", "--shard", "3/2"], "is no share"),
        (["--caption", "a", "--cascade", "mini", "--encoder-mode", "fp16"], "overflows in float16"),
        (["--caption", "a", "--encoder", "nowhere"], "There is no folder nowhere"),
        (["--captions", "nowhere.txt", "--cascade", "mini"], "There is no file nowhere.txt"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        _embed(tmp_path / "store", *arguments)
    assert not (tmp_path / "store").exists()
