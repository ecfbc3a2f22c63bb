"""A weight that is no number goes by no way into an export, and by none out of a bundle."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cascade.errors import UserError
from cascade.lora import with_lora
from cascade.pipeline import Cascade
from cascade.stage import Stage
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.finetunes import add_subject
from cascade_export.bundle.manifest import (
    ABOUT,
    BUNDLE,
    StageEntry,
    SubjectStage,
    describe_weights,
    write_sealed,
)
from cascade_export.bundle.write import export_bundle
from cascade_export.engines.opening import open_engine
from cascade_export.graph.graph import Graph
from cascade_export.graph.quantize import calibration_inputs, quantize
from cascade_export.graph.trace import export_stage
from cascade_export.graph.weights import digest, write_weights
from cascade_export.settings import ExportOptions, Gate
from cascade_export.triton_server.repository import write_repository

SUBJECT = "sec-dog"
Entry = TypeVar("Entry", StageEntry, SubjectStage)
NUMBERS = (math.nan, math.inf, -math.inf)


def spoil(path: Path, number: float) -> None:
    with safe_open(path, framework="pt") as file:
        told = file.metadata()
    tensors = load_file(path)
    tensors[max(tensors)].view(-1)[0] = number
    save_file(tensors, path, told)


def ways(
    my_bundle: Bundle, eager: Cascade, tmp_path: Path, number: float
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Ways of a weight, by their names; each is to be refused."""
    new = tmp_path / "new"
    part = my_bundle.files()[0]
    spoilt = Stage.build(eager.stages[0].config)
    with torch.no_grad():
        next(spoilt.network.parameters()).view(-1)[0] = number
    state = spoilt.network.state_dict()
    broken = Cascade(eager.manifest, eager.encoder, [spoilt, eager.stages[1]])
    yield "a stage's graph", lambda: export_stage(spoilt, new)
    yield "its half precision", lambda: export_stage(spoilt, new, "fp16")
    yield "a bundle of it", lambda: export_bundle(broken, new, ExportOptions())
    yield "weights for a graph", lambda: write_weights(state, new / "x", part.graph)
    yield "a fine-tune", lambda: add_subject(my_bundle, broken, "another", Gate(device="cpu"))
    yield "calibration", lambda: calibration_inputs(broken, ["a dog"])

    lora = tmp_path / "lora.safetensors"
    name = "text_projection"
    high, wide = state[f"{name}.weight"].shape
    factors = {f"{name}.lora_A.weight": torch.full((2, wide), number)}
    save_file(factors | {f"{name}.lora_B.weight": torch.ones(high, 2)}, lora)
    yield "a LoRA", lambda: with_lora(eager, {"base16": [lora]})
    yield "a LoRA's scale", lambda: with_lora(eager, {}, number)

    inputs = calibration_inputs(eager, ["a dog"], calls=1)["base16"]
    engine = open_engine("onnxruntime", part)
    other = tmp_path / "other.safetensors"
    other.write_bytes(part.weights.read_bytes())
    spoil(other, number)
    yield "an engine's swap", lambda: engine.swap(other)

    spoil(part.weights, number)
    yield "a quantised graph", lambda: quantize(Graph.open(part.graph.path), inputs, new)
    manifest = my_bundle.manifest
    entry = with_weights(manifest.stages["base16"], my_bundle, part.weights)
    stages = manifest.stages | {"base16": entry}
    write_sealed(manifest.model_copy(update={"stages": stages}), my_bundle.folder / BUNDLE)
    yield "a bundle", lambda: Bundle.open(my_bundle.folder)

    about = my_bundle.subject(SUBJECT)
    path = my_bundle.folder / about.stages["base16"].weights.file
    spoil(path, number)
    tuned = about.stages | {"base16": with_weights(about.stages["base16"], my_bundle, path)}
    write_sealed(about.model_copy(update={"stages": tuned}), path.with_name(ABOUT))
    yield "a subject of a bundle", lambda: my_bundle.subject(SUBJECT)

    spoil(my_bundle.text_folder / "model.safetensors", number)
    served = Bundle(my_bundle.folder, manifest)
    yield "a server's text encoder", lambda: write_repository(served, new)


def with_weights(entry: Entry, bundle: Bundle, path: Path) -> Entry:
    weights = describe_weights(bundle.folder, path, digest(path))
    return entry.model_copy(update={"weights": weights})


@pytest.mark.parametrize("number", NUMBERS)
def test_no_way_takes_it(
    my_bundle: Bundle, tiny_cascade: Path, tmp_path: Path, number: float
) -> None:
    eager = Cascade.load(tiny_cascade)
    for what, way in ways(my_bundle, eager, tmp_path, number):
        with pytest.raises(UserError, match=r"NaN|scale of a LoRA") as refused:
            way()
        assert "\n" not in str(refused.value), what
        assert not [path for path in (tmp_path / "new").rglob("*") if path.is_file()], what


def test_a_weight_beyond_half_precision_is_named(tiny_cascade: Path, tmp_path: Path) -> None:
    stage = Stage.load(tiny_cascade / "base16")
    name = "middle.0.block.conv1.weight"
    with torch.no_grad():
        stage.network.get_parameter(name).view(-1)[0] = 1e5
    with pytest.raises(UserError, match=rf"'{name}' reaches 1e\+05, which torch.float16 cannot"):
        export_stage(stage, tmp_path / "new", "fp16")
    assert not (tmp_path / "new").exists()
