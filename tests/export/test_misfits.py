"""Bundles by other hands, whose manifests prove what does not fit; and wrong ways to open one."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from cascade.errors import UserError
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.manifest import describe_weights, read_manifest, write_sealed
from cascade_export.graph.graph import GRAPH
from cascade_export.graph.weights import WEIGHTS, digest
from cascade_export.triton_server.repository import write_repository

Change = Callable[[Path], object]


def resealed(folder: Path) -> None:
    """Let a bundle's manifest prove its files as they are now, as one made by hand would."""
    manifest = read_manifest(folder)
    stages = {}
    for name, entry in manifest.stages.items():
        place = folder / "stages" / name
        weights = describe_weights(folder, place / WEIGHTS, digest(place / WEIGHTS))
        sums = {"config": digest(place / "config.json"), "graph": digest(place / GRAPH)}
        stages[name] = entry.model_copy(update=sums | {"weights": weights})
    files = {name: digest(folder / "text" / name) for name in manifest.text.files}
    text = manifest.text.model_copy(update={"files": files})
    changed = manifest.model_copy(update={"stages": stages, "text": text})
    write_sealed(changed, folder / "bundle.json")


def copy(name: str, source: str, target: str) -> Change:
    return lambda f: shutil.copy(f / "stages" / source / name, f / "stages" / target / name)


def settings(**values: object) -> Change:
    """Change the base's network in its settings."""

    def change(folder: Path) -> None:
        path = folder / "stages/base16/config.json"
        held = json.loads(path.read_text())
        path.write_text(json.dumps(held | {"unet": held["unet"] | values}))

    return change


def rewritten(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    """Change the base's weights."""

    def rewrite(folder: Path) -> None:
        path = folder / "stages/base16" / WEIGHTS
        save_file(change(load_file(path)), path)

    return rewrite


def pointing(place: str) -> Change:
    """Let the base's graph read its weights elsewhere."""

    def change(folder: Path) -> None:
        path = folder / "stages/base16" / GRAPH
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = place if entry.key == "location" else entry.value
        path.write_bytes(model.SerializeToString())

    return change


def in_text(name: str, content: bytes) -> Change:
    return lambda folder: (folder / "text" / name).write_bytes(content)


def as_precision(precision: str) -> Change:
    def change(folder: Path) -> None:
        manifest = read_manifest(folder).model_copy(update={"precision": precision})
        write_sealed(manifest, folder / "bundle.json")

    return change


MISFITS: dict[str, Change] = {
    "another stage's graph": copy(GRAPH, "sr32", "base16"),
    "another stage's weights": copy(WEIGHTS, "sr32", "base16"),
    "an empty graph": lambda folder: (folder / "stages/base16" / GRAPH).write_bytes(b""),
    "no graph": lambda folder: (folder / "stages/base16" / GRAPH).write_text("hello"),
    "a graph that reads elsewhere": pointing("../../../other.safetensors"),
    "a wider network": settings(channels=[32, 32]),
    "a network of other texts": settings(text_width=64),
    "half weights": rewritten(lambda held: {name: one.half() for name, one in held.items()}),
    "whole numbers": rewritten(lambda held: {name: one.int() for name, one in held.items()}),
    "a weight less": rewritten(lambda held: dict(list(held.items())[1:])),
    "pickled weights": lambda folder: torch.save({}, folder / "stages/base16" / WEIGHTS),
    "another precision": as_precision("fp16"),
    "a text encoder of no kind": in_text("config.json", b"{}"),
    "a vocabulary that is none": in_text("spiece.model", b"words"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_files_that_do_not_fit_are_refused_though_they_are_sealed(
    my_bundle: Bundle, tmp_path: Path, name: str
) -> None:
    MISFITS[name](my_bundle.folder)
    resealed(my_bundle.folder)
    for use in (
        lambda: Bundle.open(my_bundle.folder).cascade(),
        lambda: write_repository(Bundle.open(my_bundle.folder), tmp_path / "models"),
    ):
        with pytest.raises(UserError) as refused:
            use()
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "models").exists()


WRONG_PLACES = (None, 3, b"bundle", "", [], Path("nowhere"), Path("/dev/null"))
WRONG_WAYS: dict[str, tuple[object, ...]] = {
    "subject": ("nobody", "..", 3),
    "device": ("tpu", "meta", 3.5, []),
    "engine": ("frob", 3),
    "max_memory": (0, -1, "5", 0.5),
    "embeddings": ("nowhere", Path("nowhere")),
    "encoder_mode": ("float16",),
}


@pytest.mark.parametrize("place", WRONG_PLACES)
def test_what_is_no_bundle_s_place_is_told(place: object) -> None:
    with pytest.raises(UserError, match="bundle"):
        Bundle.open(place)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", WRONG_WAYS)
def test_wrong_ways_to_open_a_bundle_are_told(bundle: Bundle, name: str) -> None:
    for wrong in WRONG_WAYS[name]:
        ways: dict[str, Any] = {name: wrong}
        with pytest.raises(UserError) as refused:
            bundle.cascade(**ways)
        assert "\n" not in str(refused.value)
