"""The sweep tries each setting once, scores it as a whole run would be, and marks the best."""

import importlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from cascade.config.dreambooth import DreamBoothConfig, PriorConfig, Recipe
from cascade.config.stage import SamplerConfig
from cascade.config.train import OptimizerConfig, TrainConfig
from cascade.data.images import read_photos
from cascade.dreambooth.personalise import personalise
from cascade.errors import UserError
from cascade.evaluate.features import EfficientNetLite0
from cascade.evaluate.subject import draw_subject, photos_at
from cascade.pipeline import Cascade

MODULES = ("comparison", "elsewhere", "kinds", "subjects", "tables", "tuning", "work", "sweep")
TWO_STEPS = TrainConfig(
    steps=2, batch_size=2, optimizer=OptimizerConfig(learning_rate=1e-2), log_every=1
)
RECIPE = Recipe(
    prior=PriorConfig(images=2, batch_size=2, sampler=SamplerConfig(steps=2, guidance=1.0)),
    base=TWO_STEPS,
    super_resolution=TWO_STEPS,
)


@pytest.fixture
def sweep(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module as `python tools/sweep.py` sees it, with a recipe of two steps."""
    monkeypatch.syspath_prepend(str(repository / "tools"))
    module = importlib.import_module("sweep")
    monkeypatch.setattr(module, "RECIPES", {"mini": RECIPE})
    yield module
    for name in list(sys.modules):
        if name in MODULES or name.partition(".")[0] == "sweeping":
            del sys.modules[name]


@pytest.fixture
def knobs(sweep: ModuleType) -> ModuleType:
    """Its neighbour."""
    return sys.modules["sweeping.knobs"]


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> Path:
    """A data set of one subject, laid out as DreamBooth's."""
    folder = tmp_path / "data"
    shutil.copytree(photos, folder / "rex")
    (folder / "prompts_and_classes.txt").write_text("subject_name,class\nrex,dog\n")
    return folder


def _start(knobs: ModuleType) -> Any:
    return knobs.Settings(recipe=RECIPE, sampler=SamplerConfig())


def test_the_recipe_stands_once_in_every_table(knobs: ModuleType) -> None:
    start = _start(knobs)
    for part in knobs.Part:
        for rows in knobs.coordinates(part, start).values():
            here = [row.label for row in rows if row.settings == start]
            assert len(here) == 1
            assert here[0].endswith("(recipe)")
            assert len({knobs.key_of(row.settings.used(part)) for row in rows}) == len(rows)


def test_a_cross_holds_every_combination(knobs: ModuleType) -> None:
    tables = knobs.cross(knobs.Part.base, _start(knobs), ["steps=100,300", "lambda=0,2"])
    rows = tables["steps x lambda"]
    assert [row.label for row in rows] == ["100, 0", "100, 2", "300, 0", "300, 2"]
    last = rows[-1].settings.recipe
    assert (last.base.steps, last.prior.weight) == (300, 2.0)


def test_steps_take_the_place_of_a_list_of_timesteps(knobs: ModuleType) -> None:
    sampler = SamplerConfig(timesteps=(900.0, 400.0))
    start = knobs.Settings(recipe=RECIPE, sampler=sampler)
    rows = knobs.cross(knobs.Part.sampling, start, ["steps=8"])["steps"]
    assert (rows[0].settings.sampler.timesteps, rows[0].settings.sampler.steps) == (None, 8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"only": "stepz"}, "base has no knob 'stepz'; it has learning_rate, steps"),
        ({"full": ["steps"]}, "write steps=100,300"),
        ({"full": ["steps=-1"]}, "In steps=-1: recipe.base.steps"),
        ({"full": ["steps=1"], "only": "steps"}, "exclude each other"),
        ({"names": ["cat"]}, "no subject 'cat'"),
        ({"last_stage": "sr32"}, "draws with the base alone"),
    ],
)
def test_mistakes_are_told_before_any_work(
    sweep: ModuleType,
    data: Path,
    tiny_cascade: Path,
    tmp_path: Path,
    given: dict[str, Any],
    message: str,
) -> None:
    settings = {"names": ["rex"], "part": "base", "cascade": str(tiny_cascade)} | given
    settings["part"] = sys.modules["sweeping.knobs"].Part(settings["part"])
    with pytest.raises(UserError, match=message):
        sweep.main(data, output=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_super_resolution_needs_a_stage_to_tune(
    sweep: ModuleType, knobs: ModuleType, tiny_cascade: Path, tmp_path: Path
) -> None:
    alone = tmp_path / "alone"
    shutil.copytree(tiny_cascade, alone)
    manifest = json.loads((alone / "cascade.json").read_text())
    (alone / "cascade.json").write_text(json.dumps(manifest | {"stages": ["base16"]}))
    assert sweep.drawn_stages(str(alone), knobs.Part.base, None) == ["base16"]
    with pytest.raises(UserError, match="no super-resolution stage"):
        sweep.drawn_stages(str(alone), knobs.Part.super_resolution, None)
    with pytest.raises(UserError, match="it has sr32"):
        sweep.drawn_stages(str(tiny_cascade), knobs.Part.super_resolution, "base16")


def test_the_best_is_the_furthest_within_the_limits(
    sweep: ModuleType, knobs: ModuleType, tmp_path: Path
) -> None:
    report = sys.modules["sweeping.report"]
    rows = knobs.cross(knobs.Part.base, _start(knobs), ["steps=1,2,3,4"])["steps"]
    bench = SimpleNamespace(
        part=knobs.Part.base, key=lambda work, settings: f"{work} {settings.recipe.base.steps}"
    )
    ledger = sys.modules["sweeping.ledger"].Ledger(tmp_path / "settings.jsonl")
    figures = {  # percent of the way, drift, seconds of each subject
        1: [(30, 0.1, 50), (40, 0.1, 50)],
        2: [(50, 0.5, 90), (60, 0.1, 90)],  # one drifts too far, the mean does not
        3: [(90, 0.1, 200), (90, 0.1, 300)],  # too slow
        4: [(95, 0.1, 50)],  # not tried on every subject
    }
    names = ("of_the_way", "drift", "tuning_seconds")
    for steps, pairs in figures.items():
        for work, values in zip(("a", "b"), pairs, strict=False):
            ledger.add(f"{work} {steps}", {}, dict(zip(names, values, strict=True)))
    made = report.Sweep(
        bench, {"a": "a", "b": "b"}, {"steps": rows}, ledger, report.Limits(0.4, 150)
    )
    best = made.best(made.rows("steps"))
    assert best.setting.label == "2"
    assert best.means()["of_the_way"] == 55


def test_a_classifier_sees_in_photos_what_they_show(sweep: ModuleType, shared_data: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="extra 'evaluate' not installed")
    share_seen = sys.modules["sweeping.nouns"].share_seen
    classifier = EfficientNetLite0()
    photos = {
        noun: photos_at(read_photos(shared_data / "data" / "subjects" / noun).images, 128)
        for noun in ("dog", "cat")
    }
    for noun, other in (("dog", "cat"), ("cat", "dog")):
        assert share_seen(photos[noun], noun, classifier) >= 0.5
        assert share_seen(photos[noun], other, classifier) == 0
    assert share_seen(photos["dog"], "toy", classifier) is None


@pytest.mark.slow
def test_every_part_is_swept_and_goes_on_where_it_stopped(
    sweep: ModuleType,
    knobs: ModuleType,
    data: Path,
    tiny_cascade: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="extra 'evaluate' not installed")
    output = tmp_path / "out"

    def run(part: str, full: str, minutes: float | None = None) -> dict[str, Any]:
        sweep.main(
            data,
            ["rex"],
            part=knobs.Part(part),
            output=output,
            cascade=str(tiny_cascade),
            full=[full],
            minutes=minutes,
            most_drift=2.0,
        )
        found: dict[str, Any] = json.loads((output / part / "sweep.json").read_text())
        return found

    with pytest.raises(typer.Exit) as stopped:
        run("base", "steps=1,2", minutes=0)
    assert stopped.value.exit_code == 3
    rows = run("base", "steps=1,2")["tables"]["steps"]
    assert [row["label"] for row in rows] == ["1", "2"]
    assert sum(row["best"] for row in rows) == 1
    one = rows[0]["subjects"]["rex"]
    share = (one["similarity"] - one["floor"]) / (one["ceiling"] - one["floor"])
    assert one["of_the_way"] == pytest.approx(100 * share)
    assert one["tuning_seconds"] > 0
    assert rows[0]["subjects"] != rows[1]["subjects"]
    assert (output / "base" / "steps.png").is_file()

    # The base tuned by the recipe is kept for the other parts.
    enlarged = run("super-resolution", "batch=2")["tables"]["batch"][0]
    assert enlarged["subjects"]["rex"]["tuning_seconds"] > 0
    expected = _pictures_of_one_run(output, tiny_cascade)
    shown = [
        [np.asarray(Image.open(folder / f"{number}.png")) for number in range(6)]
        for folder in output.glob("work/*/shown/sr32-*")
    ]
    assert len(shown) == 2  # the untouched cascade's, and those of the setting
    assert sum(np.array_equal(pictures, expected) for pictures in shown) == 1
    guided = run("sampling", "guidance=1,3")["tables"]["guidance"]
    assert guided[0]["subjects"]["rex"]["tuning_seconds"] is None
    assert guided[0]["subjects"]["rex"]["floor"] != guided[1]["subjects"]["rex"]["floor"]

    lines = (output / "settings.jsonl").read_text().splitlines()
    assert len(lines) == 5
    monkeypatch.delattr(sys.modules["sweeping.trial"].Bench, "try_setting")
    run("base", "steps=1,2")  # would fail if anything were tried again


def _pictures_of_one_run(output: Path, cascade: Path) -> list[np.ndarray]:
    """Four pictures of the subject and two of the class by a run that tunes every stage."""
    (photos,) = output.glob("work/*/photos")
    folder = personalise(
        DreamBoothConfig(
            cascade=str(cascade),
            instance_data_dir=photos,
            output_dir=output / "whole",
            class_noun="dog",
            class_data_dir=output / "work" / "class-images",
            recipe=RECIPE,
        )
    )
    tuned = Cascade.load(folder)
    subject = tuned.stages[0].config.subjects[-1]
    drawn = draw_subject(tuned, subject, range(12))
    images = drawn.instance.images[:4] + drawn.of_class.images[:2]
    return [np.asarray(image) for image in images]
