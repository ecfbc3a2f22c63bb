"""The benchmark: gates, ratios, records and tables follow from what was measured."""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cascade import results
from cascade.config.folders import CONFIGS
from cascade.errors import UserError
from cascade.results import Result
from cascade_bench import harness, measuring
from cascade_bench.harness import bench, cases_of
from cascade_bench.kernels import group_norm_film_silu, joint_attention, shapes
from cascade_bench.kernels.command import OPERATIONS, bench_kernels, case_of, jobs
from cascade_bench.kernels.problem import Function, Gate, KernelProblem, Operation, Shape
from cascade_bench.measuring import admit
from cascade_bench.problem import CannotError, Case
from cascade_bench.records import CaseResult, Peaks, Row, Timing, Work
from cascade_bench.settings import BenchConfig
from cascade_bench.tables import tables

CPU = torch.device("cpu")
WORK = Work(bytes=1000, flops=0)
DRY = BenchConfig(rounds=2, repeats=1, dry_run=True)


def _timed(provider: str, times: Sequence[float], eager: Sequence[float] = ()) -> Row:
    samples = tuple(times)
    timing = Timing(method="graph", cold=samples, warm=samples, eager=tuple(eager))
    return Row(mode="forward", provider=provider, status="ok", error=0.5, timing=timing)


def _case(name: str, *rows: Row, drift: float = 0.0) -> CaseResult:
    return CaseResult(
        group="sampler_step",
        case=name,
        description="B1",
        baseline="x",
        ours="triton",
        work={row.mode: WORK for row in rows},
        drift={row.mode: drift for row in rows},
        state=("", ""),
        rows=rows,
    )


def _result(*cases: CaseResult, **changes: Any) -> Result:
    figures = {
        "cases": [case.model_dump(mode="json") for case in cases],
        "peaks": Peaks(copy_bandwidth=1e9, matmul_rate=1e12).model_dump(),
    }
    return Result.of("bench kernels", DRY, figures, **changes)


def _squares(*functions: Function) -> KernelProblem:
    x = torch.randn(64, generator=torch.Generator().manual_seed(0))
    problem = KernelProblem.of(
        leaves=(x,),
        gradient=torch.ones_like(x),
        plain=lambda x: x * x,
        providers={str(i): lambda f=f: f for i, f in enumerate(functions)},
        work={},
    )
    return replace(problem, baseline="0", ours="0")


class WrongGradient(torch.autograd.Function):
    """x^2 with the gradient x: right only forward."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)  # type: ignore[attr-defined]
        return x * x

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
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

    admitted, rows = admit(_squares(lambda x: x * x, lambda x: x + 1, refuses))
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


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_shape_has_a_name_of_its_own(operation: Operation[Shape]) -> None:
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


@pytest.mark.parametrize("network", sorted(path.stem for path in CONFIGS.glob("*.toml")))
def test_every_configuration_s_levels_are_among_the_shapes(network: str) -> None:
    norms = {
        (case.channels, case.side, case.groups, case.activation)
        for case in group_norm_film_silu.cases()
        if case.film
    }
    attentions = {
        (case.heads, case.queries, case.head, case.text, case.kind)
        for case in joint_attention.cases()
    }
    for level in shapes.levels(network):
        assert (level.channels, level.side, level.groups, level.activation) in norms
        heads = level.channels // level.head
        asked = (heads, level.side**2, level.head, level.text, level.attention)
        assert level.attention == "none" or asked in attentions


def test_a_small_budget_sees_the_most_wanted_shapes_of_both() -> None:
    todo = [(operation.name, shape.name) for operation, shape in jobs()]
    assert len(set(todo)) == len(todo) == sum(len(one.cases()) for one in OPERATIONS)
    assert todo[:4] == [
        ("joint_attention", "mini-base64 16x16"),
        ("group_norm_film_silu", "mini-base64 32x32"),
        ("joint_attention", "mini-base64 16x16 ragged"),
        ("group_norm_film_silu", "mini-base64 32x32 skip"),
    ]
    networks = list(dict.fromkeys(name.partition(" ")[0] for _, name in todo))
    assert networks[:3] == ["mini-base64", "if-i-m", "imagen-base64"]


def _attention_of_xformers(q: Tensor, k: Tensor, v: Tensor, attn_bias: Tensor | None) -> Tensor:
    """Compute what its documentation says, over B N H d, and want what its kernels do of a bias."""
    if attn_bias is not None:
        assert attn_bias.shape == (q.shape[0], q.shape[2], q.shape[1], k.shape[1])
        assert all(step % 8 == 0 for step in attn_bias.stride()[:-1])
    sources = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(*sources, attn_mask=attn_bias).transpose(1, 2)


class _NormOfApex(nn.GroupNorm):
    SUPPORTED_GROUPS = frozenset([2])
    SUPPORTED_CHANNELS = frozenset([8, 12])

    def __init__(self, *args: Any, act: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        assert x.is_contiguous(memory_format=torch.channels_last)
        return F.silu(super().forward(x)) if self.act == "silu" else super().forward(x)


@pytest.mark.parametrize(
    ("operation", "provider", "package", "api"),
    [
        (
            joint_attention.OPERATION,
            "xformers",
            "xformers.ops",
            {"memory_efficient_attention": _attention_of_xformers},
        ),
        (
            group_norm_film_silu.OPERATION,
            "apex",
            "apex.contrib.group_norm",
            {"GroupNorm": _NormOfApex},
        ),
    ],
)
def test_other_libraries_are_called_as_they_are_documented(
    operation: Operation[Any],
    provider: str,
    package: str,
    api: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither can be installed without a GPU: a stand-in with the same call is right."""
    problems = [operation.problem(case, torch.float32, CPU) for case in operation.dry_cases()]
    with pytest.raises(CannotError, match=f"{provider} is not installed"):
        problems[0].providers[provider]()
    parts = package.split(".")
    for i in range(1, len(parts) + 1):
        name = ".".join(parts[:i])
        module = ModuleType(name)
        module.__spec__, module.__path__ = ModuleSpec(name, None), []
        monkeypatch.setitem(sys.modules, name, module)
    vars(sys.modules[package]).update(api)
    for problem in problems:
        assert Gate(problem).excess(problem.providers[provider]()) <= 1


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
        jobs(["conv"])
    with pytest.raises(UserError, match="No case has 'if-v'"):
        jobs(wanted=["if-v"])
    assert len(jobs(["joint_attention"], ["if-i-m"])) == 6
    assert len(jobs(quick=True)) == 3 * len(OPERATIONS)


def _square_case(name: str, *functions: Function) -> Case:
    return Case("squares", name, "64", lambda: _squares(*functions))


def test_a_run_that_was_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    work = harness.bench_case
    monkeypatch.setattr(
        harness, "bench_case", lambda case, how: opened.append(case.name) or work(case, how)
    )
    cases = [_square_case(name, lambda x: x * x, lambda x: x + 1) for name in ("a", "b")]
    stem = tmp_path / "squares"
    first, complete = bench("bench", cases[:1], stem, DRY)
    assert complete
    assert first.trial == "a dry run"
    _, complete = bench("bench", cases, stem, DRY.model_copy(update={"budget": 0.0}))
    assert not complete  # the time is over before it begins
    assert opened == ["a"]
    both, complete = bench("bench", cases, stem, DRY)
    assert complete
    assert opened == ["a", "b"]
    assert cases_of(both)[0] == cases_of(first)[0]
    assert [path.name for path in tmp_path.glob("*.json")] == ["squares.trial.json"]
    with pytest.raises(UserError, match="other code, versions or settings"):
        bench("bench", cases, stem, DRY.model_copy(update={"rounds": 3}))
    told = "".join(table.markdown() for table in tables(both))
    assert "wrong: " in told  # and no figure of it
    assert len(tables(both)) == 3  # a table of every mode


def test_a_budget_for_nothing_leaves_no_files(tmp_path: Path) -> None:
    config = DRY.model_copy(update={"budget": 0.0})
    result, complete = bench_kernels((), (), tmp_path, config, quick=False)
    assert not complete
    assert not cases_of(result)
    assert not list(tmp_path.iterdir())


def test_a_lost_device_ends_the_run_and_is_passed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that loses the device is no refusal; the next run goes on behind it."""

    def breaks(x: Tensor) -> Tensor:
        raise torch.AcceleratorError("an illegal memory access was encountered")

    problem = _squares(breaks)
    assert admit(problem)[1][0].status == "cannot"
    for module in (measuring, harness):
        monkeypatch.setattr(module, "lost", lambda device: True)
    with pytest.raises(torch.AcceleratorError):
        admit(problem)
    cases = [_square_case(name, breaks) for name in ("a", "b")]
    for done in (1, 2):
        with pytest.raises(UserError, match="lost the device"):
            bench("bench", cases, tmp_path / "squares", DRY)
        held = cases_of(Result.load(tmp_path / "squares.trial.json"))
        assert [case.case for case in held] == ["a", "b"][:done]
    row = held[0].find("forward", "0")
    assert row is not None
    assert row.reason == "AcceleratorError: an illegal memory access was encountered"


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_the_kernels_pass_their_gates(
    operation: Operation[Shape], kernel_device: torch.device, tmp_path: Path
) -> None:
    config = DRY.model_copy(update={"device": kernel_device.type})
    cases = [case_of(operation, shape, config) for shape in operation.dry_cases()]
    result, _ = bench("bench kernels", cases, tmp_path / "kernels", config)
    for case in cases_of(result):
        row = case.find("forward", "triton")
        assert row is not None
        assert row.status == "ok", row.reason


def test_a_ratio_is_against_the_fastest_that_passed_pair_by_pair() -> None:
    wrong = Row(mode="forward", provider="fast and wrong", status="wrong")
    case = _case("a", _timed("triton", [2, 4]), _timed("x", [6, 12]), _timed("y", [3, 6]), wrong)
    assert case.best("forward") == "y"
    assert case.gain("forward") == 1.5  # though the machine was twice as slow at last
    unsteady = _case("a", _timed("triton", [2, 2]), _timed("x", [6, 6]), drift=0.05)
    assert unsteady.gain("forward") is None


def test_tables_list_losses_reasons_and_invalid_shapes() -> None:
    failed = Row(mode="forward", provider="triton", status="wrong", reason="5 times the error")
    (table,) = tables(
        _result(
            _case("lost", _timed("triton", [4, 4]), _timed("x", [3, 3])),
            _case("won", _timed("triton", [1, 1]), _timed("x", [3, 3])),
            _case("failed", failed, _timed("x", [3, 3])),
            _case("moved", _timed("triton", [1, 1]), _timed("x", [3, 3]), drift=0.1),
        )
    )
    told = table.markdown()
    assert "**0.75**" in told
    assert "| wrong: 5 times the error |" in told
    assert "invalid: drift of 10.0%" in told
    # sqrt(0.75 * 3); the floor of 1000 bytes at 1e9 bytes a second is 1 us.
    assert "Of 4 cases 2 count: geometric mean 1.50, 1 lost." in told
    assert "| 25% |" in told


def test_tables_judge_eager_calls_by_their_own_clock() -> None:
    (table,) = tables(
        _result(
            _case(
                "lost",
                _timed("triton", [1, 1], [8000, 8000]),
                _timed("x", [3, 3], [6000, 6000]),
                _timed("y", [2, 2], [7000, 7000]),
            ),
            _case("old", _timed("triton", [1, 1]), _timed("x", [3, 3])),
        )
    )
    told = table.markdown()
    assert "| 2.00 | 8, 6 x | **0.75** |" in told  # y is the fastest in a graph, x by launches
    assert "fastest so: 2 cases 1 count: geometric mean 0.75, 1 lost." in told
    assert "| 3.00 | –, – |  |" in told  # of a record without the clock


def test_a_record_without_eager_times_still_loads() -> None:
    held = _timed("triton", [1, 2]).model_dump(mode="json")
    del held["timing"]["eager"]
    row = Row.model_validate_json(json.dumps(held))
    assert row.timing is not None
    assert row.timing.eager == ()


def test_a_record_of_a_changed_checkout_is_a_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DRY.model_copy(update={"dry_run": False})
    for commit, name in (("abc-dirty", "squares.trial.json"), ("abc", "squares.json")):
        monkeypatch.setattr(results, "environment", lambda commit=commit: {"commit": commit})
        bench("bench", [_square_case("a", lambda x: x * x)], tmp_path / "squares", config)
        assert (tmp_path / name).is_file()
