"""Graphs: every parameter under its own name, and ONNX Runtime's answer equal to the network's."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from torch import Tensor, nn

from cascade.config.stage import DiffusionConfig, LowResConfig, StageConfig, TextConfig
from cascade.config.unet import UNetConfig
from cascade.errors import UserError
from cascade.model.layers import set_backend
from cascade.stage import Stage
from cascade.text.encoder import TextEncoder
from cascade_export.graph import operators
from cascade_export.graph.graph import GRAPH, Graph, TensorSpec
from cascade_export.graph.trace import OPSETS, export_stage, export_text_encoder
from cascade_export.graph.weights import WEIGHTS, tensor_spans

BASE = UNetConfig(
    channels=(16, 32),
    blocks=(1, 1),
    attention=("none", "joint"),
    head_channels=16,
    text_width=24,
    context_width=32,
    time_width=32,
    pool_heads=4,
    norm_groups=8,
)
KINDS = {
    "base": BASE,
    "deepfloyd": BASE.model_copy(
        update={
            "activation": "gelu",
            "learned_variance": True,
            "low_res": True,
            "residual_scale": 0.7071,
            "text_norm": "group",
        }
    ),
    "efficient": BASE.model_copy(
        update={
            "attention": ("self", "cross"),
            "full_resolution_skip": True,
            "low_res": True,
            "resample": "convolution",
            "skip_scale": 2**-0.5,
        }
    ),
}
# Both sides sum the same fp32 products in different orders, through some thirty layers: each adds
# about 2^-24 relative, and the bound leaves two orders above that.
CLOSE = 1e-5


def stage_of(unet: UNetConfig) -> Stage:
    """A stage whose zero-initialised weights are drawn at random."""
    config = StageConfig(
        name="stage",
        size=16,
        unet=unet,
        diffusion=DiffusionConfig(schedule="squared_cosine"),
        low_res=LowResConfig(size=8) if unet.low_res else None,
        text=TextConfig(masked=unet.text_norm != "group"),
    )
    stage = Stage.build(config)
    torch.manual_seed(0)
    for parameter in stage.network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    stage.network.eval()
    return stage


def draw(config: UNetConfig, batch: int, tokens: int, height: int, width: int) -> dict[str, Tensor]:
    """A call's arguments; the first row sees no text at all."""
    generator = torch.Generator().manual_seed(batch)
    lengths = torch.arange(batch)[:, None] % (tokens + 1)
    image = (batch, 3, height, width)
    drawn = {
        "x": torch.randn(image, generator=generator),
        "t": torch.linspace(3.0, 980.0, batch),
        "text": torch.randn(batch, tokens, config.text_width, generator=generator),
        "text_mask": torch.arange(tokens) < lengths,
    }
    if config.low_res:
        drawn["low_res"] = torch.randn(image, generator=generator)
        drawn["aug"] = torch.linspace(0.0, 400.0, batch)
    return drawn


def run(graph: Graph, inputs: Mapping[str, Tensor]) -> Tensor:
    session = InferenceSession(graph.path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {k: v.numpy() for k, v in inputs.items()})[0])


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@dataclass(frozen=True)
class Exported:
    stage: Stage
    graph: Graph


@pytest.fixture(
    scope="module",
    params=["base", *(pytest.param(k, marks=pytest.mark.slow) for k in ("deepfloyd", "efficient"))],
)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A small network of every kind, exported in fp32; the first as it runs on kernels."""
    stage = stage_of(KINDS[request.param])
    set_backend(stage.network, "triton" if request.param == "base" else "reference")
    graph = export_stage(stage, tmp_path_factory.mktemp(request.param))
    set_backend(stage.network, "reference")
    return Exported(stage, graph)


def test_every_parameter_is_an_initializer_of_its_own_name(exported: Exported) -> None:
    state = exported.stage.network.state_dict()
    model = onnx.load(exported.graph.path)
    held = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert len(exported.graph.parameters) == len(state)
    for name, value in state.items():
        np.testing.assert_array_equal(held[name], value.numpy(), err_msg=name)


def test_every_parameter_is_read_by_a_layer_and_not_cut_to_pieces(exported: Exported) -> None:
    readers: dict[str, set[str]] = {name: set() for name in exported.stage.network.state_dict()}
    for node in onnx.load(exported.graph.path, load_external_data=False).graph.node:
        for name in node.input:
            if name in readers:
                readers[name].add(node.op_type)
    assert all(readers.values())
    cutting = {"Split", "Slice", "Gather", "Reshape", "Cast", "Identity"}
    assert not {name: ops for name, ops in readers.items() if ops & cutting}


def test_equal_parameters_stay_apart(exported: Exported) -> None:
    # All gains of fresh norms are ones: what merges equal tensors would leave a single one.
    gains = [n for n in exported.graph.parameters if n.endswith(("norm1.weight", "norm2.weight"))]
    found = tensor_spans(exported.graph.weights)
    assert len({found[name].offset for name in gains}) == len(gains) > 4


def test_graph_holds_no_weights_and_names_its_dimensions(exported: Exported) -> None:
    graph, config = exported.graph, exported.stage.config.unet
    model = onnx.load(graph.path, load_external_data=False)
    # What is inside: shapes, frequencies and the gains of norms that have none of their own.
    inside = sum(len(t.raw_data) for t in model.graph.initializer)
    assert inside < sum(v.numel() * 4 for v in exported.stage.network.state_dict().values()) / 20
    image = ("batch", 3, "height", "width")
    assert graph.inputs[0] == TensorSpec("x", "float32", image)
    assert graph.inputs[3] == TensorSpec("text_mask", "bool", ("batch", "length"))
    assert [s.name for s in graph.inputs[4:]] == (["low_res", "aug"] if config.low_res else [])
    channels = 6 if config.learned_variance else 3
    assert graph.outputs == (TensorSpec("out", "float32", ("batch", channels, "height", "width")),)
    assert Graph.open(graph.path) == graph


def test_graph_has_no_operation_that_engines_lack_in_half_precision(exported: Exported) -> None:
    nodes = onnx.load(exported.graph.path, load_external_data=False).graph.node
    used = {node.op_type for node in nodes}
    assert not used & {"Einsum", "IsNaN", "SplitToSequence", "SequenceAt", "Loop", "If"}


def test_norms_have_the_form_that_onnx_runtime_has_a_kernel_for(exported: Exported) -> None:
    nodes = onnx.load(exported.graph.path, load_external_data=False).graph.node
    used = {node.op_type for node in nodes}
    assert "InstanceNormalization" in used
    assert "GroupNormalization" not in used


def test_a_norm_far_from_the_centre_keeps_its_digits(tmp_path: Path) -> None:
    norm = nn.GroupNorm(4, 8).requires_grad_(False)
    norm.weight.copy_(torch.linspace(-1.0, 2.0, 8))
    norm.bias.copy_(torch.linspace(3.0, -1.0, 8))
    x = 100 + torch.randn(2, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    program = torch.onnx.export(
        norm.eval(),
        (x,),
        dynamo=True,
        opset_version=OPSETS["fp32"],
        input_names=["x"],
        custom_translation_table=operators.translations(),
        verbose=False,
    )
    assert program is not None
    session = InferenceSession(program.model_proto.SerializeToString())
    found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
    # Half a unit in the last place of x is 4e-6 of its deviation; moments that are subtracted from
    # each other would leave 1e-3.
    assert distance(found.double(), norm.double()(x.double())) < 1e-5


@pytest.mark.parametrize(
    ("batch", "tokens", "height", "width"), [(1, 7, 8, 8), (2, 1, 16, 8), (5, 4, 4, 12)]
)
def test_onnx_runtime_answers_as_the_network(
    exported: Exported, batch: int, tokens: int, height: int, width: int
) -> None:
    inputs = draw(exported.stage.config.unet, batch, tokens, height, width)
    with torch.no_grad():
        wanted = exported.stage.network(**inputs)
    assert distance(run(exported.graph, inputs), wanted) < CLOSE


@pytest.mark.slow
@pytest.mark.parametrize("exported", ["efficient"], indirect=True)
def test_export_is_reproducible_to_the_byte(exported: Exported, tmp_path: Path) -> None:
    again = export_stage(exported.stage, tmp_path)
    assert again.sha256 == exported.graph.sha256
    assert again.weights.read_bytes() == exported.graph.weights.read_bytes()


@pytest.mark.parametrize("exported", ["base"], indirect=True)
def test_kernels_are_replaced_by_what_they_compute(exported: Exported) -> None:
    nodes = onnx.load(exported.graph.path, load_external_data=False).graph.node
    assert {node.domain for node in nodes} == {""}


@pytest.mark.slow
def test_bf16_passes_the_checker_with_all_names(tmp_path: Path) -> None:
    stage = stage_of(KINDS["base"])
    graph = export_stage(stage, tmp_path, "bf16")
    onnx.checker.check_model(graph.path, full_check=True)
    assert graph.parameters.keys() == stage.network.state_dict().keys()
    assert {spec.dtype for spec in (*graph.inputs, *graph.outputs)} == {"float32", "bool"}


@pytest.mark.slow
def test_text_encoder_answers_as_transformers(repository: Path, tmp_path: Path) -> None:
    encoder = TextEncoder.load(repository / "cascade" / "zoo" / "mini" / "text", "float32")
    graph = export_text_encoder(encoder, tmp_path)
    assert set(graph.parameters) == set(encoder.files.shapes())
    prompts = ["a dog", "", "a photo of a sec cat on a mountain"]
    wanted = encoder.embed(prompts, TextConfig(max_length=32))
    rows = [encoder.tokenizer.encode(prompt, 32) for prompt in prompts]
    length = wanted.mask.shape[1]
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    found = run(graph, {"ids": ids, "mask": wanted.mask.long()}) * wanted.mask[..., None]
    assert distance(found, wanted.embedding) < CLOSE


@pytest.mark.parametrize("content", [None, b"not a graph"])
def test_a_graph_that_is_missing_or_damaged_is_refused(
    content: bytes | None, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / GRAPH).write_bytes(content)
    with pytest.raises(UserError, match=r"missing|damaged"):
        Graph.open(tmp_path / GRAPH)


@pytest.mark.slow
def test_weights_beyond_two_gigabytes_are_read_where_they_lie(
    exported: Exported, tmp_path: Path
) -> None:
    """The same graph over a sparse file whose tensors lie behind a hole of 3 GiB."""
    graph, hole = exported.graph, 3 << 30
    model = onnx.load(graph.path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "offset":
                entry.value = str(int(entry.value) + hole)
    with (tmp_path / WEIGHTS).open("wb") as file:
        file.seek(hole)
        file.write(graph.weights.read_bytes())
    onnx.save(model, tmp_path / GRAPH)
    inputs = draw(exported.stage.config.unet, 2, 3, 8, 8)
    far = Graph.open(tmp_path / GRAPH)
    torch.testing.assert_close(run(far, inputs), run(graph, inputs), rtol=0, atol=0)
