"""A disk that fills while an export writes: one sentence, and nothing partial is left."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from cascade.errors import UserError
from cascade.files import copy_file
from cascade.formats.weights import write_encoder
from cascade.pipeline import Cascade
from cascade.text.files import EncoderFiles
from cascade.text.prompts import PromptTable
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.finetunes import add_subject
from cascade_export.bundle.manifest import write_sealed
from cascade_export.engines.tensorrt.inspect_plan import PlannedMemory
from cascade_export.engines.tensorrt.plan_cache import BuildFacts, BuiltPlan, Fingerprint, PlanCache
from cascade_export.graph.graph import Graph
from cascade_export.graph.probe import tensor_cases
from cascade_export.graph.quantize import calibration_inputs, quantize
from cascade_export.graph.trace import export_stage
from cascade_export.graph.weights import write_weights
from cascade_export.parity.divergence import graph_outputs
from cascade_export.settings import Gate
from cascade_export.triton_server.repository import write_repository

PROMPTS = ["a dog"]
SIZES = {"a plan": 300, "a text encoder": 100}  # less than the first of its files, or the second
PLAN = Fingerprint(
    graph="g",
    weights=None,
    precision="fp32",
    quantisation="none",
    profile={},
    kind="tensorrt",
    version="1",
    targets=(),
    flags=(),
    exporter={},
)


def built() -> BuiltPlan:
    facts = BuildFacts(
        layers=(),
        memory=PlannedMemory(weights=10),
        log=(),
        seconds=0.1,
    )
    return BuiltPlan(b"p" * 100, facts)


@pytest.fixture
def writers(
    my_bundle: Bundle, tiny_cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Callable[[], object]]:
    """Everything of an export that writes, by what it writes."""
    cascade = Cascade.load(tiny_cascade)
    part = my_bundle.files()[0]
    base = cascade.stages[0]
    inputs = calibration_inputs(cascade, PROMPTS, calls=1)["base16"]
    case = next(
        tensor_cases(
            base.config, PromptTable.build(cascade.encoder, PROMPTS, base.config.text), PROMPTS
        )
    )
    encoder = EncoderFiles.open(tiny_cascade / "text")
    state = base.network.state_dict()
    new = tmp_path / "new"
    monkeypatch.setattr(  # tracing takes seconds
        "cascade_export.graph.trace._translate", lambda *given: ir.load(part.graph.path)
    )
    return {
        "a stage's graph": lambda: export_stage(base, new),
        "a quantised graph": lambda: quantize(part.graph, inputs, new),
        "weights": lambda: write_weights(state, new / "x.safetensors", part.graph),
        "a copy": lambda: copy_file(part.weights, new / "x"),
        "a text encoder": lambda: write_encoder(encoder, new, new / "spiece.model"),
        "a manifest": lambda: write_sealed(my_bundle.manifest, new / "bundle.json"),
        "a subject": lambda: add_subject(my_bundle, cascade, "another", Gate(device="cpu")),
        "a model repository": lambda: write_repository(my_bundle, new),
        "a plan": lambda: PlanCache(my_bundle.plans).obtain(PLAN, built),
        "a probe of the layers": lambda: graph_outputs(part.graph.path, ["conv_in"], case),
    }


def test_every_writer_tells_it_and_leaves_nothing(
    writers: dict[str, Callable[[], object]],
    full_disk: Callable[[int], AbstractContextManager[None]],
    tmp_path: Path,
) -> None:
    def files() -> list[Path]:
        return sorted(
            path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"
        )

    before = files()
    for what, write in writers.items():
        with full_disk(SIZES.get(what, 1000)), pytest.raises(UserError) as refused:
            write()
        told = str(refused.value)
        assert "cannot be written (" in told, what
        assert "\n" not in told, what
        assert files() == before, what


def test_a_disk_with_room_takes_them(writers: dict[str, Callable[[], Any]], tmp_path: Path) -> None:
    graph = writers["a stage's graph"]()
    assert isinstance(graph, Graph)
    assert graph.weights.is_file()
    assert writers["a plan"]().read() == b"p" * 100
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]
