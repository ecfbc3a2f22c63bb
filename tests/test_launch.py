"""torchrun's variables: whole, or refused before anything waits for processes that never come."""

import pytest

from cascade.errors import UserError
from cascade.launch import Launch

WHOLE = {
    "WORLD_SIZE": "4",
    "RANK": "3",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "here",
    "MASTER_PORT": "29500",
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*WHOLE, "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def _set(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_a_process_alone_is_the_first_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Launch.read() == Launch(0, 1, 0)
    _set(monkeypatch, {"WORLD_SIZE": "1", "RANK": "left over"})
    assert Launch.read().is_main


def test_torchruns_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, WHOLE)
    assert Launch.read() == Launch(3, 4, 1, 2)
    assert not Launch.read().is_main
    elastic = {"TORCHELASTIC_RUN_ID": "ours", "TORCHELASTIC_RESTART_COUNT": "2"}
    _set(monkeypatch, elastic)
    assert Launch.read() == Launch(3, 4, 1, 2, "ours", 2)


@pytest.mark.parametrize("name", [name for name in WHOLE if name != "WORLD_SIZE"])
def test_a_variable_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _set(monkeypatch, {key: value for key, value in WHOLE.items() if key != name})
    with pytest.raises(UserError, match=f"WORLD_SIZE is 4 but {name} is not set"):
        Launch.read()


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["", "abc", "-1", "1.5", "9" * 5000, "²"])
def test_what_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    _set(monkeypatch, WHOLE | {name: value})
    with pytest.raises(UserError, match=f"{name} is '.*start with torchrun, or unset it"):
        Launch.read()


def test_a_rank_outside_the_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _set(monkeypatch, WHOLE | {"RANK": "4"})
    with pytest.raises(UserError, match="RANK is 4 and WORLD_SIZE is 4"):
        Launch.read()
