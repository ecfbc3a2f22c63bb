"""The gate: what passes, what fails, and the layer that is named."""

import copy
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from cascade.diffusion.denoiser import Network
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade.text.prompts import PromptTable
from cascade_export.bundle.bundle import Bundle
from cascade_export.graph.graph import GRAPH
from cascade_export.graph.numerics import Numerics, Precision
from cascade_export.graph.precision import cast
from cascade_export.graph.probe import TensorDeviation, tensor_cases, tensor_deviation
from cascade_export.parity.check import baseline, check
from cascade_export.parity.divergence import first_divergence, layer_outputs
from cascade_export.parity.findings import ParityReport
from cascade_export.parity.limits import (
    FLOORS,
    PictureDeviation,
    picture_deviation,
    picture_limit,
    tensor_limit,
    to_levels,
    within,
)
from cascade_export.parity.report import write_report
from cascade_export.parity.sampled import Sampling

PROMPTS = ("a photo of a dog", "")


def checked(
    eager: Cascade, replace: Callable[[nn.Module], Network], precision: Precision = "fp32"
) -> ParityReport:
    """The report of engines that are made of the networks."""
    stages = [stage.with_network(replace(stage.network)) for stage in eager.stages]
    engines = Cascade(eager.manifest, eager.encoder, stages)
    return check(
        eager, engines, Numerics(precision=precision), Sampling(PROMPTS), engine="stand-in"
    )


def scaled(factor: float) -> Callable[[nn.Module], Network]:
    """Engines whose every answer is too large by a factor."""

    def make(network: nn.Module) -> Network:
        wrong = copy.deepcopy(network)
        wrong.register_forward_hook(lambda module, inputs, output: factor * output)
        return wrong

    return make


def test_the_network_itself_passes_and_departs_by_nothing(eager: Cascade) -> None:
    report = checked(eager, lambda network: network)
    assert report.passed
    assert report.failures() == []
    assert [result.stage for result in report.findings.trajectories] == ["base16", "sr32"]
    for result in report.findings.trajectories:
        assert (result.engine.rms, result.engine.differing, result.engine.greatest) == (0, 0, 0)
        assert result.engine.psnr == math.inf
        steps = 3 if result.stage == "base16" else 2
        assert len(result.steps) == steps
        assert (result.eager, result.eager_steps) == (None, ())  # within the floor, it is not asked
    for stage in ("base16", "sr32"):
        names = {result.case for result in report.findings.tensors if result.stage == stage}
        assert {"one row", "longest and shortest text", "half the side", "not square"} <= names


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_eager_in_a_precision_passes_in_that_precision_only(
    eager: Cascade, precision: Precision
) -> None:
    report = checked(eager, lambda network: cast(network, precision), precision)
    assert report.passed
    # The engine is the baseline here: the limit is twice what it departs by, or the floor.
    for result in report.findings.tensors:
        above = result.engine.relative > FLOORS[precision].relative
        assert (result.eager is not None) == above
        expected = 2 * result.engine.relative if above else FLOORS[precision].relative
        assert result.limit == pytest.approx(expected)
    assert not checked(eager, lambda network: cast(network, precision), "fp32").passed


def test_an_engine_that_is_a_little_wrong_fails(eager: Cascade) -> None:
    # One per mille: a hundred times fp32's floor, and less than one grey level.
    report = checked(eager, scaled(1.001))
    assert not report.passed
    assert len(report.failures()) >= len(report.findings.tensors)
    for result in report.findings.trajectories:
        assert len(result.eager_steps) == len(result.steps)
        assert max(result.eager_steps) > 0  # fp64 does not round as fp32 does
    with pytest.raises(UserError, match="does not match eager in fp32"):
        report.require()


@pytest.mark.parametrize("precision", FLOORS)
def test_what_is_within_the_floor_passes_whatever_the_baseline_is(precision: Precision) -> None:
    numerics = Numerics(precision=precision)
    floor, handful = picture_limit(None, numerics), picture_limit(None, numerics, values=768)
    for size in (0.0, 1e-4, 0.01, 0.5, 1.0):
        pictures = PictureDeviation(rms=255 * size, differing=size, greatest=round(255 * size))
        assert within(floor, picture_limit(pictures, numerics))
        assert within(handful, picture_limit(pictures, numerics, values=768))
        tensors = TensorDeviation(relative=size, greatest=size)
        for shrunk in (0.5, 1.0, 30.0):
            assert tensor_limit(None, numerics, shrunk) <= tensor_limit(tensors, numerics, shrunk)


def test_an_answer_near_zero_may_have_the_roundings_of_its_input_in_fp32_alone() -> None:
    assert tensor_limit(None, Numerics(), 30.0) == pytest.approx(30 * FLOORS["fp32"].relative)
    assert tensor_limit(None, Numerics(), 4.0) == FLOORS["fp32"].relative
    for precision in ("fp16", "bf16"):
        limit = tensor_limit(None, Numerics(precision=precision), 30.0)
        assert limit == FLOORS[precision].relative


@pytest.mark.parametrize("answer", [math.nan, math.inf])
def test_an_engine_that_answers_nan_fails(eager: Cascade, tmp_path: Path, answer: float) -> None:
    report = checked(eager, scaled(answer))
    assert not report.passed
    assert not any(result.passed for result in report.findings.tensors)
    assert not any(result.passed for result in report.findings.trajectories)
    told = " ".join(report.failures())
    for stage in ("base16", "sr32"):
        assert f"stage '{stage}', one row: NaN or infinite numbers" in told
        assert f"pictures of stage '{stage}': NaN or infinite numbers" in told
    page = write_report(report, tmp_path, "cascade export")
    assert "do not match" in page.read_text()
    assert json.loads((tmp_path / "parity.json").read_text())["passed"] is False
    with pytest.raises(UserError, match="The stand-in engine does not match eager in fp32"):
        report.require()


def test_onnx_runtime_passes_with_the_same_pictures(eager: Cascade, bundle: Bundle) -> None:
    report = check(
        eager, bundle.cascade(device="cpu"), Numerics(), Sampling(PROMPTS), engine="onnxruntime"
    )
    assert report.passed
    for result in report.findings.trajectories:
        assert result.engine.greatest <= 1
        assert result.engine.differing < 1e-3


def test_the_layer_that_was_changed_is_named(eager: Cascade, bundle: Bundle) -> None:
    stage = eager.stage("base16")
    graph = bundle.stage_folder("base16") / GRAPH
    prompts = list(PROMPTS)
    table = PromptTable.build(eager.encoder, prompts, stage.config.text)
    case = list(tensor_cases(stage.config, table, prompts))[1]
    measure = baseline(stage.network, "fp32")
    assert first_divergence(stage, measure, graph, case, Numerics()) is None

    model = onnx.load(graph, load_external_data=False)
    dilate(model.graph, "middle.0.block.conv2.weight")
    wrong = graph.with_name("wrong.onnx")
    try:
        onnx.save(model, wrong)
        divergence = first_divergence(stage, measure, wrong, case, Numerics())
    finally:
        wrong.unlink()
    assert divergence is not None
    assert divergence.layer == "middle.0.block.conv2"
    assert divergence.island == "middle.0.block"
    assert divergence.before.startswith("middle.0.block.")
    assert divergence.engine > 0.1
    assert not list(graph.parent.glob(".*"))  # no probe is left


def dilate(graph: onnx.GraphProto, weight: str) -> None:
    """Make a 3x3 convolution look at every other pixel."""
    (node,) = (node for node in graph.node if weight in node.input)
    values = {attribute.name: attribute for attribute in node.attribute}
    values["dilations"].ints[:] = [2, 2]
    values["pads"].ints[:] = [2, 2, 2, 2]


def test_layers_are_found_behind_the_baselines_wrapper(eager: Cascade) -> None:
    stage = eager.stage("base16")
    table = PromptTable.build(eager.encoder, list(PROMPTS), stage.config.text)
    case = next(tensor_cases(stage.config, table, PROMPTS))
    layers = ["conv_in", "text_pooling.linear"]
    exact = layer_outputs(stage.network, layers, case)
    wide = layer_outputs(baseline(stage.network, "fp32"), layers, case)
    assert set(exact) == set(wide) == set(layers)
    assert tensor_deviation(wide["conv_in"], exact["conv_in"]).relative < 1e-6


def test_deviations_of_known_tensors_and_pictures() -> None:
    exact = torch.full((1, 3, 4, 4), 0.5)
    answer = exact.clone()
    answer[0, 0, 0, 0] = 1.0
    found = tensor_deviation(answer, exact)
    assert found.relative == pytest.approx((0.25 / 48) ** 0.5 / 0.5)
    assert found.greatest == pytest.approx(1.0)
    pictures = picture_deviation(answer, exact)
    assert pictures.greatest == 64  # 0.5 is level 191 (191.25), 1.0 is 255
    assert pictures.differing == pytest.approx(1 / 48)
    assert pictures.psnr == pytest.approx(20 * math.log10(2 / (0.25 / 48) ** 0.5))
    with pytest.raises(ValueError, match="shapes"):
        tensor_deviation(answer, exact[:, :1])


def test_limits_follow_the_baseline_and_stop_at_the_floor() -> None:
    assert tensor_limit(TensorDeviation(relative=1e-3, greatest=0), Numerics()) == 2e-3
    assert (
        tensor_limit(TensorDeviation(relative=0.0, greatest=0), Numerics(precision="fp16"))
        == 2**-10
    )
    far = picture_limit(
        PictureDeviation(rms=1.0, differing=0.7, greatest=3), Numerics(precision="bf16")
    )
    assert (far.rms, far.differing, far.greatest) == (3.0, 1.0, 9)
    near = picture_limit(PictureDeviation(rms=0.0, differing=0.0, greatest=0), Numerics())
    assert within(PictureDeviation(rms=1e-3, differing=1e-3, greatest=1), near)
    assert not within(PictureDeviation(rms=1e-3, differing=1e-3, greatest=2), near)
    assert not within(PictureDeviation(rms=math.nan, differing=0, greatest=0), near)


def test_levels_are_those_of_the_written_pictures() -> None:
    values = torch.tensor([-2.0, -1.0, 0.0, 1.0, math.nan])
    assert to_levels(values).tolist() == [0, 0, 128, 255, -1]


def test_a_double_network_reads_and_answers_in_single(eager: Cascade) -> None:
    stage = eager.stage("sr32")
    table = PromptTable.build(eager.encoder, list(PROMPTS), stage.config.text)
    seen: Mapping[str, Tensor] = {
        case.name: case.answer(baseline(stage.network, "fp32"))
        for case in tensor_cases(stage.config, table, PROMPTS)
    }
    assert {out.dtype for out in seen.values()} == {torch.float32}
    assert seen["not square"].shape[2:] == (32, 16)
