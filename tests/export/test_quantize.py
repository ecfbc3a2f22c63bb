"""Quantised graphs: calibrated by real sampling, weights still floats, the outermost layers too."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import external_data_helper
from onnxruntime import InferenceSession
from safetensors.torch import save_file
from torch import Tensor

from cascade.config.engine import EngineOptions
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade_export.bundle.bundle import Bundle
from cascade_export.engines.onnxruntime import open_session
from cascade_export.graph.graph import Graph
from cascade_export.graph.quantize import Inputs, calibration_inputs, quantize


@dataclass(frozen=True)
class Calibrated:
    cascade: Cascade
    inputs: dict[str, list[Inputs]]
    graph: Graph


@pytest.fixture(scope="module")
def calibrated(tiny_cascade: Path, bundle: Bundle) -> Calibrated:
    """The tiny cascade's base, exported, with what its network sees while it draws."""
    cascade = Cascade.load(tiny_cascade)
    inputs = calibration_inputs(cascade, ["a dog", "a cat on a mat"], calls=2)
    return Calibrated(cascade, inputs, bundle.files()[0].graph)


@pytest.fixture(scope="module")
def quantised(calibrated: Calibrated, tmp_path_factory: pytest.TempPathFactory) -> Graph:
    folder = tmp_path_factory.mktemp("int8")
    return quantize(calibrated.graph, calibrated.inputs["base16"], folder)


def run(graph: Graph, inputs: Inputs) -> Tensor:
    session = InferenceSession(graph.path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {k: v.numpy() for k, v in inputs.items()})[0])


def test_calibration_sees_the_real_trajectory(calibrated: Calibrated) -> None:
    base, larger = calibrated.inputs["base16"], calibrated.inputs["sr32"]
    assert len(base) == len(larger) == 2
    # Guidance doubles the base's batch; the other stage enlarges what the base drew.
    assert base[0]["x"].shape == (4, 3, 16, 16)
    assert larger[0]["low_res"].shape == (2, 3, 32, 32)
    assert base[0]["t"][0] > base[1]["t"][0]


def test_every_convolution_but_the_outermost_reads_int8(quantised: Graph) -> None:
    nodes = onnx.load(quantised.path, load_external_data=False).graph.node
    maker = {name: node for node in nodes for name in node.output}
    plain = []
    for node in nodes:
        if node.op_type == "Conv":
            made = [maker.get(name) for name in node.input[:2]]
            if not all(m is not None and m.op_type == "DequantizeLinear" for m in made):
                plain.append(node.input[1])
    assert sorted(plain) == ["conv_in.weight", "conv_out.weight"]


def test_weights_stay_floats_with_a_scale_for_each_output_channel(
    calibrated: Calibrated, quantised: Graph
) -> None:
    assert quantised.parameters == calibrated.graph.parameters
    assert quantised.weights.read_bytes() == calibrated.graph.weights.read_bytes()
    model = onnx.load(quantised.path, load_external_data=False)
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    name = "encoder.0.block.conv1.weight"
    scales = [
        n.input[1] for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == name
    ]
    assert [sizes[scale] for scale in scales] == [(sizes[name][0],)]


def test_int8_is_near_fp32(calibrated: Calibrated, quantised: Graph) -> None:
    inputs = calibrated.inputs["base16"][0]
    wanted = run(calibrated.graph, inputs)
    error = float((run(quantised, inputs) - wanted).norm() / wanted.norm())
    # A rounding to 8 bits of a range of four deviations is 1 % of a deviation, twice for each of
    # eight convolutions; errors add as in a random walk, with a factor of two to spare.
    assert 1e-4 < error < 0.08


def test_no_two_products_overflow_16_bits(quantised: Graph) -> None:
    """The sum that kernels without VNNI make of unsigned activations and signed weights."""
    model = onnx.load(quantised.path)
    held = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    largest = 0.0
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in held:
            weight, scale = held[node.input[0]], held[node.input[1]]
            largest = max(largest, np.abs(np.rint(weight / scale[:, None, None, None])).max())
    assert largest == 64  # no bit is given away
    assert 2 * np.iinfo(np.uint8).max * largest <= np.iinfo(np.int16).max


def test_weights_that_outgrow_the_range_are_exact(tmp_path: Path) -> None:
    """A fine-tune's may; where the CPU has VNNI this holds by itself."""
    save_file({"weight": torch.ones(8, 16, 1, 1)}, tmp_path / "weights.safetensors")
    onnx.save(one_convolution(), tmp_path / "graph.onnx")
    given = (tmp_path / "graph.onnx", tmp_path / "weights.safetensors", torch.device("cpu"))
    ones = np.ones((1, 16, 4, 4), dtype=np.float32)
    (answer,) = open_session(*given, EngineOptions()).run(None, {"x": ones})
    np.testing.assert_allclose(answer, np.full((1, 8, 4, 4), 16.0), rtol=1e-6)


def one_convolution() -> onnx.ModelProto:
    """Sums 16 channels of ones with weights of ones, each the largest that int8 holds."""
    make, kind = onnx.helper, onnx.TensorProto
    nodes = []
    for name, scale in (("x", "one"), ("weight", "one"), ("sum", "sixteen")):
        nodes.append(make.make_node("QuantizeLinear", [name, scale, "zero"], [f"{name}_8"]))
        nodes.append(make.make_node("DequantizeLinear", [f"{name}_8", scale, "zero"], [f"{name}_"]))
    nodes.insert(4, make.make_node("Conv", ["x_", "weight_"], ["sum"]))
    weight = onnx.numpy_helper.from_array(np.zeros((8, 16, 1, 1), dtype=np.float32), "weight")
    external_data_helper.set_external_data(weight, "weights.safetensors")
    weight.ClearField("raw_data")
    constants = {"one": np.float32(1 / 127), "sixteen": np.float32(16 / 127), "zero": np.int8(0)}
    graph = make.make_graph(
        nodes,
        "sum",
        [make.make_tensor_value_info("x", kind.FLOAT, (1, 16, 4, 4))],
        [make.make_tensor_value_info("sum_", kind.FLOAT, (1, 8, 4, 4))],
        [weight, *(onnx.numpy_helper.from_array(v, k) for k, v in constants.items())],
    )
    return make.make_model(graph, opset_imports=[make.make_opsetid("", 20)], ir_version=10)


def test_fp8_has_the_same_magnitudes_on_its_own_range(
    calibrated: Calibrated, quantised: Graph, tmp_path: Path
) -> None:
    graph = quantize(calibrated.graph, calibrated.inputs["base16"], tmp_path, "fp8")
    onnx.checker.check_model(graph.path, full_check=True)
    models = [onnx.load(g.path, load_external_data=False).graph for g in (quantised, graph)]
    held = [{t.name: t for t in model.initializer} for model in models]
    kind = onnx.TensorProto.FLOAT8E4M3FN
    pairs = [n for n in models[1].node if n.op_type == "QuantizeLinear"]
    assert pairs
    for node in pairs:
        assert held[1][node.input[2]].data_type == kind
        narrow, wide = (onnx.numpy_helper.to_array(h[node.input[1]]) for h in held)
        of_weight = node.input[0] in held[1]
        np.testing.assert_allclose(wide * 448, narrow * (64 if of_weight else 127), rtol=1e-6)


def test_nothing_to_calibrate_with_is_refused(calibrated: Calibrated, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one prompt"):
        quantize(calibrated.graph, [], tmp_path)
