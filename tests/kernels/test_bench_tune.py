"""Tuning: what is tried, where a row goes, and which shapes are routed to a kernel."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cascade.config.base import Frozen
from cascade.progress import progress_bar
from cascade.results import Result
from cascade_bench.harness import cases_of
from cascade_bench.kernels import tune
from cascade_bench.kernels.command import jobs
from cascade_bench.kernels.problem import Space, variant
from cascade_bench.kernels.pruning import MOST, Cost, compiled_costs, compilers, pruned
from cascade_bench.records import CaseResult, Row, Timing, Work
from cascade_kernels import dispatch
from cascade_kernels.launch_table import Launch, LaunchRow, Table, read_table, user_table

CPU = torch.device("cpu")
SMALL, LARGE = Launch({"BLOCK": 16}, 4, 2), Launch({"BLOCK": 64}, 8, 1)
WIDE = LaunchRow({"head": 64}, SMALL)
JOBS = jobs(["joint_attention"], ["if-i-m 16x16"])


def _table(*rows: LaunchRow) -> Table:
    return Table("sm_90", "here", None, {"kernel": rows}, {})


def _result(case: str, forward: float, both: float, eager: float = 2.0, trial: str = "") -> Result:
    rows = [
        Row(
            mode=mode,
            provider=name,
            status="ok",
            timing=Timing(
                method="graph",
                cold=(time, time),
                warm=(time, time),
                eager=(eager, eager) if name == "triton" else (1.0, 1.0),
            ),
        )
        for mode, ours in (("forward", forward), ("both", both))
        for name, time in (("triton", ours), ("cudnn", 1.0))
    ]
    found = CaseResult(
        group="joint_attention",
        case=case,
        description="",
        baseline="cudnn",
        ours="triton",
        work=dict.fromkeys(("forward", "both"), Work(bytes=1, flops=1)),
        drift={"forward": 0.0, "both": 0.0},
        state=("", ""),
        rows=tuple(rows),
    )
    result = Result.of("bench", Frozen(), {"cases": [found.model_dump(mode="json")]})
    return result.model_copy(update={"trial": trial, "environment": {"machine": "A GPU"}})


def test_candidates_vary_what_the_space_names_and_begin_with_the_present() -> None:
    now = Launch({"BLOCK": 32, "OTHER": 7}, 4, 3)
    tried = tune.candidates(now, Space("forward", (), {"BLOCK": (32, 64)}, num_warps=(4, 8)))
    assert tried[0] == now
    assert len(tried) == len({str(launch) for launch in tried}) == 4
    assert all(launch.blocks["OTHER"] == 7 and launch.num_stages == 3 for launch in tried)


def _tried(block: int, warps: int, stages: int) -> LaunchRow:
    return LaunchRow({"head": 64}, Launch({"BLOCK": block}, warps, stages))


def test_few_of_many_candidates_are_timed_and_the_present_one_always() -> None:
    rows = [_tried(block, warps, 2) for block in (16, 32, 64, 128) for warps in (4, 8)]
    costs = [Cost(registers=255, excess=row.launch.blocks["BLOCK"] == 128) for row in rows]
    costs[0] = Cost(excess=True)  # it may spill: it is what runs today
    kept = pruned(rows, costs, "sm_90")
    assert len(kept) == MOST
    assert kept[0] == rows[0]
    # Every other block size's best first: eight warps of 255 registers leave room for one program.
    assert kept[1:3] == [_tried(32, 4, 2), _tried(64, 4, 2)]
    assert all(row.launch.blocks["BLOCK"] < 128 for row in kept)


def test_candidates_rank_by_instruction_then_by_how_many_fit() -> None:
    rows = [_tried(16, 4, 1), *(_tried(64, 4, stages) for stages in (1, 2, 3, 4))]
    kib = 1024
    costs = [
        Cost(),
        Cost(registers=128, shared=100 * kib),  # two fit into 228 KiB
        Cost(registers=128, shared=40 * kib),  # four, by 64 Ki registers
        Cost(registers=128, shared=120 * kib, wgmma=True),
        Cost(registers=255, shared=40 * kib),  # two, by registers
    ]
    stages = [row.launch.num_stages for row in pruned(rows, costs, "sm_90")]
    assert stages == [1, 3, 2, 1, 4]


@pytest.mark.slow
def test_candidates_are_compiled_side_by_side_without_a_gpu() -> None:
    pytest.importorskip("triton")
    table = dispatch.shipped_table("sm_90")
    limits = {"head": 64, "bytes": 2}
    now = table.launch("joint_attention_forward", {**limits, "queries": 64, "tokens": 77})
    rows = [
        LaunchRow(limits, launch)
        for launch in (
            now,
            Launch({**now.blocks, "BLOCK_M": 128, "BLOCK_N": 64}, 8, 2),
            Launch({**now.blocks, "BLOCK_M": 256, "BLOCK_N": 256}, 4, 2),
        )
    ]
    with compilers() as pool, progress_bar(shown=False) as bar:
        costs = list(compiled_costs(pool, bar, table, "joint_attention_forward", rows))
    assert [cost.excess for cost in costs] == [False, False, True]
    assert costs[1].wgmma
    assert 0 < costs[1].registers <= 255
    assert len(pruned(rows, costs, "sm_90")) == 2


def test_a_row_stands_ahead_of_the_wider_and_in_place_of_its_equal() -> None:
    middle = LaunchRow({"head": 64, "queries": 256}, SMALL)
    table = tune.with_row(_table(middle, WIDE), "kernel", LaunchRow(middle.limits, LARGE))
    assert len(table.rows("kernel")) == 2
    assert table.launch("kernel", {"head": 64, "queries": 256}) == LARGE
    for queries, expected in ((64, LARGE), (256, SMALL), (1024, SMALL)):
        finest = LaunchRow({"head": 64, "queries": 64}, LARGE)
        table = tune.with_row(_table(middle, WIDE), "kernel", finest)
        assert table.launch("kernel", {"head": 64, "queries": queries}) == expected
    coarse = LaunchRow({"head": 64, "queries": 1024}, LARGE)
    table = tune.with_row(_table(middle, WIDE), "kernel", coarse)
    assert table.launch("kernel", {"head": 64, "queries": 256}) == SMALL
    assert table.launch("kernel", {"head": 64, "queries": 1024}) == LARGE
    assert table.launch("kernel", {"head": 64, "queries": 4096}) == SMALL


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    shipped = dispatch.table(CPU)
    routed = tune.with_routes(shipped, JOBS, _result("if-i-m 16x16", 0.5, 2.0))
    tune.write_table(routed, tmp_path / "sm_90.json")
    held = read_table(tmp_path / "sm_90.json")
    assert (held.launches, held.routes) == (routed.launches, routed.routes)
    assert held.measured == {"machine": "A GPU"}


def test_a_trial_is_the_user_s_own_table_for_as_long_as_it_lasts() -> None:
    before = os.environ.get("XDG_CACHE_HOME")
    tried = tune.with_row(_table(WIDE), "kernel", LaunchRow({"head": 32}, LARGE))
    with tune.trial(tried):
        held = read_table(user_table("sm_90"))
        assert held.launch("kernel", {"head": 32}) == LARGE
    assert os.environ.get("XDG_CACHE_HOME") == before


def test_routes_take_a_kernel_only_where_it_lost_to_nobody() -> None:
    table = tune.with_routes(_table(), JOBS, _result("if-i-m 16x16", 0.9, 1.1))
    limits = (("head", 64), ("queries", 256), ("tokens", 77), ("bytes", 2))
    found = {
        (route.training, route.eager): route.path
        for route in table.routes["joint_attention"]
        if route.limits == limits
    }
    assert len(table.routes["joint_attention"]) == len(found)
    assert found == {
        (False, False): "triton",
        (True, False): "reference",
        (False, True): "reference",  # launches cost more than the kernel saves
        (True, True): "reference",
    }
    eager = tune.with_routes(_table(), JOBS, _result("if-i-m 16x16", 2.0, 2.0, eager=0.9))
    paths = {route.eager: route.path for route in eager.routes["joint_attention"]}
    assert paths == {False: "reference", True: "triton"}


def test_the_fastest_backward_pass_is_routed_and_counts() -> None:
    result = _result("if-i-m 16x16", 0.9, 1.2)
    (case,) = cases_of(result)
    # Joined it wins in a graph, and not by Python's wall time.
    timing = Timing(method="graph", cold=(0.8, 0.8), warm=(1.0,), eager=(3.0, 3.0))
    joined = Row(mode="both", provider=variant("flash"), status="ok", timing=timing)
    variants = variant("cudnn"), variant("flash")
    case = case.model_copy(update={"variants": variants, "rows": (*case.rows, joined)})
    changed = result.model_copy(update={"figures": {"cases": [case.model_dump(mode="json")]}})
    table = tune.with_routes(_table(), JOBS, changed)
    assert case.best("both") == "cudnn"  # no alternative is ours
    found = {route.eager: route.path for route in table.routes["joint_attention_backward"]}
    assert found == {False: "flash", True: "own"}
    trained = {r.eager: r.path for r in table.routes["joint_attention"] if r.training}
    assert trained == {False: "triton", True: "reference"}


def test_a_trial_measures_no_table() -> None:
    table = tune.with_routes(_table(), JOBS, _result("if-i-m 16x16", 0.9, 0.9, trial="a dry run"))
    assert table.measured is None


def test_cases_share_a_row_by_what_tells_rows_apart() -> None:
    todo = jobs(["joint_attention"], ["if-i-m"])
    found = list(tune.groups(todo, torch.bfloat16))
    forward = [group for group in found if group.kernel == "joint_attention_forward"]
    assert [group.limits["queries"] for group in forward] == [64, 256, 1024]
    assert [len(group.jobs) for group in forward] == [2, 2, 2]  # full-length and ragged


@pytest.mark.slow
def test_tuning_writes_a_row_that_computes_correctly(
    tmp_path: Path, kernel_device: torch.device
) -> None:
    if kernel_device.type == "cuda":
        pytest.skip("a dry run is for machines without a GPU")
    group = next(tune.groups(jobs(["sampler_step"], dry_run=True), torch.float32))
    path = tmp_path / "sm_90.json"
    tried: list[LaunchRow] = []

    def costs(_: Table, kernel: str, rows: Sequence[LaunchRow]) -> list[Cost]:
        tried.extend(rows)
        return [Cost(excess=i > 1) for i, _ in enumerate(rows)]

    row = tune.tune_group(group, path, CPU, torch.float32, costs)
    assert row in tried[:2]
    assert read_table(path).launch(group.kernel, dict(group.limits)) == row.launch
