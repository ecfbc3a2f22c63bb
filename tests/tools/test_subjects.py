"""The tables of `tools/subjects.py` and the demonstration's page, for cascades of any length."""

import importlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image

from cascade.config.dreambooth import PriorConfig, Recipe
from cascade.config.recipes import RECIPES
from cascade.config.stage import SamplerConfig, SubjectConfig
from cascade.config.train import TrainConfig
from cascade.data.images import read_photos, to_tensors
from cascade.dreambooth.masks import Mask
from cascade.errors import UserError
from cascade.evaluate.judge import FOLDER, Judge
from cascade.evaluate.judge_config import Attribute, JudgeConfig
from cascade.evaluate.judge_network import JudgeNetwork
from cascade.evaluate.subject import Drawn, Reconstruction, SubjectScores
from cascade.pipeline import Pictures

MODULES = (
    "demo",
    "comparison",
    "demo_report",
    "elsewhere",
    "kinds",
    "subjects",
    "tables",
    "tuning",
    "work",
)
SIZES = {"base64": 64, "sr256": 256, "sr1024": 1024}


@pytest.fixture
def subjects(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module as `python tools/subjects.py` sees it."""
    monkeypatch.syspath_prepend(str(repository / "tools"))
    yield importlib.import_module("subjects")
    for name in MODULES:
        sys.modules.pop(name, None)


def _scores(similarity: float, drift: float) -> SubjectScores:
    return SubjectScores(similarity, 0.2, 0.5, 0.4, drift)


def _outcome(
    stages: Sequence[str],
    after: float,
    times: dict[str, float],
    scene_accuracy: float | None = None,
    likeness: float | None = None,
) -> Any:
    kinds = tuple(sys.modules["subjects"].KINDS)
    pictures = Pictures({name: torch.zeros(6, 3, SIZES[name], SIZES[name]) for name in stages})
    low, high = torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, 256, 256)
    pair = tuple(Reconstruction(low, high, psnr, 0.5) for psnr in (20.0, 22.0))
    log = [{"step": 2.0, "images": 8.0, "images_per_second": 4.0, "loss": 0.1}] * 2
    return sys.modules["comparison"].Outcome(
        subject=SubjectConfig(identifier="xyz", class_noun="dog"),
        photos=(Image.new("RGB", (300, 280)),) * 3,
        held_out=Image.new("RGB", (300, 300)),
        drawn={kind: Drawn(pictures, pictures) for kind in kinds},
        masks=Image.new("RGB", (90, 30)),
        elsewhere={kind: {"a red xyz dog": pictures} for kind in (kinds[0], kinds[-1])},
        likeness={} if likeness is None else {kinds[-1]: likeness},
        accuracy={} if scene_accuracy is None else {kinds[-1]: {"scene": scene_accuracy}},
        reconstructions=dict.fromkeys(stages[1:], pair),
        scores={
            name: {
                kind: _scores(value, drift)
                for kind, value, drift in zip(
                    kinds, (0.4, 0.5, 0.5, after), (0.0, 0.6, 0.4, 0.3), strict=True
                )
            }
            for name in stages
        },
        ceilings=dict.fromkeys(stages, 0.6),
        logs=dict.fromkeys(stages, log),
        times=times,
    )


def test_the_goals_are_told_per_subject_and_in_the_mean(subjects: ModuleType) -> None:
    stages = ("base64", "sr256")
    near = {"class images": 30.0, "tuning base64": 200.0, "tuning sr256": 60.0}
    slow = {"tuning base64": 400.0, "tuning sr256": 90.0, "tuning base64 plain DreamBooth": 99.0}
    outcomes = {
        "rex": [_outcome(stages, 0.55, near, 0.9, 70.0)],
        "tom": [_outcome(stages, 0.45, slow)],
    }
    head, _, rex, tom, average, _, told = subjects.goals(outcomes).splitlines()
    assert head.endswith("| class images, s | tuning base64, s | tuning sr256, s | together, s |")
    shared = "0.200 | 0.500 | 0.300 |"
    assert rex == f"| rex | 90 % | – | – | – | 70 % | 75 % | {shared} 30 | 200 | 60 | 290 |"
    assert tom == f"| tom | – | – | – | – | – | 25 % | {shared} – | 400 | 90 | 490 |"
    assert average == f"| mean | 90 % | – | – | – | 70 % | 50 % | {shared} 30 | 300 | 75 | 390 |"
    assert told.startswith(
        "Of 2 runs 1 reached 80 % of scene, 1 reached 60 % of likeness, and 1 took 480 s or less."
    )
    shares = subjects.row(outcomes["rex"][0])["percent_of_the_way"]["sr256"]
    assert shares == pytest.approx(
        {"plain DreamBooth": 50.0, "class images in scenes": 50.0, "after": 75.0}
    )


def test_kinds_are_told_with_their_spread_over_the_runs(subjects: ModuleType) -> None:
    outcomes = {
        "rex": [_outcome(("base64",), after, {}, scene) for after, scene in ((0.5, 0.8), (0.6, 1))]
    }
    lines = subjects.kinds(outcomes).splitlines()
    assert lines[2].startswith("| before | – | – | – | – | – | 0 % ± 0 |")
    assert lines[-1].startswith("| after | 90 % ± 14 | – | – | – | – | 75 % ± 35 | 0.200 ± 0.000 |")


@pytest.mark.parametrize("stages", [("base64",), ("base64", "sr256", "sr1024")])
def test_cascades_of_any_length_are_reported(subjects: ModuleType, stages: tuple[str, ...]) -> None:
    pytest.importorskip("matplotlib", reason="extra 'evaluate' not installed")
    outcome = _outcome(stages, 0.55, {"tuning base64": 200.0})
    text = subjects.tables({"rex": [outcome]})
    assert text.count("held-out photo at") == len(stages) - 1
    assert subjects.sheet({"rex": [outcome]}).width > 8 * 192
    page = importlib.import_module("demo_report").demo_report(outcome, "tools/demo.py", {}).render()
    assert "75 % of the way" in page
    assert f"Steps of training: {', '.join(f'{stage} 2' for stage in stages)}." in page
    assert page.count("before and after</h2>") == len(stages)  # the subject's and each enlarging's


def test_the_place_of_scenes_is_judged_where_there_is_a_judge(
    subjects: ModuleType, tiny_cascade: Path, tmp_path: Path
) -> None:
    accuracy = sys.modules["elsewhere"].accuracy
    pictures = {
        "after": {
            prompt: Pictures({"base16": torch.zeros(2, 3, 16, 16)})
            for prompt in ("a xyz dog on the beach", "a xyz dog in the snow", "a red xyz dog")
        }
    }
    assert accuracy(str(tiny_cascade), pictures) == {}
    places = {"beach": ("on the beach",), "snow": ("in the snow",)}
    config = JudgeConfig(attributes={"scene": Attribute(words=places)}, widths=(8, 8, 8, 8))
    Judge(config, JudgeNetwork(config.widths, [2])).save(tmp_path / FOLDER)
    # Whatever random weights answer, pictures that are all the same get the same answer.
    assert accuracy(str(tmp_path), pictures) == {"after": {"scene": 0.5}}


def test_likeness_leads_from_the_untouched_cascade_to_the_photos_whatever_lies_behind(
    subjects: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["elsewhere"]
    box = (4, 4, 12, 12)
    mask = Image.new("L", (16, 16))
    mask.paste(255, box)
    monkeypatch.setattr(module, "U2NetP", lambda: lambda _: mask)

    def scene(subject: tuple[int, int, int], ground: str) -> Image.Image:
        image = Image.new("RGB", (16, 16), ground)
        image.paste(subject, box)
        return image

    def drawn(*subjects: tuple[int, int, int]) -> dict[str, Pictures]:
        places = dict.fromkeys(("yellow", "white", "brown", "black", "green", "grey"), subjects)
        # What comes after the places does not count.
        shown = {**places, "pink": ((128, 128, 128),) * len(subjects)}
        return {
            ground: Pictures({"base16": to_tensors([scene(one, ground) for one in some])})
            for ground, some in shown.items()
        }

    red, blue = (255, 0, 0), (0, 0, 255)
    photos = [scene(red, ground) for ground in ("purple", "orange")]
    pictures = {"before": drawn(blue, blue), "half": drawn(red, blue), "after": drawn(red, red)}
    found = module.likeness(
        pictures, photos, [Mask(mask, "painted")] * 2, "base16", lambda images: images.flatten(1)
    )
    assert found == pytest.approx({"before": 0, "half": 50, "after": 100}, abs=1e-4)


def test_plain_dreambooth_has_the_class_alone_as_often_as_the_recipe(subjects: ModuleType) -> None:
    kinds = sys.modules["kinds"]
    plain = kinds.recipe_of(kinds.PLAIN, RECIPES["mini"])
    recipe = RECIPES["mini"]
    assert plain.masks is None
    prompts = recipe.class_prompts("a cat", recipe.prior.variations)
    shown = [prompts[number % len(prompts)] for number in range(recipe.prior.images)]
    assert plain.prior.images == shown.count("a cat")
    assert plain.class_prompts("a cat", plain.prior.variations) == ("a cat",)
    assert kinds.recipe_of(kinds.PLAIN, RECIPES["paper"]) == RECIPES["paper"]


def test_the_kinds_beside_the_recipe_may_take_fewer_steps(
    subjects: ModuleType, photos: Path, tmp_path: Path
) -> None:
    work = subjects.prepare(read_photos(photos), "dog", tmp_path / "out", "mini")
    comparison = subjects.Comparison(work, {"plain DreamBooth": 1, "after": 1}, others_share=0.25)
    recipe = RECIPES["mini"]
    assert comparison.config("after").recipe == recipe
    shortened = comparison.config("plain DreamBooth").recipe
    assert shortened.base.steps == round(recipe.base.steps / 4)
    assert shortened.base.optimizer == recipe.base.optimizer


def test_photos_are_copied_with_all_that_says_where_the_subject_is(
    subjects: ModuleType, tmp_path: Path
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    Image.new("RGBA", (64, 64), (200, 0, 0, 90)).save(mine / "a.png")
    Image.new("RGB", (64, 64)).save(mine / "b.png")
    Image.new("L", (64, 64), 255).save(mine / "b-masklabel.png")

    def prepared() -> Path:
        work = subjects.prepare(read_photos(mine), "dog", tmp_path / "out", "mini")
        return Path(work.folder) / "photos"

    copies = prepared()
    assert {path.name for path in copies.iterdir()} == {"a.png", "b.png", "b-masklabel.png"}
    assert all(path.read_bytes() == (mine / path.name).read_bytes() for path in copies.iterdir())
    (mine / "a.png").rename(mine / "c.png")
    assert {path.name for path in prepared().iterdir()} == {"c.png", "b.png", "b-masklabel.png"}


def test_the_demonstration_brings_photos_or_takes_a_folder_s(
    subjects: ModuleType, photos: Path, tmp_path: Path
) -> None:
    pytest.importorskip("skimage", reason="extra 'evaluate' not installed")
    photos_of = importlib.import_module("demo").photos_of
    for shipped in ("cat", "cup"):
        assert len(photos_of(shipped, None, tmp_path).paths) == 4
    assert photos_of(str(photos), "dog", tmp_path).paths == read_photos(photos).paths
    with pytest.raises(UserError, match="Say with --class what the photos in mine show"):
        photos_of("mine", None, tmp_path)
    with pytest.raises(UserError, match="give the folder with --subject"):
        photos_of("cat", "dog", tmp_path)


def test_training_seconds_are_those_of_the_loop(subjects: ModuleType) -> None:
    seconds = sys.modules["tuning"].training_seconds
    log = [
        {"images": 40.0, "images_per_second": 4.0},
        {"images": 60.0, "images_per_second": 2.0},  # slower, perhaps after a restart
    ]
    assert seconds(log) == 20.0
    assert seconds([]) == 0.0


@pytest.mark.slow
def test_a_subject_is_tuned_once_and_its_seconds_stay(
    subjects: ModuleType,
    photos: Path,
    tiny_cascade: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="extra 'evaluate' not installed")
    steps = TrainConfig(steps=2, batch_size=2, log_every=1)
    prior = PriorConfig(images=2, batch_size=2, sampler=SamplerConfig(steps=2, guidance=1.0))
    recipe = Recipe(prior=prior, base=steps, super_resolution=steps)
    monkeypatch.setattr(sys.modules["work"], "RECIPES", {"mini": recipe})
    shutil.copytree(photos, tmp_path / "data" / "rex")
    (tmp_path / "data" / "prompts_and_classes.txt").write_text("subject_name,class\nrex,dog\n")

    def run() -> dict[str, Any]:
        subjects.main(tmp_path / "data", ["rex"], tmp_path / "out", str(tiny_cascade))
        found = json.loads((tmp_path / "out" / "subjects.json").read_text())
        return found["subjects"]["rex"][0]  # type: ignore[no-any-return]

    first, again = run(), run()
    tuning = ("tuning base16", "tuning sr32")
    assert set(first["seconds"]) > {"class images", *tuning}
    assert "class images" not in again["seconds"]  # they were there
    assert [first["seconds"][part] for part in tuning] == [
        again["seconds"][part] for part in tuning
    ]
    assert first["scores"] == again["scores"]
    assert set(first["reconstructions"]) == {"sr32"}
    assert "1 took 480 s or less" in (tmp_path / "out" / "subjects.md").read_text()
