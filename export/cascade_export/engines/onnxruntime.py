"""ONNX Runtime: the engine that comes with the project; on a CPU, or on a GPU where its build can.

Weights reach a session as external initializers. `SessionOptions.add_initializer` would be the
shorter way, but after it the optimizer mixes old weights with new ones without a word.
"""

import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from cascade.config.engine import EngineOptions
from cascade.errors import UserError
from cascade.model.unet import IMAGE_CHANNELS
from cascade_export.engines.base import EVERY_PRECISION
from cascade_export.engines.version import StageFiles
from cascade_export.engines.weights_engine import Answer, WeightsEngine
from cascade_export.graph.numerics import Numerics

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

EXACT_INT8: Final = "session.x64quantprecision"
_BFLOAT16 = 16  # onnx.TensorProto.BFLOAT16; NumPy has no such type
_NUMPY = {
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.int64: np.int64,
    torch.bool: np.bool_,
}


class OnnxRuntimeEngine(WeightsEngine):
    """One session of a stage's graph."""

    kind = "onnxruntime"
    precisions: ClassVar = {"cpu": ("fp32", "fp16"), "cuda": EVERY_PRECISION}
    quantizations = ("int8",)
    options = frozenset({"threads", "spinning"})

    @classmethod
    def default_device(cls) -> str:
        return super().default_device() if has_cuda() else "cpu"

    @classmethod
    def require(cls, device: torch.device, numerics: Numerics) -> None:
        require_package()
        super().require(device, numerics)
        if device.type == "cuda" and not has_cuda():
            raise UserError(
                "The installed ONNX Runtime is built for CPUs alone; install onnxruntime-gpu in "
                "its place, or give --device cpu."
            )

    @property
    def version(self) -> str:
        import onnxruntime

        found: str = onnxruntime.__version__
        return found

    @classmethod
    def is_batch_invariant(cls, device: torch.device) -> bool:
        return device.type == "cpu"  # texts are padded to one length

    @classmethod
    def load(cls, files: StageFiles, device: torch.device, options: EngineOptions) -> Answer:
        session = open_session(files.graph.path, files.weights, device, options)
        channels = IMAGE_CHANNELS * (1 + files.config.unet.learned_variance)

        def answer(inputs: Mapping[str, Tensor]) -> Tensor:
            x = inputs["x"]
            out = torch.empty((len(x), channels, *x.shape[2:]), device=device)
            run(session, inputs, out)
            return out

        return answer


def require_package() -> None:
    """Check that ONNX Runtime is installed."""
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError(
            "The onnxruntime engine needs the package onnxruntime; install it: "
            "pip install 'dreamcascade[export]'."
        )


def open_session(
    graph: Path, weights: Path, device: torch.device, options: EngineOptions
) -> "InferenceSession":
    """Open a thin graph with the weights of a safetensors file that fits it."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors; the warnings tell of its own fallbacks inside a graph
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    settings.add_session_config_entry(
        "session.intra_op.allow_spinning", "1" if options.spinning else "0"
    )
    _share_memory()
    settings.add_session_config_entry("session.use_env_allocators", "1")
    # A fine-tune's weights may outgrow the range in which int8 kernels cannot overflow (see
    # `cascade_export.graph.quantize`): those run on exact kernels then, where the CPU has no VNNI.
    settings.add_session_config_entry(EXACT_INT8, "1")
    tensors = load_file(weights)
    values = [_ort_value(onnxruntime, tensor) for tensor in tensors.values()]
    settings.add_external_initializers(list(tensors), values)
    try:
        session = onnxruntime.InferenceSession(graph, settings, providers=[_provider(device)])
    except _refusals() as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"ONNX Runtime {onnxruntime.__version__} does not take {graph} ({reason}); export "
            "again, or take another engine."
        ) from None
    if device.type == "cuda" and session.get_providers()[0] != "CUDAExecutionProvider":
        raise UserError(
            "ONNX Runtime could not start on the GPU and would have used the CPU; install the "
            "CUDA libraries that its version needs, or give --device cpu."
        )
    return session


def run(session: "InferenceSession", inputs: Mapping[str, Tensor], out: Tensor) -> None:
    """Run a session from tensors into a tensor, all on its device, without a copy.

    Args:
        inputs: every input by name; floating ones become float32.
        out: gets the only output; its memory is written in place.
    """
    device, index = out.device.type, out.device.index or 0
    binding = session.io_binding()
    alive = []  # the binding knows addresses only
    for name, value in inputs.items():
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        tensor = value.to(out.device, dtype).contiguous()
        alive.append(tensor)
        binding.bind_input(
            name, device, index, _NUMPY[dtype], tuple(tensor.shape), tensor.data_ptr()
        )
    binding.bind_output(
        session.get_outputs()[0].name,
        device,
        index,
        _NUMPY[out.dtype],
        tuple(out.shape),
        out.data_ptr(),
    )
    if device == "cuda":  # ONNX Runtime works on a stream of its own
        torch.cuda.current_stream(out.device).synchronize()
    session.run_with_iobinding(binding)
    binding.synchronize_outputs()


@cache
def _share_memory() -> None:
    """Let all sessions compute in the same memory, once a process.

    One of its own is kept by each: 0.3 to 0.5 GB at 256 pixels, more than the weights.
    """
    import onnxruntime

    kind = onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR
    memory = onnxruntime.OrtMemoryInfo("Cpu", kind, 0, onnxruntime.OrtMemType.DEFAULT)
    onnxruntime.create_and_register_allocator(memory, None)


def has_cuda() -> bool:
    """Return whether the installed ONNX Runtime can use a GPU."""
    if importlib.util.find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def _provider(device: torch.device) -> Any:
    if device.type == "cpu":
        return "CPUExecutionProvider"
    return ("CUDAExecutionProvider", {"device_id": device.index or 0})


def _ort_value(onnxruntime: Any, tensor: Tensor) -> Any:
    if tensor.dtype == torch.bfloat16:
        bits = tensor.view(torch.uint16).numpy()
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy())


def _refusals() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises for a graph that it cannot open."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NotImplemented,
    )
