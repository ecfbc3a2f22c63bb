"""One TensorRT plan on a GPU: opened, run, captured, its weights unloaded and brought back.

Written against the interfaces of TensorRT 10.13 to 11 and TensorRT for RTX 1.7, which are the same
here; not executed yet: `cascade export` proves an engine where it is built.
"""

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cascade.errors import UserError
from cascade_export.engines.offload import Budget
from cascade_export.engines.tensorrt.build import logger
from cascade_export.engines.tensorrt.memory import Lane, Workspace
from cascade_export.engines.tensorrt.targets import FLAVORS, Kind, gpu_target, load_module

OUTPUT = "out"
_ACTIVATIONS = "activations"
_ALIGNMENT = 256  # bytes, of the memory for activations


class TensorRTDevice:
    """The module, stream, buffers and budget that the engines of one GPU share, in turns.

    Args:
        max_memory: bytes for weights; stages that wait leave the GPU where all do not fit.
    """

    def __init__(self, kind: Kind, device: torch.device, max_memory: int | None = None) -> None:
        self.trt = load_module(kind)
        if device.type != "cuda" or gpu_target() is None:
            raise UserError(f"{kind} plans run on an NVIDIA GPU and {device} is none; use another.")
        self.kind: Kind = kind
        self.device = device
        self.log = logger(self.trt)
        self.runtime = self.trt.Runtime(self.log)
        self.lane = Lane(device)
        self.workspace = Workspace(device)
        self.budget = Budget(max_memory)
        self.turn = threading.RLock()


@dataclass(frozen=True)
class _Captured:
    """A recorded call."""

    inputs: Mapping[str, Tensor]
    out: Tensor
    replay: Callable[[], None]


class Session:
    """A plan with the weights it serves.

    Args:
        plan: serialized; kept in host memory, from which its weights come back.
        prepare: called with the engine whenever it was opened anew, such as to refit it.
    """

    def __init__(
        self,
        shared: TensorRTDevice,
        plan: bytes,
        weight_bytes: int,
        prepare: Callable[[Any], None] | None = None,
    ) -> None:
        self.weight_bytes = weight_bytes
        self._shared = shared
        self._plan = plan
        self._prepare = prepare
        # TensorRT for RTX can take an engine's weights away and keep all else.
        self._deferred = FLAVORS[shared.kind].ahead_of_time
        self._engine: Any = None
        self._context: Any = None
        self._captured: dict[tuple[tuple[str, tuple[int, ...]], ...], _Captured] = {}
        self._generation = -1
        if self._deferred:
            check_validity(shared.trt, shared.runtime, plan)
        shared.budget.check(self)

    def ready(self) -> None:
        """Load the weights to the GPU; others leave where the budget needs it."""
        shared = self._shared
        with shared.turn, shared.lane.turn():  # the lane makes its GPU the current one
            shared.budget.use(self)

    def load(self) -> None:
        """Load the weights to the GPU.

        Raises:
            RuntimeError: it could not load them.
        """
        if self._engine is None:
            self._open()
        if self._deferred and not self._engine.load_weights(self._plan):
            raise RuntimeError(f"weights were not loaded: {self._shared.log.reason()}")

    def unload(self) -> None:
        """Take the weights off the GPU, once everything queued is done."""
        self._shared.lane.finish()
        self._captured.clear()
        if not self._deferred:
            self._context = self._engine = None
        elif not self._engine.unload_weights():
            raise RuntimeError(f"weights were not unloaded: {self._shared.log.reason()}")

    def run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Compute the output.

        Args:
            inputs: contiguous tensors on the GPU, of the graph's types, by name.
        """
        with self._shared.turn:
            self.ready()
            for name, value in inputs.items():
                if not self._context.set_input_shape(name, tuple(value.shape)):
                    raise UserError(self._outside(name, value))
            shape = tuple(self._context.get_tensor_shape(OUTPUT))
            dtype = torch_type(self._shared.trt, self._engine.get_tensor_dtype(OUTPUT))
            out = torch.empty(shape, dtype=dtype, device=self._shared.device)
            with self._shared.lane.turn():
                self._replay(inputs, out)
            return out

    def close(self) -> None:
        """Free everything on the GPU."""
        with self._shared.turn:
            self._shared.budget.forget(self)
            self._captured.clear()
            self._context = self._engine = None

    def _open(self) -> None:
        """Deserialize the plan and give its context its part of the shared buffers."""
        shared = self._shared
        if self._deferred:
            shared.runtime.defer_weights_loading = True
        engine = shared.runtime.deserialize_cuda_engine(self._plan)
        if engine is None:
            raise UserError(f"{shared.kind} refuses the plan: {shared.log.reason()}.")
        if self._prepare is not None:
            self._prepare(engine)
        context = execution_context(shared, engine)
        shared.lane.finish()  # before buffers that are in use may move
        shared.workspace.reserve(_buffers(shared.trt, engine, context))
        self._engine, self._context = engine, context  # last: it is whole

    def _replay(self, inputs: Mapping[str, Tensor], out: Tensor) -> None:
        """Replay the call for these shapes, recorded the first time."""
        workspace = self._shared.workspace
        if self._generation != workspace.generation:
            self._captured.clear()
            self._generation = workspace.generation
        key = tuple((name, tuple(value.shape)) for name, value in inputs.items())
        if key not in self._captured:
            fixed = {n: workspace.view(n, v.shape, v.dtype) for n, v in inputs.items()}
            fixed_out = workspace.view(OUTPUT, out.shape, out.dtype)
            _copy(inputs, fixed)
            replay = self._shared.lane.capture(lambda: self._queue(fixed, fixed_out))
            self._captured[key] = _Captured(fixed, fixed_out, replay)
        captured = self._captured[key]
        _copy(inputs, captured.inputs)
        captured.replay()
        out.copy_(captured.out)

    def _queue(self, inputs: Mapping[str, Tensor], out: Tensor) -> None:
        """Queue one call on tensors where they are."""
        size = max(self._engine.device_memory_size_v2, _ALIGNMENT)
        activations = self._shared.workspace.view(_ACTIVATIONS, (size,), torch.uint8)
        self._context.set_device_memory(activations.data_ptr(), size)
        for name, value in (*inputs.items(), (OUTPUT, out)):
            self._context.set_tensor_address(name, value.data_ptr())
        if not self._context.execute_async_v3(self._shared.lane.handle):
            raise RuntimeError(f"the plan did not run: {self._shared.log.reason()}")

    def _outside(self, name: str, value: Tensor) -> str:
        least, _, most = self._engine.get_tensor_profile_shape(name, 0)
        return (
            f"{name} of shape {tuple(value.shape)} lies outside of what the plan takes, "
            f"{tuple(least)} to {tuple(most)}; take fewer or smaller pictures, or export for them."
        )


def check_validity(trt: Any, runtime: Any, plan: bytes) -> None:
    """Ask TensorRT for RTX, from the plan's first bytes, whether it can run here."""
    validity, bits = runtime.get_engine_validity(plan[: runtime.engine_header_size])
    if validity == trt.EngineValidity.INVALID:
        known = trt.EngineInvalidityDiagnostics.__members__.items()
        reasons = [name for name, bit in known if int(bits) & int(bit)]
        raise UserError(
            f"The plan cannot run here ({', '.join(reasons) or 'no reason given'}); export it for "
            "this GPU and version."
        )


def execution_context(shared: TensorRTDevice, engine: Any) -> Any:
    """Return an `IExecutionContext` that takes its memory from the shared buffers."""
    trt = shared.trt
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not FLAVORS[shared.kind].ahead_of_time:
        return engine.create_execution_context(strategy)
    config = engine.create_runtime_config()
    config.set_execution_context_allocation_strategy(strategy)
    # A lazily compiled kernel would come after its fallback was recorded.
    strategies = trt.DynamicShapesKernelSpecializationStrategy
    config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
    return engine.create_execution_context(config)


def torch_type(trt: Any, dtype: Any) -> torch.dtype:
    """Return torch's name of a TensorRT type."""
    return {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
        trt.DataType.INT32: torch.int32,
        trt.DataType.INT64: torch.int64,
        trt.DataType.BOOL: torch.bool,
    }[dtype]


def _buffers(trt: Any, engine: Any, context: Any) -> dict[str, int]:
    """Return the bytes of every buffer at a plan's largest shapes."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    sizes = {_ACTIVATIONS: max(engine.device_memory_size_v2, _ALIGNMENT)}
    for name in names:
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            largest = tuple(engine.get_tensor_profile_shape(name, 0)[2])
            context.set_input_shape(name, largest)
    for name in names:
        dtype = torch_type(trt, engine.get_tensor_dtype(name))
        sizes[name] = math.prod(context.get_tensor_shape(name)) * dtype.itemsize
    return sizes


def _copy(values: Mapping[str, Tensor], places: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        places[name].copy_(value)
