"""Which path a call takes: wishes, measured tables, a user's own table; and that it compiles."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade_kernels import dispatch
from cascade_kernels.launch_table import user_table

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)
SHIPPED = sorted(set(dispatch.ARCHITECTURES.values()))
MEASURED = {"gpu": "a GPU", "date": "2026-01-01", "commit": "0000000", "torch": "2.11.0"}
ROUTES = {
    "joint_attention": [
        {"limits": {"queries": 256}, "training": None, "eager": None, "path": "triton"},
        {"limits": {"queries": 512}, "training": False, "eager": False, "path": "reference"},
        {"limits": {"queries": 1024}, "training": False, "eager": None, "path": "triton"},
    ]
}
LAUNCHES = {
    "joint_attention_forward": [
        {"limits": {"head": 64}, "blocks": {"BLOCK_M": 128}, "num_warps": 8, "num_stages": 2},
        {"limits": {}, "blocks": {"BLOCK_M": 64}, "num_warps": 4, "num_stages": 1},
    ]
}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Call it with an architecture: the CUDA device is then of this one, with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def become(architecture: str) -> None:
        monkeypatch.setattr(dispatch, "architecture", lambda device: architecture)

    dispatch.table.cache_clear()
    yield become
    dispatch.table.cache_clear()


def write_own(device: str, **changes: Any) -> Path:
    path = user_table(device)
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {
        "architecture": device,
        "measured": MEASURED,
        "launches": LAUNCHES,
        "routes": ROUTES,
    }
    path.write_text(json.dumps(held | changes), encoding="utf-8")
    return path


@pytest.mark.parametrize("architecture", SHIPPED)
def test_shipped_tables_are_whole(architecture: str) -> None:
    table = dispatch.shipped_table(architecture)
    assert table.architecture == architecture
    kernels = dispatch.shipped_table("sm_90").launches.keys()
    assert table.launches.keys() == kernels  # one kernel, one row at least, everywhere
    assert all(table.launches.values())
    assert table.measured or not table.routes  # what nobody measured routes nothing


def test_first_row_within_the_limits_answers(on: Callable[[str], None]) -> None:
    on("sm_90")
    write_own("sm_90")
    narrow = dispatch.launch("joint_attention_forward", CUDA, head=64)
    wide = dispatch.launch("joint_attention_forward", CUDA, head=65)
    assert (narrow.blocks, narrow.num_warps, narrow.num_stages) == ({"BLOCK_M": 128}, 8, 2)
    assert wide.blocks == {"BLOCK_M": 64}


def test_shape_beyond_every_limit_is_an_error(on: Callable[[str], None]) -> None:
    on("sm_90")
    path = write_own("sm_90", launches={"norm": [LAUNCHES["joint_attention_forward"][0]]})
    with pytest.raises(RuntimeError, match=rf"{path} has no row for norm with {{'head': 65}}"):
        dispatch.launch("norm", CUDA, head=65)


def test_kernel_missing_from_the_table_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"of sm_90 has no rows for the kernel convolution"):
        dispatch.launch("convolution", CPU)


def test_limit_that_the_kernel_does_not_know_is_an_error(on: Callable[[str], None]) -> None:
    on("sm_90")
    write_own("sm_90")
    with pytest.raises(RuntimeError, match=r"limits head for joint_attention_forward, which knows"):
        dispatch.launch("joint_attention_forward", CUDA, width=64)


@pytest.mark.parametrize(
    ("architecture", "table"),
    [("sm_89", "sm_80"), ("sm_120", "sm_80"), ("sm_103", "sm_90"), ("gfx950", "gfx942")],
)
def test_architecture_without_a_table_takes_its_family_s(
    on: Callable[[str], None], architecture: str, table: str
) -> None:
    on(architecture)
    assert dispatch.table(CUDA).architecture == table


def test_unknown_architecture_is_an_error_and_the_reference_by_default(
    on: Callable[[str], None],
) -> None:
    on("sm_75")
    with pytest.raises(
        RuntimeError, match=r"no launch table for sm_75; write one to .*sm_75\.json"
    ):
        dispatch.launch("joint_attention_forward", CUDA)
    assert dispatch.route("joint_attention", CUDA, False, {"queries": 64}) is None
    pytest.importorskip("triton")
    assert "sm_75" in dispatch.unsupported_reason(CUDA, torch.float16)


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[]",
        json.dumps({"architecture": "sm_90", "measured": None, "launches": {}}),
        json.dumps({"architecture": 90, "measured": None, "launches": {}, "routes": {}}),
        json.dumps(
            {
                "architecture": "sm_90",
                "measured": None,
                "launches": {"norm": [{"limits": {"bytes": "2"}, "blocks": {}, "num_warps": 4}]},
                "routes": {},
            }
        ),
    ],
)
def test_broken_user_table_is_named(on: Callable[[str], None], broken: str) -> None:
    on("sm_90")
    path = write_own("sm_90")
    path.write_text(broken, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{path} is no launch table: "):
        dispatch.launch("joint_attention_forward", CUDA, head=64)


def test_user_table_answers_for_its_device_only(on: Callable[[str], None]) -> None:
    on("sm_90")
    path = write_own("sm_90")
    assert dispatch.table(CUDA).source == str(path)
    assert dispatch.table(CPU).source != str(path)  # the interpreter's answers never change


def test_reference_is_taken_when_asked_for() -> None:
    assert not dispatch.fused("joint_attention", torch.zeros(1), "reference", False)


def test_auto_takes_the_reference_on_a_cpu() -> None:
    assert not dispatch.fused("joint_attention", torch.zeros(1), "auto", False, queries=1)


@pytest.mark.usefixtures("interpreter")
def test_kernel_is_taken_in_the_interpreter_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert dispatch.fused("joint_attention", torch.zeros(1), "triton", False)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(
        ValueError, match=r"joint_attention cannot .*on a CPU; set TRITON_INTERPRET"
    ):
        dispatch.fused("joint_attention", torch.zeros(1), "triton", False)


def test_kernel_for_fp64_cannot_be_had() -> None:
    with pytest.raises(ValueError, match="no kernel for float64"):
        dispatch.fused("joint_attention", torch.zeros(1, dtype=torch.float64), "triton", False)


def test_kernel_without_triton_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_triton_installed", lambda: False)
    with pytest.raises(ValueError, match=r"triton is not installed"):
        dispatch.fused("joint_attention", torch.zeros(1), "triton", False)


def test_unknown_backend_is_an_error() -> None:
    with pytest.raises(ValueError, match="unknown backend 'cudnn'"):
        dispatch.fused("joint_attention", torch.zeros(1), "cudnn", False)  # type: ignore[arg-type]


def routed(training: bool, queries: int) -> bool:
    return dispatch.route("joint_attention", CUDA, training, {"queries": queries}) == "triton"


def test_measured_routes_decide(on: Callable[[str], None]) -> None:
    pytest.importorskip("triton")
    on("sm_90")
    write_own("sm_90")
    assert routed(training=True, queries=256)
    assert not routed(training=True, queries=257)
    assert routed(training=False, queries=1024)
    assert not routed(training=False, queries=1025)
    assert dispatch.route("group_norm_film_silu", CUDA, False, {}) is None


def test_a_route_may_hold_in_a_captured_graph_alone(
    on: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    on("sm_90")
    write_own("sm_90")
    assert routed(training=False, queries=512)  # by the third route
    for name in ("is_initialized", "is_current_stream_capturing"):
        monkeypatch.setattr(torch.cuda, name, lambda: True)
    assert not routed(training=False, queries=512)
    assert routed(training=False, queries=256)
    assert routed(training=False, queries=1024)


def test_routes_may_name_other_paths(on: Callable[[str], None]) -> None:
    pytest.importorskip("triton")
    on("sm_90")
    row = {"limits": {}, "training": True, "eager": True, "path": "cudnn"}
    write_own("sm_90", routes={"joint_attention_backward": [row]})
    assert dispatch.route("joint_attention_backward", CUDA, True, {}) == "cudnn"
    assert dispatch.route("joint_attention_backward", CUDA, False, {}) is None


def test_routes_of_an_older_version_are_told_apart(on: Callable[[str], None]) -> None:
    on("sm_90")
    row = {"limits": {"queries": 256}, "training": None, "triton": True}
    path = write_own("sm_90", routes={"joint_attention": [row]})
    with pytest.raises(
        ValueError, match=rf"{path} is no launch table: its routes .* remove it, .* --tune"
    ):
        dispatch.launch("joint_attention_forward", CUDA, head=64)


@pytest.mark.parametrize("changes", [{"measured": None}, {"architecture": "sm_80"}])
def test_routes_measured_nowhere_or_elsewhere_do_not_count(
    on: Callable[[str], None], changes: dict[str, Any]
) -> None:
    on("sm_90")
    write_own("sm_90", **changes)
    assert not routed(training=False, queries=64)


@pytest.mark.parametrize("dynamic", [False, True])
def test_choice_is_traced_and_guarded(on: Callable[[str], None], dynamic: bool) -> None:
    pytest.importorskip("triton")
    on("sm_90")
    write_own("sm_90")
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=dynamic)
    def choose(x: Tensor) -> Tensor:
        shape = {"queries": x.shape[1]}
        taken = dispatch.route("joint_attention", CUDA, x.requires_grad, shape) == "triton"
        return x + 1 if taken else x - 1

    for batch, queries, taken in (
        (2, 64, True),
        (3, 64, True),
        (4, 2048, False),
        (5, 128, True),
        (6, 512, False),
    ):
        y = choose(torch.zeros(batch, queries))
        assert torch.equal(y, torch.full((batch, queries), 1.0 if taken else -1.0))
    trained = choose(torch.zeros(2, 1024, requires_grad=True))
    assert torch.equal(trained, torch.full((2, 1024), -1.0))
    torch.compiler.reset()


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("backend", ["auto", "triton", "reference"])
def test_wish_is_traced(backend: dispatch.Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def choose(x: Tensor) -> Tensor:
        return x + dispatch.fused("joint_attention", x, backend, True, queries=x.shape[1])

    expected = torch.full((3, 5), 1.0 if backend == "triton" else 0.0)
    assert torch.equal(choose(torch.zeros(3, 5)), expected)
    torch.compiler.reset()


def test_the_mark_of_a_constant_is_the_compilers_own() -> None:
    def function() -> int:
        return 1

    def other() -> int:
        return 1

    official = torch.compiler.assume_constant_result(function)
    assert vars(dispatch._constant(other)) == vars(official)
