"""`cascade serve` before it serves: mistakes are one sentence, told before any long work."""

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = Callable[..., Any]
KEY = f'[[keys]]\nname = "me"\nsha256 = "{"0" * 64}"\n'


def refused(done: Any) -> str:
    """Return the sentence of a command that was refused."""
    assert done.status == 2
    assert done.out == ""
    (sentence,) = done.err.splitlines()
    return str(sentence)


def test_models_have_names_of_their_own(command: Command, tiny_cascade: Path) -> None:
    twice = command("serve", "--cascade", tiny_cascade, "--cascade", f"tiny={tiny_cascade}")
    assert "are both called 'tiny'; call one of them otherwise, as in NAME=" in refused(twice)
    for name in ("a b", "", "a:b", "../a"):
        done = command("serve", "--cascade", f"{name}={tiny_cascade}")
        assert f"'{name}' is no name of a model" in refused(done)


def test_a_folder_may_be_called_as_a_named_one(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a=b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert "a=b is no cascade" in refused(command("serve", "--cascade", "c=a=b"))
    assert "'a=b' is no name of a model" in refused(command("serve", "--cascade", "a=b"))


def test_what_is_no_bundle_is_not_served_as_one(command: Command, tiny_cascade: Path) -> None:
    done = command("serve", "--bundle", tiny_cascade)
    assert "is no bundle; make one with 'cascade export'" in refused(done)


@pytest.mark.parametrize("flags", [("--engine", "openvino"), ("--spinning",), ("--compile",)])
def test_flags_of_bundles_are_refused_without_one(
    command: Command, tiny_cascade: Path, flags: tuple[str, ...]
) -> None:
    done = command("serve", "--cascade", tiny_cascade, *flags)
    assert f"{flags[0]} belongs to a bundle" in refused(done)


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ("", "keys: is missing"),
        ("nonsense", "is not valid TOML"),
        (KEY + KEY, "stands there twice"),
        (KEY.replace("000", "0"), "sha256"),
    ],
)
def test_a_wrong_file_of_keys_is_told(
    command: Command, tiny_cascade: Path, tmp_path: Path, held: str, told: str
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(held)
    file.chmod(0o600)
    assert told in refused(command("serve", "--cascade", tiny_cascade, "--keys", file))


def test_a_port_that_is_taken_is_told_and_so_are_keys_that_everybody_reads(
    command: Command, tiny_cascade: Path, tmp_path: Path
) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(KEY)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        words = ("serve", "--cascade", tiny_cascade, "--port", port, "--keys", file)
        file.chmod(0o600)
        assert f"Port {port} of 127.0.0.1 cannot be listened at" in refused(command(*words))
        file.chmod(0o644)
        assert f"run: chmod 600 {file}" in command(*words).err


def test_an_address_of_another_machine_is_told(command: Command, tiny_cascade: Path) -> None:
    for host in ("192.0.2.1", "nowhere.invalid"):
        done = command("serve", "--cascade", tiny_cascade, "--host", host, "--port", 0)
        assert host in refused(done)


@pytest.mark.parametrize("name", ["fastapi", "uvicorn", "prometheus_client", "sse_starlette"])
def test_a_missing_package_is_named_with_the_command_that_brings_it(
    command: Command, tiny_cascade: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for module in [one for one in sys.modules if one.startswith("cascade.serve.")]:
        monkeypatch.delitem(sys.modules, module)
        monkeypatch.delattr(module, raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    done = command("serve", "--cascade", tiny_cascade)
    assert f"Serving needs {name}; run: pip install 'dreamcascade[serve]'." in refused(done)


def test_options_of_a_model_that_is_not_served_are_told(
    command: Command, tiny_cascade: Path, tmp_path: Path
) -> None:
    file = tmp_path / "serve.toml"
    words = ("serve", "--cascade", tiny_cascade, "--port", 0, "--config", file)
    file.write_text('[options."mine"]\nsteps = 3\n')
    assert "'mine'" in refused(command(*words))
    file.write_text("[options.tiny]\nlast_stage = 'sr99'\n")
    assert "has no stage 'sr99'" in refused(command(*words))
