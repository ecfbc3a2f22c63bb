"""One exported cascade for all tests: writing it takes seconds, opening it does not."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from onnx import NodeProto, TensorProto, helper

pytest.importorskip("onnxscript")

from cascade.config.folders import CascadeManifest
from cascade.config.stage import AugmentationLevel, StageConfig, SubjectConfig
from cascade.pipeline import Cascade
from cascade.stage import Stage
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.finetunes import add_subject
from cascade_export.bundle.stages import Tracers
from cascade_export.bundle.write import export_bundle
from cascade_export.engines.version import StageFiles
from cascade_export.graph.graph import GRAPH, Graph
from cascade_export.graph.weights import WEIGHTS, tensor_spans
from cascade_export.settings import ExportOptions, Gate

GATE = Gate(device="cpu")
SUBJECT = "sec-dog"


@pytest.fixture(scope="session")
def tuned_cascade(tiny_cascade: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fine-tune: every weight of the base has moved.

    Of super-resolution only the augmentation level is another. Read it only.
    """
    folder = tmp_path_factory.mktemp("tuned") / "tuned"
    shutil.copytree(tiny_cascade, folder)
    generator = torch.Generator().manual_seed(3)
    base = Stage.load(folder / "base16")
    with torch.no_grad():
        for parameter in base.network.parameters():
            spread = 0.1 * parameter.std(correction=0) + 0.01
            parameter += spread * torch.randn(parameter.shape, generator=generator)
    subject = SubjectConfig(identifier="sec", class_noun="dog")
    base.with_network(base.network, base.config.model_copy(update={"subjects": (subject,)})).save(
        folder / "base16"
    )
    larger = Stage.load(folder / "sr32")
    assert larger.config.low_res is not None
    low_res = larger.config.low_res.model_copy(
        update={"sampling_level": AugmentationLevel(value=0.05)}
    )
    larger.with_network(larger.network, larger.config.model_copy(update={"low_res": low_res})).save(
        folder / "sr32"
    )
    manifest = CascadeManifest(
        name="tuned", stages=("base16", "sr32"), recipe="mini", licence="Research only."
    )
    (folder / "cascade.json").write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def eager(tiny_cascade: Path) -> Cascade:
    """The tiny cascade in PyTorch; read it only."""
    return Cascade.load(tiny_cascade)


@pytest.fixture(scope="session")
def bundle(
    tiny_cascade: Path, tuned_cascade: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """The tiny cascade for ONNX Runtime in fp32, with the fine-tune `sec-dog`; read it only.

    The first worker to come here makes it for all of them.
    """
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent
    folder = place / "bundle"
    with FileLock(place / "bundle.lock"):
        if not folder.is_dir():
            made = export_bundle(
                Cascade.load(tiny_cascade), place / "draft", ExportOptions(gate=GATE)
            )
            add_subject(made, Cascade.load(tuned_cascade), SUBJECT, GATE)
            made.folder.rename(folder)
    return Bundle.open(folder)


@pytest.fixture
def traced(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let exports in fp32 copy the bundle's graphs instead of tracing; the names of their stages.

    Weights are the bundle's: only for the tiny cascade, or to find that they are not another's.
    """
    exported: list[str] = []

    def weights(stage: Stage, folder: Path, *rest: object) -> None:
        exported.append(stage.config.name)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(bundle.stage_folder(stage.config.name) / WEIGHTS, folder)

    def graph(config: StageConfig, folder: Path, *rest: object) -> Graph:
        shutil.copy(bundle.stage_folder(config.name) / GRAPH, folder)
        return Graph.open(folder / GRAPH)

    monkeypatch.setattr("cascade_export.bundle.stages.write_stage_weights", weights)
    # Every tracer, since other processes know nothing of what is replaced here.
    monkeypatch.setattr(Tracers, "begin", lambda _, *asked: partial(graph, *asked))
    return exported


@pytest.fixture
def my_bundle(bundle: Bundle, tmp_path: Path) -> Bundle:
    """A copy of the bundle to change."""
    return Bundle.open(shutil.copytree(bundle.folder, tmp_path / "bundle"))


@pytest.fixture
def thin_graph() -> Callable[..., Graph]:
    """Write a graph of x and out whose initializers lie in a weights file in its folder."""

    def write(weights: Path, nodes: list[NodeProto], kind: int, image: tuple[Any, ...]) -> Graph:
        outside = []
        for name, place in tensor_spans(weights).items():
            tensor = TensorProto(name=name, dims=place.shape, data_type=kind)
            tensor.data_location = TensorProto.EXTERNAL
            where = {"location": weights.name, "offset": place.offset, "length": place.size}
            for key, value in where.items():
                tensor.external_data.add(key=key, value=str(value))
            outside.append(tensor)
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, image) for n in ("x", "out")]
        graph = helper.make_graph(nodes, "thin", ends[:1], ends[1:], outside)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        (weights.parent / GRAPH).write_bytes(model.SerializeToString())
        return Graph.open(weights.parent / GRAPH)

    return write


@pytest.fixture
def base(bundle: Bundle) -> StageFiles:
    """The base with the bundle's own weights."""
    return bundle.files()[0]


@pytest.fixture
def tuned(bundle: Bundle) -> StageFiles:
    """The base with the fine-tune's weights."""
    return bundle.files(bundle.subject("sec-dog"))[0]
