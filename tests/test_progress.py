"""Progress: a bar in a terminal, lines where there is none, nothing where quiet is wanted."""

import io

import pytest
from rich.console import Console

from cascade import progress
from cascade.cli.console import listen
from cascade.progress import EVERY, is_heard, progress_bar, say, spell, warn


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.2, "0 s"),
        (89.4, "89 s"),
        (90, "2 min"),
        (59 * 60, "59 min"),
        (3600, "1 h"),
        (3 * 3600 + 20 * 60, "3 h 20 min"),
        (86399, "1 d"),
        (52 * 3600, "2 d 4 h"),
    ],
)
def test_lengths_of_time_are_said_as_people_say_them(seconds: float, told: str) -> None:
    assert spell(seconds) == told


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still until it is set."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def _lines(clock: list[float], console: Console) -> None:
    with progress_bar(console) as bar:
        task = bar.add_task("base [v]", total=100, details="")
        for step in range(100):
            clock[0] += EVERY / 10
            bar.update(task, details=f"loss {step}")
            bar.advance(task)
        bar.update(task, details="late")


@pytest.mark.usefixtures("heard")
def test_a_log_file_gets_a_line_now_and_then_and_one_at_the_end(clock: list[float]) -> None:
    file = io.StringIO()
    _lines(clock, Console(file=file, force_terminal=False))
    lines = file.getvalue().splitlines()
    assert [line.split()[2] for line in lines] == [
        f"{done}/100" for done in (0, *range(10, 100, 10), 100)
    ]
    assert all(line.startswith("base [v] ") and "loss" in line for line in lines)
    assert "left" in lines[3]
    assert "left" not in lines[-1]


@pytest.mark.usefixtures("heard")
def test_a_terminal_gets_a_bar(clock: list[float]) -> None:
    file = io.StringIO()
    with progress_bar(Console(file=file, force_terminal=True, color_system=None)) as bar:
        bar.add_task("base", total=3, completed=2, details="loss 1")
    assert "2/3 loss 1" in file.getvalue()
    assert "━" in file.getvalue()


def test_nobody_is_told_who_does_not_listen(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    _lines(clock, Console(force_terminal=False))
    say("something")
    assert not is_heard()
    assert capsys.readouterr() == ("", "")
    listen()
    say("[v] {x}")
    warn("[w] {y}")
    assert capsys.readouterr() == ("[v] {x}\n", "[w] {y}\n")
    listen(quiet=True)
    say("something")
    warn("[w] {y}")
    assert capsys.readouterr() == ("", "[w] {y}\n")
