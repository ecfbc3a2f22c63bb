"""Cleaning of an exported ONNX graph that leaves every parameter alone.

The exporter's own optimizer transposes weights, folds them and merges equal ones (all scales of
fresh norms are ones), after which a fine-tune's tensors have no place to go. The passes here fold
only what no parameter feeds, so that each parameter remains one initializer under its own name.
"""

from collections.abc import Collection, Mapping
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray
from onnxscript.optimizer import _constant_folding as folding

from cascade_export.graph.weights import TensorSpan

_END = 2**63 - 1  # how a slice says "to the last"
_CONSTANT_ELEMENTS = 1 << 18  # what folding may write into the graph: frequencies, shapes, masks


def clean(model: ir.Model, parameters: Collection[str]) -> None:
    """Fold constants, merge equal expressions and drop what nobody reads, in span.

    Args:
        parameters: the initializers that must survive, whatever is computed from them alone.
    """
    names = frozenset(parameters)

    def may_fold(node: ir.Node) -> bool | None:
        """Return False for what a parameter feeds; None leaves the decision to the pass."""
        fed = any(value is not None and value.name in names for value in node.inputs)
        return False if fed else None

    ir.passes.Sequential(
        common.InlinePass(),
        folding.FoldConstantsPass(
            shape_inference=True,
            input_size_limit=_CONSTANT_ELEMENTS,
            output_size_limit=_CONSTANT_ELEMENTS,
            should_fold=may_fold,
        ),
    )(model)
    _drop_whole_slices(model)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]
        common.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
        # Where a node came from (file names, stack traces) is no part of the graph's identity.
        common.ClearMetadataAndDocStringPass(),
    )(model)


def _drop_whole_slices(model: ir.Model) -> None:
    """Let readers of x[:] read x: indexing such as x[:, :, None] leaves one for every colon."""
    for node in model.graph:
        if node.op_type != "Slice":
            continue
        sliced, *bounds = node.inputs[:3]
        starts, ends = (_constant(bound) for bound in bounds)
        if sliced is None or starts is None or ends is None:
            continue
        if not starts.any() and (ends == _END).all():
            ir.convenience.replace_all_uses_with(node.outputs[0], sliced)


def _constant(value: ir.Value | None) -> NDArray[Any] | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def name_interface(
    model: ir.Model,
    inputs: Mapping[str, tuple[int | str, ...]],
    outputs: Mapping[str, tuple[int | str, ...]],
) -> None:
    """Name the inputs' and outputs' dimensions, and forget the shapes of everything between them.

    The exporter's intermediate shapes are those of its example in part; ONNX Runtime's quantizer
    trusts them and fails.

    Raises:
        ValueError: the graph has other inputs or outputs.
    """
    for values, wanted in ((model.graph.inputs, inputs), (model.graph.outputs, outputs)):
        if [value.name for value in values] != list(wanted):
            raise ValueError(
                f"the graph has {[value.name for value in values]}, not {list(wanted)}"
            )
    kept = {*inputs, *outputs, *model.graph.initializers}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name not in kept:
                value.shape = None
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.shape = ir.Shape(({**inputs, **outputs})[value.name or ""])


def point_outside(model: ir.Model, tensors: Mapping[str, TensorSpan], location: str) -> None:
    """Let the parameters' initializers point into a file beside the graph.

    Args:
        location: the file's path, relative to the graph's folder.

    Raises:
        ValueError: a parameter is no initializer of the graph: the export has lost it.
    """
    lost = tensors.keys() - model.graph.initializers.keys()
    if lost:
        raise ValueError(f"the graph has lost {len(lost)} parameters, {min(lost)} among them")
    for name, span in tensors.items():
        model.graph.initializers[name].const_value = ir.ExternalTensor(
            location,
            span.offset,
            span.size,
            ir.tensor_adapters.from_torch_dtype(span.dtype),
            shape=ir.Shape(span.shape),
            name=name,
        )


def serialize(model: ir.Model) -> bytes:
    """Return the model as an ONNX file's content: the same bytes for the same model."""
    content: bytes = ir.serde.serialize_model(model).SerializeToString(deterministic=True)
    return content
