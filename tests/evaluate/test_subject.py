"""What is found of cascades that were tuned on a subject, of any number of stages."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from cascade.config.evaluate import SubjectScoreConfig
from cascade.config.stage import SubjectConfig
from cascade.data.images import to_tensors
from cascade.evaluate.enlargement import Pairs
from cascade.evaluate.judge import Judge
from cascade.evaluate.judge_config import Attribute, JudgeConfig
from cascade.evaluate.judge_network import JudgeNetwork
from cascade.evaluate.stage import METRICS as STAGE_METRICS
from cascade.evaluate.subject import BEFORE, Drawn, Enlarged, Evidence, Means, Photos, draw
from cascade.evaluate.subject_metrics import METRICS, likeness, score, way
from cascade.evaluate.subject_report import Found, page, sheets, training_seconds
from cascade.pipeline import Cascade, CascadeOutput
from cascade.results import Result
from cascade.tables import explained

RED, BLUE = (255, 0, 0), (0, 0, 255)
GROUNDS = ("yellow", "white", "brown", "black", "green", "grey")
SUBJECT = SubjectConfig(identifier="xyz", class_noun="dog")
SIZES = {"base16": 16, "sr32": 32, "sr64": 64}


class Pixels:
    """Features that one can see: the pixels."""

    name = "pixels"

    def __call__(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def scene(subject: tuple[int, int, int], ground: str, side: int = 16) -> Image.Image:
    image = Image.new("RGB", (side, side), ground)
    image.paste(subject, mask().resize((side, side), Image.Resampling.NEAREST))
    return image


def mask() -> Image.Image:
    drawn = Image.new("L", (16, 16))
    drawn.paste(255, (4, 4, 12, 12))
    return drawn


def pictures(subjects: Sequence[tuple[int, int, int]], ground: str, stages: int) -> CascadeOutput:
    names = list(SIZES)[:stages]
    return CascadeOutput(
        {n: to_tensors([scene(one, ground, SIZES[n]) for one in subjects]) for n in names}
    )


def drawn(*subjects: tuple[int, int, int], stages: int = 1) -> Drawn:
    """The subject in these colours, alone and in every place; what comes after is no place."""
    shown = {f"a xyz dog on {ground}": pictures(subjects, ground, stages) for ground in GROUNDS}
    shown["a red xyz dog"] = pictures([(128, 128, 128)] * len(subjects), "pink", stages)
    pair = Pairs(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 32, 32))
    enlarged = {name: Enlarged(pair, pair.high + 0.2) for name in list(SIZES)[1:stages]}
    white, black = (pictures(subjects, ground, stages) for ground in ("white", "black"))
    return Drawn(white, black, shown, enlarged)


PHOTOS = Photos([scene(RED, ground) for ground in ("purple", "orange")], [mask(), mask()])
MEANS = Means(Pixels(), lambda image: mask().resize(image.size), None, places=len(GROUNDS))


def test_the_way_goes_from_the_untuned_cascade_to_the_photos() -> None:
    assert way(0.5, floor=0.4, ceiling=0.6) == pytest.approx(50)
    assert way(0.3, floor=0.4, ceiling=0.6) == pytest.approx(-50)
    assert way(0.5, floor=0.6, ceiling=0.6) is None


def test_likeness_leads_from_the_untouched_cascade_to_the_photos_whatever_lies_behind() -> None:
    before = Evidence("base16", drawn(BLUE, BLUE), PHOTOS, MEANS)
    ways = [
        likeness(Evidence("base16", drawn(*colours), PHOTOS, MEANS, before))
        for colours in ((BLUE, BLUE), (RED, BLUE), (RED, RED))
    ]
    assert ways == pytest.approx([0, 50, 100], abs=1e-4)


def test_what_cannot_be_measured_is_none() -> None:
    bare = Drawn(drawn(BLUE, RED).instance, drawn(BLUE, RED).of_class, {}, {})
    found = score(Evidence("base16", bare, PHOTOS, MEANS))
    unknown = {name for name, value in found.items() if value is None}
    judged = {"scene, %", "style, %", "colour, %", "accessory, %"}
    assert unknown == {"likeness, %", "PSNR, dB", "feature distance"} | judged
    assert found["prior drift"] == found["of the way, %"] == 0  # this is the cascade before
    unmasked = replace(PHOTOS, masks=())
    assert likeness(Evidence("base16", drawn(BLUE, RED), unmasked, MEANS)) is None


def test_what_prompts_state_is_judged() -> None:
    grounds = {ground: (f"on {ground}",) for ground in ("white", "black")}
    config = JudgeConfig(attributes={"scene": Attribute(words=grounds)}, widths=(8, 8, 8, 8))
    means = replace(MEANS, judge=Judge(config, JudgeNetwork(config.widths, [2]).eval()))
    same = dict.fromkeys(
        ("a xyz dog on white", "a xyz dog on black", "a red xyz dog"), pictures([RED], "white", 1)
    )
    shown = replace(drawn(RED, BLUE), elsewhere=same)
    found = score(Evidence("base16", shown, PHOTOS, means))
    # Whatever random weights answer, pictures that are all the same get the same answer.
    assert found["scene, %"] == 50
    assert found["style, %"] is None


def _found(stages: int) -> Found:
    kinds = {BEFORE: drawn(BLUE, BLUE, stages=stages), "after": drawn(RED, BLUE, stages=stages)}
    names = list(SIZES)[:stages]
    before = {name: Evidence(name, kinds[BEFORE], PHOTOS, MEANS) for name in names}
    scores = {
        name: {
            kind: score(Evidence(name, of, PHOTOS, MEANS, before[name]))
            for kind, of in kinds.items()
        }
        for name in names
    }
    log = [{"step": 2.0, "images": 8.0, "images_per_second": 4.0, "loss": 0.1}]
    return Found(SUBJECT, PHOTOS, kinds, scores, {"after": {"base16": log}})


@pytest.mark.parametrize("stages", [1, 3])
def test_cascades_of_any_length_are_reported(stages: int) -> None:
    pytest.importorskip("matplotlib", reason="extra 'evaluate' not installed")
    found = _found(stages)
    tables = list(found.tables())
    assert [table.head[0] for table in tables] == list(SIZES)[:stages]
    assert all([row[0] for row in table.rows] == [BEFORE, "after"] for table in tables)
    assert ("PSNR, dB" in tables[-1].head) == (stages > 1)  # nobody has one of a base
    shown = {name: (caption, picture) for name, caption, picture in sheets(found)}
    assert list(shown) == ["photos", "subject", "class", "elsewhere"] + [
        f"enlarged-{name}" for name in list(SIZES)[1:stages]
    ]
    record = Result.of("evaluate subject", SubjectScoreConfig(), found.figures)
    assert record.figures["seconds of training"] == {"after": {"base16": 2.0}}
    html = page(found, record, shown).render()
    assert html.count("<h2 ") == len(shown) + 3  # figures, loss, how it was made
    assert f"at {list(SIZES)[stages - 1]}: before " in html


def test_a_new_metric_is_one_function_and_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def brightness(e: Evidence) -> float:
        """How bright pictures of the subject are."""
        return float(e.drawn.instance.stages[e.stage].mean())

    monkeypatch.setitem(METRICS, "brightness", brightness)  # type: ignore[arg-type]
    found = _found(1)
    (table,) = found.tables()
    assert table.head[-1] == "brightness"
    assert isinstance(table.rows[0][-1], float)
    assert "brightness: How bright pictures of the subject are." in table.note
    scores = found.figures["scores"]
    assert isinstance(scores, dict)
    assert scores["base16"]["after"]["brightness"] == table.rows[1][-1]


def test_training_seconds_are_those_of_the_loop() -> None:
    log = [
        {"images": 40.0, "images_per_second": 4.0},
        {"images": 50.0, "val_loss": 0.1},  # a look at the stage
        {"images": 60.0, "images_per_second": 2.0},  # slower, perhaps after a restart
    ]
    assert training_seconds(log) == 20.0
    assert training_seconds([]) == 0.0


def test_pictures_are_those_of_the_cascade_by_these_seeds(tiny_cascade: Path) -> None:
    cascade = Cascade.load(tiny_cascade)
    config = SubjectScoreConfig(
        images=2, seed=3, places=("a {subject} on the beach",), changes=("a red {subject}",)
    )
    found = draw(cascade, SUBJECT, PHOTOS, config)
    expected = cascade.sample("a xyz dog", [3, 4], precision=config.precision)
    assert torch.equal(found.instance.tensor, expected.tensor)
    assert not torch.equal(found.of_class.tensor, found.instance.tensor)
    assert list(found.elsewhere) == ["a xyz dog on the beach", "a red xyz dog"]
    assert [len(some.tensor) for some in found.elsewhere.values()] == [1, 1]
    assert found.enlarged["sr32"].picture.shape == found.enlarged["sr32"].pair.high.shape
    assert (
        draw(cascade, SUBJECT, PHOTOS, config.model_copy(update={"elsewhere": 0})).elsewhere == {}
    )


@pytest.mark.parametrize("metrics", [METRICS, STAGE_METRICS])
def test_a_metric_is_told_by_what_it_is(metrics: Mapping[str, object]) -> None:
    # Its docstring is a table's legend, and no instruction.
    legend = explained(metrics)
    assert next(iter(metrics)) in legend
    assert not re.search(r": (Return|Compare|Measure|Compute)\b", legend)
