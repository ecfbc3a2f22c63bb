"""ONNX Runtime: the engine that comes with the project; on a CPU, or on a GPU where its build can.

Weights reach a session as external initializers. `SessionOptions.add_initializer` would be the
shorter way, but after it the optimiser mixes old weights with new ones without a word.

Shapes: `B` rows, `L` text tokens, `D` width of the text encoder, `H W` pixels.
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from cascade.errors import UserError
from cascade_export.engines.base import (
    EngineInfo,
    EngineOptions,
    StageFiles,
    closed,
    fixed_length,
)
from cascade_export.graph.numerics import Precision

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


class _Loaded(NamedTuple):
    session: "InferenceSession"
    info: EngineInfo


class OnnxRuntimeEngine:
    """One session of a stage's graph.

    A row's answer does not depend on its batch, bit for bit, on a CPU: texts are padded to one
    length.

    Args:
        files: the stage.
        device: `cpu`, or `cuda` where onnxruntime-gpu is installed.
        options: `threads` and `spinning`.
    """

    def __init__(self, files: StageFiles, device: torch.device, options: EngineOptions) -> None:
        options.check("onnxruntime")
        check_device(device, files.precision)
        self.device = device
        self._files = files
        self._options = options
        self._loaded: _Loaded | None = self._load(files)

    @property
    def info(self) -> EngineInfo:
        """What answers now."""
        return self._current().info

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Tensor,
        low_res: Tensor | None = None,
        aug: Tensor | None = None,
    ) -> Tensor:
        """Predict as the network does; see `cascade.diffusion.denoiser.Network`."""
        session = self._current().session
        config = self._files.config
        text, text_mask = fixed_length(text, text_mask, config.text.max_length)
        feeds = {"x": x, "t": t, "text": text, "text_mask": text_mask}
        if low_res is not None and aug is not None:
            feeds |= {"low_res": low_res, "aug": aug}
        channels = 3 * (1 + config.unet.learned_variance)
        out = torch.empty((len(x), channels, *x.shape[2:]), device=self.device)
        run(session, feeds, out)
        return out

    def swap(self, weights: Path) -> None:
        """Serve another fine-tune; see `Engine.swap`."""
        files = self._files.with_weights(weights)
        self._loaded, self._files = self._load(files), files

    def close(self) -> None:
        """Free the memory; calls that run already end on their own reference."""
        self._loaded = None

    def _current(self) -> _Loaded:
        loaded = self._loaded
        if loaded is None:
            raise closed("onnxruntime")
        return loaded

    def _load(self, files: StageFiles) -> _Loaded:
        import onnxruntime

        info = EngineInfo(
            kind="onnxruntime",
            version=onnxruntime.__version__,
            precision=files.precision,
            device=str(self.device),
            graph=files.graph.sha256,
            weights=files.weights_sha256,
            batch_invariant=self.device.type == "cpu",
        )
        session = open_session(files.graph.path, files.weights, self.device, self._options)
        return _Loaded(session, info)


def open_session(
    graph: Path, weights: Path, device: torch.device, options: EngineOptions
) -> "InferenceSession":
    """Open a thin graph with the weights of a safetensors file that fits it.

    Raises:
        UserError: ONNX Runtime cannot read the graph, or cannot run it on the device.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors; the warnings tell of its own fallbacks inside a graph
    if options.threads is not None:
        settings.intra_op_num_threads = options.threads
    settings.add_session_config_entry(
        "session.intra_op.allow_spinning", "1" if options.spinning else "0"
    )
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


def run(session: "InferenceSession", feeds: Mapping[str, Tensor], out: Tensor) -> None:
    """Run a session from tensors into a tensor, all on its device, without a copy.

    Args:
        session: from `open_session`.
        feeds: every input by name; floating ones become float32.
        out: gets the only output; its memory is written in place.
    """
    device, index = out.device.type, out.device.index or 0
    binding = session.io_binding()
    held = []  # the binding knows addresses only
    for name, value in feeds.items():
        dtype = torch.float32 if value.is_floating_point() else value.dtype
        tensor = value.to(out.device, dtype).contiguous()
        held.append(tensor)
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


def check_device(device: torch.device, precision: Precision) -> None:
    """Make sure that ONNX Runtime is there and can compute in a precision on a device.

    Raises:
        UserError: it is not, or cannot.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError(
            "The onnxruntime engine needs the package onnxruntime; install it: "
            "pip install 'dreamcascade[export]'."
        )
    if device.type == "cpu":
        if precision == "bf16":
            raise UserError(
                "ONNX Runtime has no bf16 on a CPU; take fp32 or fp16, or --engine openvino."
            )
        return
    if device.type != "cuda":
        raise UserError(f"ONNX Runtime does not run on '{device}' here; give cpu or cuda.")
    if not has_cuda():
        raise UserError(
            "The installed ONNX Runtime is built for CPUs alone; install onnxruntime-gpu in its "
            "place, or give --device cpu."
        )


def has_cuda() -> bool:
    """Whether the installed ONNX Runtime is one for GPUs."""
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
    """What ONNX Runtime raises for a graph that it cannot open."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    return (
        state.Fail,
        state.InvalidArgument,
        state.InvalidGraph,
        state.InvalidProtobuf,
        state.NotImplemented,
    )
