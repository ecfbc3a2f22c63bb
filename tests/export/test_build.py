"""NVIDIA's builder takes our graphs without a GPU, in the types and with the weights we meant."""

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file
from torch import Tensor

from cascade.config.folders import read_stage_config
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.stage import Stage
from cascade_export.engines.tensorrt.build import (
    build_plan,
    builder_config,
    logger,
    plan_fingerprint,
    shapes,
    stage_profile,
)
from cascade_export.engines.tensorrt.engine import plan_of
from cascade_export.engines.tensorrt.inspect_plan import (
    PlannedMemory,
    planned_memory,
)
from cascade_export.engines.tensorrt.options import PlanOptions
from cascade_export.engines.tensorrt.plan_cache import Fingerprint, PlanCache
from cascade_export.engines.tensorrt.targets import load_module, resolve_targets
from cascade_export.engines.version import StageFiles
from cascade_export.graph.graph import Graph, TensorSpec
from cascade_export.graph.numerics import Numerics, Precision
from cascade_export.graph.trace import export_stage
from cascade_export.graph.weights import digest, write_weights

WIDTH = 96
PROFILE = {"batch": (1, 2, 8), "height": (16, 16, 16), "width": (16, 16, 16)}
needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None,
    reason="needs TensorRT for RTX: pip install 'dreamcascade[tensorrt-rtx]'",
)


@pytest.fixture
def config(tiny_cascade: Path) -> StageConfig:
    return read_stage_config(tiny_cascade / "base16")


Write = Callable[..., Graph]


@pytest.fixture
def write_graph(thin_graph: Callable[..., Graph]) -> Write:
    """Write two fp16 convolutions around an operation, fp32 outside, their weights beside them."""

    def write(folder: Path, operation: str = "Sigmoid") -> Graph:
        rng = torch.Generator().manual_seed(0)
        state = {
            "first.weight": torch.randn(WIDTH, 3, 3, 3, generator=rng).half(),
            "first.bias": torch.randn(WIDTH, generator=rng).half(),
            "last.weight": torch.randn(3, WIDTH, 3, 3, generator=rng).half(),
            "last.bias": torch.randn(3, generator=rng).half(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        save_file(state, folder / "weights.safetensors")
        nodes = [
            helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
            helper.make_node("Conv", ["h", "first.weight", "first.bias"], ["a"], pads=[1] * 4),
            helper.make_node(operation, ["a"], ["b"], name="the_middle"),
            helper.make_node("Conv", ["b", "last.weight", "last.bias"], ["c"], pads=[1] * 4),
            helper.make_node("Cast", ["c"], ["out"], to=TensorProto.FLOAT),
        ]
        image = ("batch", 3, "height", "width")
        return thin_graph(folder / "weights.safetensors", nodes, TensorProto.FLOAT16, image)

    return write


def _tune(
    graph: Graph, path: Path, change: Callable[[Tensor], Tensor] = lambda v: v + 0.25
) -> Path:
    """A fine-tune of a graph's own weights."""
    state = {name: change(value) for name, value in load_file(graph.weights).items()}
    write_weights(state, path, graph)
    return path


def _bias(weights: Path) -> bytes:
    """The one long vector: a builder re-arranges all else."""
    value = load_file(weights)["first.bias"]
    return value.view(torch.uint8).numpy().tobytes()


def _fingerprint(
    graph: Graph, targets: tuple[int, ...] = (89, 120), weights: Path | None = None
) -> Fingerprint:
    held = digest(weights or graph.weights)
    numerics = Numerics(precision="fp16")
    return plan_fingerprint(graph, held, "tensorrt-rtx", targets, numerics, PROFILE)


def test_a_profile_takes_two_rows_per_picture(config: StageConfig) -> None:
    profile = stage_profile(config, PlanOptions(max_batch=4))
    assert profile["batch"] == (1, 2, 8)
    assert stage_profile(config, PlanOptions(max_batch=4, usual_batch=3))["batch"] == (1, 6, 8)
    assert profile["length"] == (16, 16, 16)
    spec = TensorSpec("x", "float32", ("batch", 3, "height", "width"))
    assert shapes(spec, profile) == ((1, 3, 16, 16), (2, 3, 16, 16), (8, 3, 16, 16))


def test_a_profile_that_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match=r"usual_batch is 5 and max_batch 4"):
        PlanOptions.parse({"usual_batch": 5}, "options")
    with pytest.raises(UserError, match=r"no size for 'length' of text"):
        shapes(TensorSpec("text", "float32", ("batch", "length", 8)), {"batch": (1, 2, 8)})


def test_planned_memory_is_read_from_the_log() -> None:
    log = ["Total Weights Memory: 12 bytes", "Total Activation Memory: 7 bytes", "Total nothing"]
    assert planned_memory([*log, "Total Activation Memory: 9 bytes"]) == PlannedMemory(
        weights=12, activations=9, scratch=None
    )


@needs_rtx
def test_the_builder_tunes_for_the_usual_batch_and_takes_the_largest(
    write_graph: Write, config: StageConfig, tmp_path: Path
) -> None:
    graph = write_graph(tmp_path / "base")
    trt = load_module("tensorrt-rtx")
    builder, seen = trt.Builder(logger(trt)), []

    class Watched:
        """The builder, whose profiles are remembered."""

        def create_builder_config(self) -> object:
            return builder.create_builder_config()

        def create_optimization_profile(self) -> object:
            seen.append(builder.create_optimization_profile())
            return seen[-1]

    keys = set()
    for usual, rows in ((1, 2), (3, 6)):
        profile = stage_profile(config, PlanOptions(max_batch=4, usual_batch=usual))
        made = _fingerprint(graph).model_copy(update={"profile": profile})
        keys.add(made.key)
        builder_config(trt, Watched(), graph.inputs, made)
        assert [tuple(shape) for shape in seen[-1].get_shape("x")] == [
            (1, 3, 16, 16),
            (rows, 3, 16, 16),
            (8, 3, 16, 16),
        ]
        assert build_plan(graph, graph.weights, made).data
    assert len(keys) == 2


@needs_rtx
def test_a_plan_is_built_for_two_gpus_with_the_weights_it_was_given(
    write_graph: Write, tmp_path: Path
) -> None:
    graph = write_graph(tmp_path / "base")
    tuned = _tune(graph, tmp_path / "tuned.safetensors")
    base = build_plan(graph, graph.weights, _fingerprint(graph))
    layers = {(each.layer, each.dtype): each.count for each in base.facts.layers}
    assert layers["CONVOLUTION", "HALF"] == 2
    assert ("CONVOLUTION", "FLOAT") not in layers
    assert (base.facts.memory.weights or 0) > 0
    assert _bias(graph.weights) in base.data
    assert _bias(tuned) not in base.data
    fresh = build_plan(graph, tuned, _fingerprint(graph, weights=tuned))
    assert _bias(tuned) in fresh.data
    assert _bias(graph.weights) not in fresh.data
    with pytest.raises(ValueError, match="the fingerprint is of another graph, other weights"):
        build_plan(graph, tuned, _fingerprint(graph))  # would be found again as the base's


@needs_rtx
def test_an_operation_that_the_builder_lacks_is_named(write_graph: Write, tmp_path: Path) -> None:
    graph = write_graph(tmp_path, operation="StringNormalizer")
    with pytest.raises(UserError, match=r"cannot take the graph: StringNormalizer at the_middle"):
        build_plan(graph, graph.weights, _fingerprint(graph))


@needs_rtx
def test_wrong_weights_are_refused(write_graph: Write, tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "base")
    state = load_file(graph.weights)
    wrong = tmp_path / "wrong.safetensors"
    changes = {
        r"first\.bias": {name: v for name, v in state.items() if name != "first.bias"},
        r"more\.bias": state | {"more.bias": torch.zeros(1)},
        r"last\.bias' of shape \(4,\)": state | {"last.bias": torch.zeros(4).half()},
        r"last\.bias' in .* is float32": state | {"last.bias": torch.zeros(3)},
    }
    for reason, tensors in changes.items():
        save_file(tensors, wrong)
        with pytest.raises(UserError, match=reason):
            build_plan(graph, wrong, _fingerprint(graph))


@needs_rtx
def test_what_the_installed_builder_cannot_target_is_refused(
    write_graph: Write, tmp_path: Path
) -> None:
    graph = write_graph(tmp_path)
    with pytest.raises(UserError, match=r"does not build for sm90"):
        build_plan(graph, graph.weights, _fingerprint(graph, targets=(90,)))


@needs_rtx
def test_the_refusals_are_the_builders_own(write_graph: Write, tmp_path: Path) -> None:
    """bf16 on SM75 is refused early; the builder, asked all the same, agrees."""
    with pytest.raises(UserError, match="sm75 cannot compute in bf16"):
        resolve_targets("tensorrt-rtx", (75,), Numerics(precision="bf16"))
    graph = _as_bf16(write_graph(tmp_path))
    with pytest.raises(UserError, match=r"tensorrt-rtx cannot build .*sm75"):
        build_plan(graph, graph.weights, _fingerprint(graph, targets=(75,)))
    build_plan(graph, graph.weights, _fingerprint(graph, targets=(80,)))


@needs_rtx
def test_a_swap_there_and_back_ends_at_the_first_plan(
    write_graph: Write, tmp_path: Path, config: StageConfig
) -> None:
    """A plan that holds its weights is found again by them, byte for byte."""
    graph = write_graph(tmp_path / "base")
    fingerprint = _fingerprint(graph)
    cache = PlanCache(tmp_path / "engines")
    first = cache.obtain(fingerprint, lambda: build_plan(graph, graph.weights, fingerprint))
    before = first.read()
    files = StageFiles(
        config=config,
        precision="fp16",
        graph=graph,
        weights=graph.weights,
        weights_sha256=digest(graph.weights),
        plan=first.folder,
    )
    version = load_module("tensorrt-rtx").__version__
    swapped = plan_of(files.with_weights(_tune(graph, tmp_path / "tuned.safetensors")), version, 89)
    assert swapped.key != first.key
    assert _bias(tmp_path / "tuned.safetensors") in swapped.read()
    back = plan_of(files.with_weights(graph.weights), version, 89)
    assert (back.key, back.read()) == (first.key, before)
    assert len(list(cache.folder.glob("*/plan"))) == 2
    with pytest.raises(UserError, match=r"is for sm89, sm120 and this GPU is sm90"):
        plan_of(files, version, 90)
    other = write_graph(tmp_path / "other", operation="Tanh")
    with pytest.raises(UserError, match=r"is not of the graph beside it"):
        plan_of(replace(files, graph=other), version, 89)
    with pytest.raises(UserError, match=r"Stage 'base16' has no plan"):
        plan_of(replace(files, plan=None), version, 89)


@needs_rtx
@pytest.mark.slow
@pytest.mark.parametrize(("precision", "name"), [("fp16", "base16"), ("bf16", "sr32")])
def test_a_stage_is_built_for_sm89_and_sm120(
    tmp_path: Path, tiny_cascade: Path, precision: Precision, name: str
) -> None:
    half = {"fp16": "HALF", "bf16": "BF16"}[precision]
    stage = Stage.load(tiny_cascade / name)
    numerics = Numerics(precision=precision)
    graph = export_stage(stage, tmp_path / name, precision)
    tuned = _tune(graph, tmp_path / "tuned.safetensors", lambda value: value * 1.25)
    fingerprint = plan_fingerprint(
        graph,
        digest(tuned),
        "tensorrt-rtx",
        resolve_targets("tensorrt-rtx", (89, 120), numerics),
        numerics,
        stage_profile(stage.config, PlanOptions()),
    )
    plan = build_plan(graph, tuned, fingerprint)
    layers = {(each.layer, each.dtype): each.count for each in plan.facts.layers}
    nodes = onnx.load(graph.path, load_external_data=False).graph.node
    assert layers["CONVOLUTION", half] == sum(node.op_type == "Conv" for node in nodes) - 1 > 10
    assert layers["CONVOLUTION", "FLOAT"] == 1  # the last, an island
    assert {dtype for layer, dtype in layers if layer == "SOFTMAX"} == {"FLOAT"}
    # 8 rows, the largest call.
    assert 0 < (plan.facts.memory.activations or 0) < 1e9


def _as_bf16(graph: Graph) -> Graph:
    """The same graph and weights in the other half precision."""
    model = onnx.load(graph.path, load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.data_type = TensorProto.BFLOAT16
    model.graph.node[0].attribute[0].i = TensorProto.BFLOAT16
    graph.path.write_bytes(model.SerializeToString())
    save_file(
        {name: value.bfloat16() for name, value in load_file(graph.weights).items()}, graph.weights
    )
    return Graph.open(graph.path)
