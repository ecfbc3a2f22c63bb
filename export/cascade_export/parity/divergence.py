"""The first layer whose output in an engine's graph diverges from the network's.

Every parameter keeps its name in the graph, so a layer's output is found without any notes of the
exporter's: it is what the last node computes that reads one of the layer's parameters beside its
input. Those values become further outputs of the graph, ONNX Runtime computes them, and forward
hooks give the same of the module.

Shapes are those of the layers.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from cascade.files import write_bytes
from cascade.stage import Stage
from cascade_export.graph.numerics import Numerics
from cascade_export.graph.probe import Case, Figures, tensor_deviation
from cascade_export.parity.limits import tensor_limit

if TYPE_CHECKING:
    import onnx

# Layers whose last use of a parameter is their output; a norm's activation comes after it.
_LAYERS: Final = (nn.Conv2d, nn.Linear, nn.LayerNorm)


class Divergence(Figures):
    """The first layer of a stage that diverges by more than its share.

    Attributes:
        before: the layer before it, in the order of the graph, which is still right; empty where
            the first of all diverges.
    """

    stage: str
    layer: str
    node: str
    before: str
    engine: float
    limit: float

    @property
    def sentence(self) -> str:
        """Describe it in a sentence."""
        behind = f", behind {self.before}" if self.before else ""
        return (
            f"stage '{self.stage}' first departs at {self.layer} (node {self.node}{behind}): "
            f"{self.engine:.2g} relative deviation, {self.limit:.2g} allowed"
        )

    @property
    def island(self) -> str:
        """Return the module to leave in fp32: the block around the layer, with what leads to it."""
        return self.layer.rpartition(".")[0] or self.layer


def first_divergence(
    stage: Stage, baseline: nn.Module, graph: Path, case: Case, numerics: Numerics
) -> Divergence | None:
    """Find the first layer whose output in the graph diverges from the module's.

    Args:
        graph: the exported `graph.onnx`, its weights beside it; ONNX Runtime must be able to run
            it, which excludes bf16.

    Returns:
        The layer, or None where every layer keeps its limit.
    """
    layers = [name for name, one in stage.network.named_modules() if isinstance(one, _LAYERS)]
    exact = layer_outputs(stage.network, layers, case)
    rounded = layer_outputs(baseline, layers, case)
    before = ""
    for layer, (node, output) in graph_outputs(graph, layers, case).items():
        if layer not in exact or output.shape != exact[layer].shape:
            continue  # split in two by the network (`ResBlock.skip`): the next layer says
        limit = tensor_limit(tensor_deviation(rounded[layer], exact[layer]), numerics)
        deviation = tensor_deviation(output, exact[layer]).relative
        if not deviation <= limit:  # NaN too
            return Divergence(
                stage=stage.config.name,
                layer=layer,
                node=node,
                before=before,
                engine=deviation,
                limit=limit,
            )
        before = layer
    return None


def layer_outputs(network: nn.Module, layers: Iterable[str], case: Case) -> dict[str, Tensor]:
    """Return the output of each of a module's layers, on the CPU; a layer not called is left out.

    A wrapper around the network, whose own name comes before the layers' names, is seen through.
    """
    wanted = tuple(layers)
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: outputs.__setitem__(name, output.float().cpu())

    modules = dict(network.named_modules())
    prefixes = ("", *(f"{name}." for name, _ in network.named_children()))
    prefix = next(prefix for prefix in prefixes if f"{prefix}{wanted[0]}" in modules)
    with ExitStack() as stack:
        for name in wanted:
            stack.callback(modules[f"{prefix}{name}"].register_forward_hook(keep(name)).remove)
        case.answer(network, next(network.parameters()).device)
    return outputs


def graph_outputs(graph: Path, layers: Iterable[str], case: Case) -> dict[str, tuple[str, Tensor]]:
    """Return the node that makes each layer's output, and that output, in the graph's order."""
    import onnx
    import onnxruntime

    model = onnx.load(str(graph), load_external_data=False)
    values = layer_values(model.graph, set(layers))
    known = {output.name for output in model.graph.output}
    for _, value in values.values():
        if value not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=value))
    # Beside the graph, since the weights that it points to must lie in its own folder.
    probe = graph.with_name(f".{graph.stem}.{os.getpid()}.probe.onnx")
    try:
        write_bytes(model.SerializeToString(), probe)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors; a probe need not be fast
        session = onnxruntime.InferenceSession(
            str(probe), options, providers=["CPUExecutionProvider"]
        )
        names = [value for _, value in values.values()]
        wanted = {one.name for one in session.get_inputs()}
        feeds = {name: one.numpy() for name, one in case.inputs.items() if name in wanted}
        answers = session.run(names, feeds)
    finally:
        probe.unlink(missing_ok=True)
    return {
        layer: (node, torch.from_numpy(np.asarray(answer, dtype=np.float32)))
        for (layer, (node, _)), answer in zip(values.items(), answers, strict=True)
    }


def layer_values(graph: "onnx.GraphProto", layers: set[str]) -> Mapping[str, tuple[str, str]]:
    """Find the node and the value that are each layer's output, in the graph's order."""
    # Which layers' parameters a value is made of, if of nothing else but constants.
    made_of: dict[str, frozenset[str]] = {}
    for tensor in graph.initializer:
        made_of[tensor.name] = frozenset({tensor.name.rpartition(".")[0]}) & layers
    outputs: dict[str, tuple[str, str]] = {}
    for node in graph.node:
        inputs = [name for name in node.input if name]
        parameters = frozenset[str]().union(*(made_of.get(name, ()) for name in inputs))
        if all(name in made_of for name in inputs):
            for output in node.output:
                made_of[output] = parameters
            continue
        for layer in parameters:
            outputs.pop(layer, None)  # the last node counts, in its own place
            outputs[layer] = (node.name or node.op_type, node.output[0])
    return outputs
