"""The benchmark's plumbing: gates, ratios, goals and tables follow from what was measured."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench import joint_attention, problem, run, shapes
from bench.goals import goals, ratio
from bench.problem import Gate, Problem
from bench.report import BEGIN, END, section, table_of_samples, write_readme, write_report
from bench.results import CaseResult, Mode, Peaks, Results, Row, Timing, Work, write_results
from bench.timing import WallStopwatch, measure
from cascade.errors import UserError

CPU = torch.device("cpu")
WORK = Work(bytes=1000, flops=0, moved=1500)


def _timed(provider: str, times: Sequence[float], mode: Mode = "forward") -> Row:
    samples = tuple(times)
    timing = Timing(method="graph", cold=samples, warm=samples)
    return Row(mode=mode, provider=provider, status="ok", error=0.5, timing=timing)


def _case(name: str, *rows: Row, op: str = "sampler_step", drift: float = 0.0) -> CaseResult:
    return CaseResult(
        op=op,
        case=name,
        description="B1",
        dtype="bfloat16",
        work={row.mode: WORK for row in rows},
        drift={row.mode: drift for row in rows},
        state=("", ""),
        rows=rows,
    )


def _results(*cases: CaseResult) -> Results:
    told = {"machine": "A GPU", "date": "2026-01-01 00:00 UTC", "commit": "abc", "torch": "2.11"}
    peaks = Peaks(copy_bandwidth=1e9, matmul_rate=1e12)
    return Results(dry_run=False, shapes=1, rounds=2, environment=told, peaks=peaks, cases=cases)


def _squares(*functions: problem.Function) -> Problem:
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    return Problem(
        leaves=(x,),
        gradient=torch.ones_like(x),
        plain=lambda x: x * x,
        providers={str(i): lambda f=f: f for i, f in enumerate(functions)},
        work=dict.fromkeys(("forward", "backward", "both"), WORK),
    )


class WrongGradient(torch.autograd.Function):
    """x^2 with the gradient x: right only forward."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        """Square."""
        ctx.save_for_backward(x)  # type: ignore[attr-defined]
        return x * x

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        """Forget the factor 2."""
        (x,) = ctx.saved_tensors  # type: ignore[attr-defined]
        out: Tensor = x * gradient
        return out


def test_a_gate_lets_rounding_pass_and_no_wrong_output_or_gradient() -> None:
    gate = Gate(_squares())
    assert gate.excess(lambda x: x.pow(2)) <= 1
    assert gate.excess(lambda x: x * x + 1e-3) > 1
    assert gate.excess(WrongGradient.apply) > 1
    assert not gate.excess(lambda x: torch.where(x == x[0], torch.nan, x * x)) <= 1


def test_wrong_and_refusing_providers_get_no_numbers() -> None:
    def refuses(x: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this\nand a page of text")

    admitted, rows = run._admit(_squares(lambda x: x * x, lambda x: x + 1, refuses))
    assert list(admitted) == ["0"]
    assert {(row.provider, row.status) for row in rows} == {("1", "wrong"), ("2", "cannot")}
    assert all(row.timing is None for row in rows)
    assert {row.reason for row in rows if row.status == "cannot"} == {
        "RuntimeError: no kernel for this"
    }
    assert len(rows) == 2 * 3  # in every mode


def test_backward_times_no_forward_pass() -> None:
    calls = []

    def counted(x: Tensor) -> Tensor:
        calls.append(x)
        return x * x

    square = _squares()
    backward = square.call(counted, "backward")
    for _ in range(3):
        (gradient,) = backward()  # type: ignore[misc]
    assert len(calls) == 1
    torch.testing.assert_close(gradient, 2 * square.leaves[0])
    both = square.call(counted, "both")
    both()
    both()
    assert len(calls) == 3


def test_stopwatches_take_turns() -> None:
    order: list[str] = []
    watches = {name: WallStopwatch(lambda name=name: order.append(name)) for name in ("a", "b")}
    timings, drift = measure(watches, "a", rounds=2, repeats=1)
    assert order == ["a", "a", "b", "b"] * 2  # cold and warm
    assert {name: len(timing.cold) for name, timing in timings.items()} == {"a": 2, "b": 2}
    assert drift >= 0


@pytest.mark.parametrize("operation", run.OPERATIONS, ids=lambda operation: operation.name)
def test_every_shape_has_a_name_of_its_own(operation: problem.Operation[problem.Shape]) -> None:
    names = [case.name for case in operation.cases()]
    assert len(names) == len(set(names))
    for case in operation.cases():
        assert case.description
        limits = operation.limits(case, torch.bfloat16)
        assert all(set(space.limits) <= limits.keys() for space in operation.spaces.values())


def test_the_shapes_are_those_of_the_networks() -> None:
    medium = {level.side: level for level in shapes.levels("if-i-m")}
    assert {side: level.channels for side, level in medium.items()} == {
        64: 192, 32: 384, 16: 576, 8: 768,
    }  # fmt: skip
    assert [level.side for level in shapes.levels("imagen-sr1024")] == [512, 256, 128, 64]
    cases = {case.name: case for case in joint_attention.cases()}
    assert cases["if-i-xl 16x16"].heads == 33
    assert cases["imagen-sr1024 64x64"].kind == "cross"
    assert sum(case.ragged for case in cases.values()) == len(cases) / 2


def test_attention_s_work_counts_only_what_is_there() -> None:
    # By hand: 2 x (3 queries x (3 + 5) keys) x 4 FLOP x 1 head of 16, bfloat16.
    case = joint_attention.Case("tiny", 2, 1, 3, 16, 5)
    work = joint_attention.problem(case, torch.bfloat16, CPU).work
    assert work["forward"].flops == 2 * 3 * 8 * 4 * 16
    assert work["forward"].bytes == 2 * 16 * 2 * (2 * 3 + 2 * 8)
    assert work["backward"].flops == 2.5 * work["forward"].flops
    cross = joint_attention.Case("tiny", 2, 1, 3, 16, 5, "cross")
    assert joint_attention.problem(cross, torch.bfloat16, CPU).work["forward"].flops == (
        2 * 3 * 5 * 4 * 16
    )


def test_a_choice_that_is_not_there_is_told() -> None:
    with pytest.raises(UserError, match="no operation 'conv'; known are joint_attention"):
        run.jobs(["conv"])
    with pytest.raises(UserError, match="No case has 'if-v'"):
        run.jobs(wanted=["if-v"])
    chosen = run.jobs(["joint_attention"], ["if-i-m"])
    assert len(chosen) == 6
    assert len(run.jobs(quick=True)) == 3 * len(run.OPERATIONS)


def test_a_dry_run_is_never_filed_as_a_result() -> None:
    with pytest.raises(UserError, match="A dry run is no result"):
        run.bench([], run.RESULTS / "gpu" / "x.json", run.DRY_RUN)


@pytest.mark.slow
def test_a_dry_run_goes_through_and_is_taken_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernel_device: torch.device
) -> None:
    if kernel_device.type == "cuda":
        pytest.skip("a dry run is for machines without a GPU")
    todo = run.jobs(["sampler_step"], dry_run=True)
    path = tmp_path / "results.json"
    first, complete = run.bench(todo[:1], path, run.DRY_RUN)
    assert complete
    assert first.dry_run
    ours = first.cases[0].find("forward", "triton")
    assert ours is not None
    assert ours.status == "ok"
    again: list[str] = []
    work = run.bench_case
    monkeypatch.setattr(
        run, "bench_case", lambda op, case, how: again.append(case.name) or work(op, case, how)
    )
    both, complete = run.bench(todo, path, run.DRY_RUN)
    assert complete
    assert again == ["tiny ancestral"]
    assert both.cases[0] == first.cases[0]
    other = run.Settings(rounds=3, dry_run=True)
    with pytest.raises(UserError, match="other code, versions or settings"):
        run.bench(todo, path, other)
    write_report(path)
    written = {file.name for file in tmp_path.iterdir()}
    assert written == {"results.json", "results.csv", "results-sampler_step.svg"}
    assert "dry run" in (tmp_path / "results-sampler_step.svg").read_text()


def test_a_ratio_is_against_the_fastest_that_passed() -> None:
    wrong = Row(mode="forward", provider="fast and wrong", status="wrong")
    case = _case("a", _timed("triton", [2, 2]), _timed("x", [6, 6]), _timed("y", [3, 3]), wrong)
    assert ratio(case, "forward") == 1.5
    assert ratio(case, "forward", ("x",)) == 3
    assert ratio(case, "forward", ("fast and wrong",)) is None
    unsteady = _case("a", _timed("triton", [2, 2]), _timed("x", [6, 6]), drift=0.05)
    assert ratio(unsteady, "forward") is None


def test_goals_are_computed_and_an_incomplete_list_meets_none() -> None:
    names = ("ddim 1024", "ddim 1024 batch", "dpmpp_2m 1024", "ancestral 1024")
    fast = [_case(n, _timed("triton", [1, 1]), _timed("reference", [6, 6])) for n in names]
    slow = [_case(n, _timed("triton", [2, 2]), _timed("reference", [6, 6])) for n in names]

    def verdict(cases: Sequence[CaseResult]) -> tuple[float | None, str]:
        (goal,) = (goal for goal in goals(_results(*cases)) if "1024x1024" in goal.text)
        return goal.found, goal.verdict

    assert verdict(fast) == (pytest.approx(6), "met")
    assert verdict(slow) == (pytest.approx(3), "not met")
    assert verdict(fast[:3]) == (pytest.approx(6), "incomplete: 3 of 4 shapes")
    assert verdict([]) == (None, "not yet measured")


def test_tables_list_losses_reasons_and_invalid_shapes() -> None:
    lost = _case("lost", _timed("triton", [4, 4]), _timed("x", [3, 3]))
    failed = Row(mode="forward", provider="triton", status="wrong", reason="5 times the error")
    told = section(
        _results(
            lost,
            _case("won", _timed("triton", [1, 1]), _timed("x", [3, 3])),
            _case("failed", failed, _timed("x", [3, 3])),
            _case("moved", _timed("triton", [1, 1]), _timed("x", [3, 3]), drift=0.1),
        )
    )
    assert "**0.75x**" in told
    assert "wrong: 5 times the error" in told
    assert "invalid: drift of 10.0%" in told
    # sqrt(0.75 * 3); the floor of 1000 bytes at 1e9 bytes a second is 1 us.
    assert "Geometric mean 1.50x over 2 of 4 shapes; 1 lost." in told
    assert "| 25% |" in told


def test_the_csv_has_a_line_per_provider() -> None:
    cannot = Row(mode="forward", provider="x", status="cannot", reason="too old, says it")
    case = _case("a", _timed("triton", [1, 2, 3]), cannot)
    lines = list(csv.DictReader(io.StringIO(table_of_samples(_results(case)))))
    assert [line["provider"] for line in lines] == ["triton", "x"]
    assert float(lines[0]["cold_p50_us"]) == 2
    assert lines[1]["cold_p50_us"] == ""
    assert lines[1]["reason"] == "too old, says it"


def test_the_readme_is_renewed_between_its_markers(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_readme(tmp_path / "results", readme)
    assert "not yet measured" in readme.read_text()
    case = _case("won", _timed("triton", [1, 1]), _timed("x", [3, 3]))
    write_results(_results(case), tmp_path / "results" / "a-gpu" / "2026-01-01-abc.json")
    write_readme(tmp_path / "results", readme)
    text = readme.read_text()
    assert re.match(rf"before\n{BEGIN}\n### A GPU\n.*\n{END}\nafter\n$", text, re.DOTALL)
    assert "3.00x" in text
    readme.write_text("no markers")
    with pytest.raises(UserError, match="put them where the tables go"):
        write_readme(tmp_path, readme)


def test_the_project_s_readme_holds_what_the_results_say(repository: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    held = (repository / "kernels" / "README.md").read_text()
    readme.write_text(held)
    write_readme(readme=readme)
    assert readme.read_text() == held
