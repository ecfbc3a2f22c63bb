"""What surrounds a plan's execution, against a module that stands in for TensorRT.

It multiplies x by the first weight it was sent, at the addresses it was given. No plan has run;
`cascade export` proves one where it is built.
"""

import ctypes
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import IntFlag
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import Tensor

from cascade.config.folders import read_stage_config
from cascade.errors import UserError
from cascade_export.engines.base import StageFiles
from cascade_export.engines.offload import Budget
from cascade_export.engines.tensorrt import engine as tensorrt
from cascade_export.engines.tensorrt.build import builder_config
from cascade_export.engines.tensorrt.engine import TensorRTEngine, refit
from cascade_export.engines.tensorrt.inspect_plan import PlannedMemory
from cascade_export.engines.tensorrt.memory import Workspace
from cascade_export.engines.tensorrt.plan_cache import BuildFacts, BuiltPlan, Fingerprint, PlanCache
from cascade_export.engines.tensorrt.session import Session, TensorRTDevice, check_validity
from cascade_export.engines.tensorrt.targets import Kind
from cascade_export.graph.graph import Graph, TensorSpec
from cascade_export.graph.weights import digest, places

LARGEST = (8, 3, 4, 4)


class _Diagnostics(IntFlag):
    VERSION_MISMATCH = 2
    UNSUPPORTED_CC = 4


class _Context:
    """An execution context with one input."""

    def __init__(self, engine: "_Engine") -> None:
        self.engine = engine
        self.shape: tuple[int, ...] = LARGEST
        self.addresses: dict[str, int] = {}
        self.memory = (0, 0)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return name == "x" and shape[0] <= LARGEST[0]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def execute_async_v3(self, stream: int) -> bool:
        size = torch.Size(self.shape).numel()
        x, out = ((ctypes.c_float * size).from_address(self.addresses[n]) for n in ("x", "out"))
        for index in range(size):
            out[index] = x[index] * self.engine.weights["scale"]
        return True


class _Engine:
    """An engine of one input, whose weights are sent to it or lie in its plan."""

    num_io_tensors = 2
    device_memory_size_v2 = 1000

    def __init__(self, plan: bytes) -> None:
        self.weights = {"scale": 0.0, "shift": 0.0}
        self.plan = plan

    def create_execution_context(self, _: object) -> _Context:
        return _Context(self)

    def create_runtime_config(self) -> Any:
        return SimpleNamespace(set_execution_context_allocation_strategy=lambda _: None)

    def get_tensor_name(self, index: int) -> str:
        return ("x", "out")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name == "x" else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return "float"

    def get_tensor_profile_shape(self, name: str, profile: int) -> tuple[tuple[int, ...], ...]:
        return (1, *LARGEST[1:]), (2, *LARGEST[1:]), LARGEST

    def load_weights(self, plan: bytes) -> bool:
        self.weights = {"scale": float(plan), "shift": 0.0}
        return True

    def unload_weights(self) -> bool:
        self.weights = {}
        return True


class _Refitter:
    """Takes weights; `forgetful` leaves one open, as an engine of another graph would."""

    forgetful = False

    def __init__(self, engine: _Engine, _: object) -> None:
        self.engine = engine
        self.sent: dict[str, float] = {}

    def get_missing_weights(self) -> list[str]:
        return sorted({*self.engine.weights} - {*self.sent}) + ["hidden"] * self.forgetful

    def refit_cuda_engine(self) -> bool:
        self.engine.weights = dict(self.sent)
        return True


class _ParserRefitter:
    num_errors = 0

    def __init__(self, refitter: _Refitter, _: object) -> None:
        self.refitter = refitter
        self.held: dict[str, int] = {}

    def load_model_proto(self, model: bytes, path: str) -> bool:
        return True

    def load_initializer(self, name: str, address: int, size: int) -> bool:
        self.held[name] = address
        return size == 4

    def refit_model_proto(self) -> bool:
        for name, address in self.held.items():
            self.refitter.sent[name] = ctypes.c_float.from_address(address).value
        return True


class _Lane:
    """Counts what would be recorded."""

    handle = 7

    def __init__(self) -> None:
        self.captures = 0

    @contextmanager
    def turn(self) -> Iterator[None]:
        yield

    def capture(self, queue: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        return queue

    def finish(self) -> None:
        """Nothing is queued."""


def _module() -> Any:
    types = dict.fromkeys(("HALF", "BF16", "INT32", "INT64", "BOOL"), "")
    return SimpleNamespace(
        __version__="11.3.0",
        DataType=SimpleNamespace(**{n: n for n in types}, FLOAT="float"),
        TensorIOMode=SimpleNamespace(INPUT="input"),
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=2),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER=1),
        EngineValidity=SimpleNamespace(VALID=0, INVALID=2),
        EngineInvalidityDiagnostics=_Diagnostics,
        Refitter=_Refitter,
        OnnxParserRefitter=_ParserRefitter,
    )


def _device(kind: Kind, graphs: bool = False, budget: int | None = None) -> Any:
    """A `TensorRTDevice` without a device."""
    runtime = SimpleNamespace(
        engine_header_size=4,
        get_engine_validity=lambda _: (0, 0),
        deserialize_cuda_engine=lambda plan: None if plan == b"broken" else _Engine(plan),
    )
    return SimpleNamespace(
        trt=_module(),
        kind=kind,
        device=torch.device("cpu"),
        cuda_graphs=graphs,
        log=SimpleNamespace(reason=lambda: "magic tag does not match"),
        runtime=runtime,
        lane=_Lane(),
        workspace=Workspace(torch.device("cpu")),
        budget=Budget(budget),
        turn=threading.RLock(),
    )


def _x(rows: int) -> Tensor:
    return torch.arange(rows * 48, dtype=torch.float32).view(rows, *LARGEST[1:])


class _Part:
    """A resident that writes down what happens to it."""

    def __init__(self, name: str, weight_bytes: int, events: list[str]) -> None:
        self.name, self.weight_bytes, self.events = name, weight_bytes, events

    def load(self) -> None:
        self.events.append(f"+{self.name}")

    def unload(self) -> None:
        self.events.append(f"-{self.name}")


def test_the_longest_unused_weights_leave_first() -> None:
    events: list[str] = []
    shared_budget = Budget(10)
    base, first, second = (_Part(n, size, events) for n, size in (("b", 5), ("1", 4), ("2", 3)))
    for part in (base, first, base, second, first):
        shared_budget.use(part)
    assert events == ["+b", "+1", "-1", "+2", "-b", "+1"]
    shared_budget.forget(second)
    shared_budget.forget(second)
    assert events[-1] == "-2"
    with pytest.raises(UserError, match=r"weights take 12 MB and the limit is 0 MB; raise"):
        shared_budget.check(_Part("large", 12_000_000, events))


def test_without_a_budget_everything_stays() -> None:
    events: list[str] = []
    shared_budget = Budget()
    for part in [_Part(str(index), 10**12, events) for index in range(3)]:
        shared_budget.use(part)
    assert events == ["+0", "+1", "+2"]


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


def test_tensors_are_taken_where_they_are() -> None:
    shared = _device("tensorrt-rtx")
    session = Session(shared, b"2.0", weight_bytes=1)
    x = _x(2)
    out = session.run({"x": x})
    assert torch.equal(out, 2 * x)
    context = session._context
    assert context.addresses == {"x": x.data_ptr(), "out": out.data_ptr()}
    activations = shared.workspace.view("activations", (1000,), torch.uint8)
    assert context.memory == (activations.data_ptr(), 1000)


def test_a_call_is_recorded_once_for_its_shape_until_buffers_move() -> None:
    shared = _device("tensorrt-rtx", graphs=True)
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
    base, enlarge = (Session(shared, plan, weight_bytes=6) for plan in (b"2.0", b"3.0"))
    for session, factor in ((base, 2), (enlarge, 3), (base, 2)):
        assert torch.equal(session.run({"x": _x(1)}), factor * _x(1))
    assert enlarge._engine.weights == {}
    enlarge.close()
    base.close()
    assert base._engine is None


def test_a_call_outside_of_the_profile_is_refused() -> None:
    session = Session(_device("tensorrt-rtx"), b"2.0", weight_bytes=1)
    with pytest.raises(UserError, match=r"x of shape \(9, 3, 4, 4\) lies outside .* to \(8, 3, 4"):
        session.run({"x": _x(9)})


def test_what_the_runtime_refuses_is_told_with_its_reason() -> None:
    with pytest.raises(UserError, match=r"tensorrt refuses the plan: magic tag does not match\."):
        Session(_device("tensorrt"), b"broken", weight_bytes=1).load()
    shared = _device("tensorrt-rtx")
    told = _Diagnostics.VERSION_MISMATCH | _Diagnostics.UNSUPPORTED_CC
    shared.runtime.get_engine_validity = lambda header: (2 * (header == b"head"), told)
    with pytest.raises(UserError, match=r"cannot run here \(VERSION_MISMATCH, UNSUPPORTED_CC\)"):
        check_validity(shared.trt, shared.runtime, b"header and the rest")


def test_without_a_gpu_no_engine_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cascade_export.engines.tensorrt.session.load_module", lambda _: _module())
    with pytest.raises(UserError, match=r"tensorrt plans run on an NVIDIA GPU and cpu is none"):
        TensorRTDevice("tensorrt", torch.device("cpu"))


class _Builder:
    """Writes down what the configuration is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []
        note = self.told.append
        profile = SimpleNamespace(set_shape=lambda *given: note(("shape", *given)))
        self.config = SimpleNamespace(
            set_flag=lambda flag: note(("set", flag)),
            clear_flag=lambda flag: note(("clear", flag)),
            set_compute_capability=lambda target, index: note(("target", target, index)),
            add_optimization_profile=lambda given: note(("profile", given is profile)),
        )
        self.create_builder_config = lambda: self.config
        self.create_optimization_profile = lambda: profile


def test_the_builder_is_told_all_of_the_fingerprint() -> None:
    trt = SimpleNamespace(
        BuilderFlag=SimpleNamespace(TF32="tf32", REFIT="refit", REQUIRE_USER_ALLOCATION="user"),
        ComputeCapability=SimpleNamespace(__members__={"SM89": "89", "SM120": "120"}),
    )
    spec = TensorSpec("x", "float32", ("batch", 3))
    builder = _Builder()
    builder_config(trt, builder, [spec], _fingerprint("g", "tensorrt-rtx"))  # type: ignore[arg-type]
    assert builder.config.num_compute_capabilities == 2
    assert builder.told == [
        ("clear", "tf32"),
        ("set", "user"),
        ("target", "89", 0),
        ("target", "120", 1),
        ("shape", "x", (1, 3), (2, 3), (8, 3)),
        ("profile", True),
    ]
    builder = _Builder()
    builder_config(trt, builder, [spec], _fingerprint("g", "tensorrt"))  # type: ignore[arg-type]
    assert builder.told[:2] == [("clear", "tf32"), ("set", "refit")]
    assert not any(told[0] == "target" for told in builder.told)


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


def _graph(folder: Path) -> Graph:
    """x times one weight plus another."""
    weights = _weights(folder / "weights.safetensors", 2.0)
    outside = []
    for name, place in places(weights).items():
        tensor = TensorProto(name=name, dims=place.shape, data_type=TensorProto.FLOAT)
        tensor.data_location = TensorProto.EXTERNAL
        where = {"location": weights.name, "offset": place.offset, "length": place.size}
        for key, value in where.items():
            tensor.external_data.add(key=key, value=str(value))
        outside.append(tensor)
    nodes = [
        helper.make_node("Mul", ["x", "scale"], ["a"]),
        helper.make_node("Add", ["a", "shift"], ["out"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, LARGEST) for n in ("x", "out")]
    model = helper.make_model(helper.make_graph(nodes, "line", ends[:1], ends[1:], outside))
    onnx.save(model, folder / "graph.onnx")
    return Graph.open(folder / "graph.onnx")


@pytest.fixture
def files(tmp_path: Path, tiny_cascade: Path, monkeypatch: pytest.MonkeyPatch) -> StageFiles:
    """A stage with a plan that is sent its weights."""
    monkeypatch.setattr(tensorrt, "gpu_target", lambda _: 89)
    graph = _graph(tmp_path)
    facts = BuildFacts(
        layers=(),
        memory=PlannedMemory(weights=8),
        log=(),
        seconds=1,
    )
    cache = PlanCache(tmp_path / "engines")
    fingerprint = _fingerprint(graph.sha256, "tensorrt")
    stored = cache.obtain(fingerprint, lambda: BuiltPlan(b"a plan", facts))
    return StageFiles(
        config=read_stage_config(tiny_cascade / "base16"),
        precision="fp32",
        graph=graph,
        weights=graph.weights,
        weights_sha256=digest(graph.weights),
        plan=stored.folder,
    )


class _OfX(TensorRTEngine):
    """The stand-in has one input; the others of a stage are left out."""

    def answer(self, x: Tensor) -> Tensor:
        return self._current().session.run({"x": x})


def test_a_swap_there_and_back_restores_every_weight(files: StageFiles, tmp_path: Path) -> None:
    engine = _OfX(files, _device("tensorrt", graphs=True))
    assert engine.info.max_batch == 8
    assert not engine.info.batch_invariant
    before, key = engine.answer(_x(2)), engine.info.key
    assert torch.equal(before, 2 * _x(2))
    engine.swap(_weights(tmp_path / "tuned.safetensors", 3.0))
    assert torch.equal(engine.answer(_x(2)), 3 * _x(2))
    assert engine.info.key != key
    engine.swap(files.weights)
    assert torch.equal(engine.answer(_x(2)), before)
    assert engine.info.key == key
    sent: Mapping[str, float] = engine._current().session._engine.weights
    assert sent == {"scale": 2.0, "shift": 0.5}
    engine.close()
    with pytest.raises(RuntimeError, match="tensorrt engine was closed"):
        engine.answer(_x(2))


def test_a_refused_swap_leaves_the_old_weights(files: StageFiles, tmp_path: Path) -> None:
    def check(candidate: TensorRTEngine, weights: Path) -> None:
        assert isinstance(candidate, TensorRTEngine)
        if weights.name == "bad.safetensors":
            raise UserError("the pictures depart; export again.")

    engine = _OfX(files, _device("tensorrt"), check)
    with pytest.raises(UserError, match="the pictures depart"):
        engine.swap(_weights(tmp_path / "bad.safetensors", 9.0))
    with pytest.raises(UserError, match="more"):
        engine.swap(_weights(tmp_path / "extra.safetensors", 9.0, more=1.0))
    assert torch.equal(engine.answer(_x(1)), 2 * _x(1))
    engine.swap(_weights(tmp_path / "good.safetensors", 3.0))
    assert torch.equal(engine.answer(_x(1)), 3 * _x(1))


def test_a_plan_that_wants_more_weights_is_refused(
    files: StageFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _OfX(files, _device("tensorrt"))
    monkeypatch.setattr(_Refitter, "forgetful", True)
    with pytest.raises(UserError, match="leaves 1 of the plan's weights open"):
        engine.swap(_weights(tmp_path / "tuned.safetensors", 3.0))
    assert torch.equal(engine.answer(_x(1)), 2 * _x(1))  # the old weights go on serving
    with pytest.raises(UserError, match=r"leaves 1 of the plan's weights open, such as 'hidden'"):
        refit(_device("tensorrt"), _Engine(b""), files.graph, files.weights)
