"""What surrounds a plan's execution, against a module that stands in for TensorRT.

It multiplies x by the first weight it was sent, in the buffers it was given. No plan has run;
`cascade export` proves one where it is built.
"""

import ctypes
import threading
from collections.abc import Callable
from contextlib import nullcontext
from enum import IntFlag
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import Tensor

from cascade.config.folders import read_stage_config
from cascade.errors import UserError
from cascade_export.engines.offload import Budget
from cascade_export.engines.tensorrt import engine as tensorrt
from cascade_export.engines.tensorrt.build import builder_config
from cascade_export.engines.tensorrt.engine import TensorRTEngine, refit
from cascade_export.engines.tensorrt.inspect_plan import PlannedMemory
from cascade_export.engines.tensorrt.memory import Workspace
from cascade_export.engines.tensorrt.plan_cache import BuildFacts, BuiltPlan, Fingerprint, PlanCache
from cascade_export.engines.tensorrt.session import Session, TensorRTDevice, check_validity
from cascade_export.engines.tensorrt.targets import Kind
from cascade_export.engines.version import StageFiles, Version
from cascade_export.graph.graph import Graph, TensorSpec
from cascade_export.graph.weights import digest

LARGEST = (8, 3, 4, 4)


class _Diagnostics(IntFlag):
    VERSION_MISMATCH = 2
    UNSUPPORTED_CC = 4


class _Engine:
    """An engine of one input, and its context; weights are sent to it or lie in its plan."""

    num_io_tensors = 2
    device_memory_size_v2 = 1000

    def __init__(self, plan: bytes, workspace: Workspace) -> None:
        self.plan, self.workspace = plan, workspace
        self.weights = {"scale": 0.0, "shift": 0.0}
        self.shape: tuple[int, ...] = LARGEST
        self.addresses: dict[str, int] = {}
        self.create_runtime_config = lambda: SimpleNamespace(
            set_execution_context_allocation_strategy=lambda _: None
        )
        self.get_tensor_name = ("x", "out").__getitem__
        self.get_tensor_mode = {"x": "input", "out": "output"}.__getitem__
        self.get_tensor_dtype = lambda name: "float"
        self.get_tensor_profile_shape = lambda *_: ((1, 3, 4, 4), (2, 3, 4, 4), LARGEST)
        self.get_tensor_shape = lambda name: self.shape
        self.set_tensor_address = self.addresses.__setitem__
        self.set_device_memory = lambda address, size: self.addresses.update(memory=address)

    def create_execution_context(self, _: object) -> "_Engine":
        return self

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return name == "x" and shape[0] <= LARGEST[0]

    def execute_async_v3(self, stream: int) -> bool:
        view = self.workspace.view
        x, out = (view(name, self.shape, torch.float32) for name in ("x", "out"))
        memory = view("activations", (1000,), torch.uint8)
        at = {"x": x.data_ptr(), "out": out.data_ptr(), "memory": memory.data_ptr()}
        out.copy_(x * self.weights["scale"])
        return self.addresses == at

    def load_weights(self, plan: bytes) -> bool:
        self.weights = {"scale": float(plan), "shift": 0.0}
        return True

    def unload_weights(self) -> bool:
        self.weights = {}
        return True


class _Refitter:
    """Takes weights; `forgetful` leaves one open, as an engine of another graph would."""

    forgetful = False
    num_errors = 0

    def __init__(self, engine: "_Engine | _Refitter", _: object) -> None:
        self.engine = engine.engine if isinstance(engine, _Refitter) else engine
        self.sent: dict[str, float] = engine.sent if isinstance(engine, _Refitter) else {}

    def load_model_proto(self, model: bytes, path: str) -> bool:
        return True

    def load_initializer(self, name: str, address: int, size: int) -> bool:
        self.sent[name] = ctypes.c_float.from_address(address).value
        return size == 4

    def refit_model_proto(self) -> bool:
        return True

    def get_missing_weights(self) -> list[str]:
        return sorted({*self.engine.weights} - {*self.sent}) + ["hidden"] * self.forgetful

    def refit_cuda_engine(self) -> bool:
        self.engine.weights = dict(self.sent)
        return True


class _Lane:
    """Counts what would be recorded."""

    handle = 7
    captures = 0
    turn = nullcontext

    def capture(self, queue: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        return queue

    def finish(self) -> None:
        """Nothing is queued."""


def _module() -> Any:
    types = dict.fromkeys(("HALF", "BF16", "INT32", "INT64", "BOOL"), "")
    return SimpleNamespace(
        __version__="11.3.0",
        BuilderFlag=SimpleNamespace(TF32="tf32", REFIT="refit", REQUIRE_USER_ALLOCATION="user"),
        ComputeCapability=SimpleNamespace(__members__={"SM89": "89", "SM120": "120"}),
        DataType=SimpleNamespace(**{n: n for n in types}, FLOAT="float"),
        TensorIOMode=SimpleNamespace(INPUT="input"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=2),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER=1),
        EngineValidity=SimpleNamespace(VALID=0, INVALID=2),
        EngineInvalidityDiagnostics=_Diagnostics,
        Refitter=_Refitter,
        OnnxParserRefitter=_Refitter,
    )


def _device(kind: Kind, budget: int | None = None) -> Any:
    """A `TensorRTDevice` without a device."""
    workspace = Workspace(torch.device("cpu"))
    return SimpleNamespace(
        trt=_module(),
        kind=kind,
        device=torch.device("cpu"),
        log=SimpleNamespace(reason=lambda: "magic tag does not match"),
        runtime=SimpleNamespace(
            engine_header_size=4,
            get_engine_validity=lambda _: (0, 0),
            deserialize_cuda_engine=lambda plan: (
                None if plan == b"broken" else _Engine(plan, workspace)
            ),
        ),
        lane=_Lane(),
        workspace=workspace,
        budget=Budget(budget),
        turn=threading.RLock(),
    )


def _x(rows: int) -> Tensor:
    return torch.arange(rows * 48, dtype=torch.float32).view(rows, *LARGEST[1:])


@pytest.mark.parametrize(
    ("most", "expected"),
    [(10, ["+b", "+1", "-1", "+2", "-b", "+1", "-2"]), (None, ["+b", "+1", "+2", "-2"])],
)
def test_the_longest_unused_weights_leave_first(most: int | None, expected: list[str]) -> None:
    events: list[str] = []

    def part(name: str, size: int) -> Any:
        load, unload = (lambda sign=sign: events.append(f"{sign}{name}") for sign in "+-")
        return SimpleNamespace(weight_bytes=size, load=load, unload=unload)

    budget = Budget(most)
    base, first, second = part("b", 5), part("1", 4), part("2", 3)
    for one in (base, first, base, second, first):
        budget.use(one)
    budget.forget(second)
    budget.forget(second)
    assert events == expected
    if most is not None:
        with pytest.raises(UserError, match=r"weights take 12 MB and the limit is 0 MB; raise"):
            budget.check(part("large", 12_000_000))


def test_stages_share_buffers_as_large_as_the_largest() -> None:
    workspace = Workspace(torch.device("cpu"))
    workspace.reserve({"x": 400, "out": 400})
    small = workspace.view("x", (2, 5), torch.float32)
    workspace.reserve({"x": 200, "out": 300})
    assert workspace.view("x", (10, 10), torch.float32).data_ptr() == small.data_ptr()
    assert workspace.generation == 2
    workspace.reserve({"x": 800})
    assert workspace.generation == 3
    with pytest.raises(ValueError, match="x needs 804 bytes"):
        workspace.view("x", (201,), torch.float32)


def test_a_call_is_recorded_once_for_its_shape_until_buffers_move() -> None:
    shared = _device("tensorrt-rtx")
    session = Session(shared, b"2.0", weight_bytes=1)
    first, second = session.run({"x": _x(2)}), session.run({"x": _x(2) + 1})
    assert torch.equal(first, 2 * _x(2))  # an answer is the caller's own
    assert torch.equal(second, 2 * _x(2) + 2)
    assert shared.lane.captures == 1
    session.run({"x": _x(3)})
    assert shared.lane.captures == 2
    shared.workspace.reserve({"x": 10**6})
    assert torch.equal(session.run({"x": _x(2)}), 2 * _x(2))
    assert shared.lane.captures == 3
    session.unload()  # weights may come back to another address
    session.load()
    session.run({"x": _x(2)})
    assert shared.lane.captures == 4


def test_weights_of_idle_stages_leave_and_come_back() -> None:
    shared = _device("tensorrt-rtx", budget=10)
    base, larger = (Session(shared, plan, weight_bytes=6) for plan in (b"2.0", b"3.0"))
    for session, factor in ((base, 2), (larger, 3), (base, 2)):
        assert torch.equal(session.run({"x": _x(1)}), factor * _x(1))
    assert larger._engine.weights == {}
    larger.close()
    base.close()
    assert base._engine is None


def test_what_the_runtime_refuses_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(_device("tensorrt-rtx"), b"2.0", weight_bytes=1)
    with pytest.raises(UserError, match=r"x of shape \(9, 3, 4, 4\) lies outside .* to \(8, 3, 4"):
        session.run({"x": _x(9)})
    with pytest.raises(UserError, match=r"tensorrt refuses the plan: magic tag does not match\."):
        Session(_device("tensorrt"), b"broken", weight_bytes=1).load()
    shared = _device("tensorrt-rtx")
    found = _Diagnostics.VERSION_MISMATCH | _Diagnostics.UNSUPPORTED_CC
    shared.runtime.get_engine_validity = lambda header: (2 * (header == b"head"), found)
    with pytest.raises(UserError, match=r"cannot run here \(VERSION_MISMATCH, UNSUPPORTED_CC\)"):
        check_validity(shared.trt, shared.runtime, b"header and the rest")
    monkeypatch.setattr("cascade_export.engines.tensorrt.session.load_module", lambda _: _module())
    with pytest.raises(UserError, match=r"tensorrt plans run on an NVIDIA GPU and cpu is none"):
        TensorRTDevice("tensorrt", torch.device("cpu"))


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        ("tensorrt", [("set", "refit")]),
        ("tensorrt-rtx", [("set", "user"), ("target", "89", 0), ("target", "120", 1)]),
    ],
)
def test_the_builder_gets_all_of_the_fingerprint(kind: Kind, first: list[tuple[Any, ...]]) -> None:
    calls: list[tuple[object, ...]] = []
    profile = SimpleNamespace(set_shape=lambda *shape: calls.append(("shape", *shape)))
    config = SimpleNamespace(
        set_flag=lambda flag: calls.append(("set", flag)),
        clear_flag=lambda flag: calls.append(("clear", flag)),
        set_compute_capability=lambda *target: calls.append(("target", *target)),
        add_optimization_profile=lambda one: calls.append(("profile", one is profile)),
    )
    builder = SimpleNamespace(
        create_builder_config=lambda: config, create_optimization_profile=lambda: profile
    )
    spec = TensorSpec("x", "float32", ("batch", 3))
    builder_config(_module(), builder, [spec], _fingerprint("g", kind))
    ends = [("shape", "x", (1, 3), (2, 3), (8, 3)), ("profile", True)]
    assert calls == [("clear", "tf32"), *first, *ends]
    assert getattr(config, "num_compute_capabilities", 0) == len(first) - 1


def _fingerprint(graph: str, kind: Kind) -> Fingerprint:
    return Fingerprint(
        graph=graph,
        weights="w" if kind == "tensorrt-rtx" else None,
        precision="fp32",
        quantisation="none",
        profile={"batch": (1, 2, 8)},
        kind=kind,
        version="11.3.0",
        targets=(89, 120),
        flags=("REQUIRE_USER_ALLOCATION",) if kind == "tensorrt-rtx" else ("REFIT",),
        exporter={},
    )


def _weights(path: Path, scale: float, **more: float) -> Path:
    values = {"scale": scale, "shift": 0.5} | more
    save_file({name: torch.tensor([value]) for name, value in values.items()}, path)
    return path


@pytest.fixture
def files(
    tmp_path: Path,
    tiny_cascade: Path,
    monkeypatch: pytest.MonkeyPatch,
    thin_graph: Callable[..., Graph],
) -> StageFiles:
    """A stage, x times one weight plus another, with a plan that is sent its weights."""
    monkeypatch.setattr(tensorrt, "gpu_target", lambda _: 89)
    weights = _weights(tmp_path / "weights.safetensors", 2.0)
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["a"]),
        helper.make_node("Add", ["a", "shift"], ["out"]),
    ]
    graph = thin_graph(weights, nodes, TensorProto.FLOAT, LARGEST)
    facts = BuildFacts(layers=(), memory=PlannedMemory(weights=8), log=(), seconds=1)
    fingerprint = _fingerprint(graph.sha256, "tensorrt")
    stored = PlanCache(tmp_path / "engines").obtain(fingerprint, lambda: BuiltPlan(b"plan", facts))
    return StageFiles(
        config=read_stage_config(tiny_cascade / "base16"),
        precision="fp32",
        graph=graph,
        weights=weights,
        weights_sha256=digest(weights),
        plan=stored.folder,
    )


class _OfX(TensorRTEngine):
    """The stand-in has one input; the others of a stage are left out."""

    def answer(self, x: Tensor) -> Tensor:
        with self.pinned() as plan:
            return plan.answer({"x": x})  # type: ignore[attr-defined]


def test_a_swap_there_and_back_restores_every_weight(files: StageFiles, tmp_path: Path) -> None:
    engine = _OfX(files, _device("tensorrt"))
    assert engine.info.max_batch == 8
    assert engine.side == files.config.size  # its plan's
    assert not engine.info.batch_invariant
    before, key = engine.answer(_x(2)), engine.info
    assert torch.equal(before, 2 * _x(2))
    engine.swap(_weights(tmp_path / "tuned.safetensors", 3.0))
    assert torch.equal(engine.answer(_x(2)), 3 * _x(2))
    assert engine.info != key
    engine.swap(files.weights)
    assert torch.equal(engine.answer(_x(2)), before)
    assert engine.info == key
    with engine.pinned() as plan:
        session = plan.session  # type: ignore[attr-defined]
    assert session._engine.weights == {"scale": 2.0, "shift": 0.5}
    engine.close()
    with pytest.raises(RuntimeError, match="tensorrt engine was closed"):
        engine.answer(_x(2))
    assert session._engine is None


def test_a_pinned_plan_keeps_its_weights_through_a_swap_and_leaves_the_gpu_with_its_pin(
    files: StageFiles, tmp_path: Path
) -> None:
    shared = _device("tensorrt", budget=8)  # room for one
    engine = _OfX(files, shared)
    tuned = _weights(tmp_path / "tuned.safetensors", 3.0)
    with engine.pinned() as held, engine.pinned() as again:
        assert held is again
        engine.swap(tuned)
        assert torch.equal(engine.answer(_x(2)), 3 * _x(2))
        # Its weights had to leave, and are sent anew.
        assert torch.equal(held.answer({"x": _x(2)}), 2 * _x(2))  # type: ignore[attr-defined]
    assert held.session._engine is None  # type: ignore[attr-defined]
    assert torch.equal(engine.answer(_x(2)), 3 * _x(2))
    with engine.pinned():
        tuned.unlink()
        engine.swap(files.weights)
        assert torch.equal(engine.answer(_x(2)), 2 * _x(2))


def test_a_refused_swap_leaves_the_old_weights(
    files: StageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(candidate: Version, tuned: StageFiles) -> None:
        assert candidate.files is tuned
        if tuned.weights.name == "bad.safetensors":
            raise UserError("the pictures depart; export again.")

    engine = _OfX(files, _device("tensorrt"), check)
    with pytest.raises(UserError, match="the pictures depart"):
        engine.swap(_weights(tmp_path / "bad.safetensors", 9.0))
    with pytest.raises(UserError, match="more"):
        engine.swap(_weights(tmp_path / "extra.safetensors", 9.0, more=1.0))
    assert torch.equal(engine.answer(_x(1)), 2 * _x(1))
    good = _weights(tmp_path / "good.safetensors", 3.0)
    monkeypatch.setattr(_Refitter, "forgetful", True)
    shared = _device("tensorrt")
    for refused in (
        lambda: engine.swap(good),
        lambda: refit(shared, _Engine(b"", shared.workspace), files.with_weights(good)),
    ):
        with pytest.raises(UserError, match=r"leaves 1 of the plan's weights open, such as 'hid"):
            refused()
    assert torch.equal(engine.answer(_x(1)), 2 * _x(1))  # the old weights go on serving
    monkeypatch.setattr(_Refitter, "forgetful", False)
    engine.swap(good)
    assert torch.equal(engine.answer(_x(1)), 3 * _x(1))
