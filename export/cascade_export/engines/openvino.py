"""OpenVINO: an optional engine for CPUs, the fastest on those that compute in bf16.

It takes the same graph and weights as ONNX Runtime; `pip install 'dreamcascade[openvino]'`.
"""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from cascade.config.engine import EngineOptions
from cascade.errors import UserError
from cascade_export.engines.base import EVERY_PRECISION
from cascade_export.engines.version import StageFiles
from cascade_export.engines.weights_engine import Answer, WeightsEngine
from cascade_export.graph.numerics import Numerics

if TYPE_CHECKING:
    from openvino import CompiledModel, InferRequest, Model


class OpenVinoEngine(WeightsEngine):
    """A stage's graph compiled for this CPU."""

    kind = "openvino"
    precisions: ClassVar = {"cpu": EVERY_PRECISION}
    options = frozenset({"threads"})

    @classmethod
    def require(cls, device: torch.device, numerics: Numerics) -> None:
        try:
            import openvino
        except ImportError:
            raise UserError(
                "The openvino engine needs the package openvino; install it: "
                "pip install 'dreamcascade[openvino]'."
            ) from None
        super().require(device, numerics)
        known = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if numerics.precision.upper() not in known:
            raise UserError(
                f"This CPU does not compute in {numerics.precision} with OpenVINO; export in "
                "fp32, or take --engine onnxruntime."
            )

    @classmethod
    def is_batch_invariant(cls, device: torch.device) -> bool:
        return True

    @property
    def version(self) -> str:
        import openvino

        found: str = openvino.get_version()
        return found

    @classmethod
    def load(cls, files: StageFiles, device: torch.device, options: EngineOptions) -> Answer:
        import openvino

        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # The graph's own types: "bf16" would take the fp32 modules with it, and leaves eager's
            # bf16 behind by a factor of two to four.
            "INFERENCE_PRECISION_HINT": "dynamic",
        }
        if options.threads is not None:
            settings["INFERENCE_NUM_THREADS"] = options.threads
        core = openvino.Core()
        model = core.read_model(files.graph.path)
        if files.weights != files.graph.weights:
            _replace_weights(model, load_file(files.weights))
        return partial(_answer, core.compile_model(model, "CPU", settings), [])


def _answer(
    model: "CompiledModel", idle: list["InferRequest"], inputs: Mapping[str, Tensor]
) -> Tensor:
    """Answer a call by one of the idle requests: each serves one call at a time."""
    arrays = {name: value.contiguous().numpy() for name, value in inputs.items()}
    try:
        request = idle.pop()
    except IndexError:  # every request is at work in another thread, or there is none yet
        request = model.create_infer_request()
    request.infer(arrays, share_inputs=True)
    # The request's memory is the next call's.
    out = torch.from_numpy(request.get_output_tensor(0).data).clone()
    idle.append(request)
    return out


def _replace_weights(model: "Model", tensors: Mapping[str, Tensor]) -> None:
    """Replace the graph's weights, constants of the same names, by a fine-tune's.

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
