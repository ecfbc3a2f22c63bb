"""OpenVINO: an optional engine for CPUs, the fastest on those that compute in bf16.

It takes the same graph and weights as ONNX Runtime; `pip install 'dreamcascade[openvino]'`.

Shapes: `B` rows, `L` text tokens, `D` width of the text encoder, `H W` pixels.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
    from openvino import CompiledModel, InferRequest, Model


class _Loaded(NamedTuple):
    model: "CompiledModel"
    idle: list["InferRequest"]
    """Requests that no call is using: one serves one call at a time."""

    info: EngineInfo


class OpenVinoEngine:
    """A stage's graph compiled for this CPU.

    Args:
        files: the stage, in fp32 or bf16.
        device: `cpu`.
        options: `threads`.
    """

    def __init__(self, files: StageFiles, device: torch.device, options: EngineOptions) -> None:
        options.check("openvino")
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
        loaded = self._current()
        text, text_mask = fixed_length(text, text_mask, self._files.config.text.max_length)
        feeds = {"x": x, "t": t, "text": text, "text_mask": text_mask}
        if low_res is not None and aug is not None:
            feeds |= {"low_res": low_res, "aug": aug}
        arrays = {name: value.contiguous().numpy() for name, value in feeds.items()}
        try:
            request = loaded.idle.pop()
        except IndexError:  # every request is at work in another thread, or there is none yet
            request = loaded.model.create_infer_request()
        request.infer(arrays, share_inputs=True)
        # The request's memory is the next call's.
        out = torch.from_numpy(request.get_output_tensor(0).data).clone()
        loaded.idle.append(request)
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
            raise closed("openvino")
        return loaded

    def _load(self, files: StageFiles) -> _Loaded:
        import openvino

        info = EngineInfo(
            kind="openvino",
            version=openvino.get_version(),
            precision=files.precision,
            device=str(self.device),
            graph=files.graph.sha256,
            weights=files.weights_sha256,
            batch_invariant=True,
        )
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # The graph's own types: "bf16" would take the fp32 islands with it, and leaves eager's
            # bf16 behind by a factor of two to four.
            "INFERENCE_PRECISION_HINT": "dynamic",
        }
        if self._options.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = self._options.threads
        core = openvino.Core()
        model = core.read_model(files.graph.path)
        if files.weights != files.graph.weights:
            _replace_weights(model, load_file(files.weights))
        return _Loaded(core.compile_model(model, "CPU", settings), [], info)


def _replace_weights(model: "Model", tensors: Mapping[str, Tensor]) -> None:
    """Put a fine-tune's weights in the place of the graph's own: constants of the same names.

    Raises:
        RuntimeError: OpenVINO has renamed a constant, so its weights would be left behind.
    """
    from openvino import Tensor as Memory
    from openvino import Type, op

    left = dict(tensors)
    for node in model.get_ops():
        if node.get_type_name() != "Constant" or node.get_friendly_name() not in left:
            continue
        tensor = left.pop(node.get_friendly_name())
        if tensor.dtype == torch.bfloat16:
            bits = tensor.view(torch.uint16).numpy()
            memory = Memory(bits, list(tensor.shape), Type.bf16)
        else:
            memory = Memory(tensor.numpy())
        node.output(0).replace(op.Constant(memory).output(0))
    if left:
        raise RuntimeError(f"OpenVINO has no constant {min(left)}: {len(left)} weights are missed")


def check_device(device: torch.device, precision: Precision) -> None:
    """Make sure that OpenVINO is there and can compute in a precision on a device.

    Raises:
        UserError: it is not, or cannot.
    """
    try:
        import openvino
    except ImportError:
        raise UserError(
            "The openvino engine needs the package openvino; install it: "
            "pip install 'dreamcascade[openvino]'."
        ) from None
    if device.type != "cpu":
        raise UserError(f"The openvino engine runs on the CPU, not on '{device}'; give cpu.")
    known = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    wanted = {"fp32": "FP32", "fp16": "FP16", "bf16": "BF16"}[precision]
    if wanted not in known:
        raise UserError(
            f"This CPU does not compute in {precision} with OpenVINO; export in fp32, or take "
            "--engine onnxruntime."
        )
