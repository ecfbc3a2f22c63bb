"""The judge: files, what prompts state, and which answers are counted."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cascade.errors import UserError
from cascade.evaluate.judge import Judge
from cascade.evaluate.judge_config import Attribute, JudgeConfig
from cascade.evaluate.judge_network import JudgeNetwork

CONFIG = JudgeConfig(
    attributes={
        "concept": Attribute(
            words={name: (name,) for name in ("bear", "teddy bear", "dog", "orange", "top hat")}
        ),
        "style": Attribute(words={"3d": ("3d render of",), "photo": ("photo of",)}),
        "scene": Attribute(
            words={
                "beach": ("on the beach", "at the beach"),
                "blue background": ("on a blue background",),
            }
        ),
        "colour": Attribute(
            words={name: (name,) for name in ("red", "orange", "blue")}, otherwise="its own"
        ),
        "accessory": Attribute(words={"top hat": ("wearing a top hat",)}, otherwise="none"),
    },
    widths=(8, 8, 16, 16),
)


def _judge() -> Judge:
    torch.manual_seed(0)
    network = JudgeNetwork(CONFIG.widths, list(CONFIG.counts.values()), normalised=True)
    network(torch.rand(8, 3, 64, 64) * 2 - 1)  # running means that are not 0
    return Judge(CONFIG, network.eval())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge of random weights; copy it to change it."""
    path = tmp_path_factory.mktemp("judges") / "judge"
    _judge().save(path)
    return path


def test_a_judge_comes_back_from_its_folder(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    loaded = Judge.load(folder)
    assert loaded.config == CONFIG
    images = torch.rand(3, 3, 64, 64) * 2 - 1
    before, after = _judge().probabilities(images), loaded.probabilities(images)
    for name, answers in CONFIG.counts.items():
        assert after[name].shape == (3, answers)
        assert torch.allclose(after[name].sum(1), torch.ones(3))
        # bfloat16 keeps 8 bits of every weight: 2^-9 of it, in a network of 17 convolutions.
        assert torch.allclose(before[name], after[name], atol=17 * 2**-9)


def test_normalisation_goes_into_the_convolutions() -> None:
    network = _judge().network.double()
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        # Two orders of summation in float64, some ten terms deep.
        assert torch.allclose(network(images), network.folded()(images), atol=1e-12)


@pytest.mark.parametrize("side", [32, 64, 256])
def test_pictures_of_any_size_are_judged(folder: Path, side: int) -> None:
    probabilities = Judge.load(folder).probabilities(torch.zeros(2, 3, side, side))
    assert probabilities["colour"].shape == (2, 4)


@pytest.mark.parametrize(
    ("prompt", "stated"),
    [
        ("a dog", {"concept": "dog"}),
        ("a xyz dog on the beach", {"concept": "dog", "scene": "beach"}),
        (
            "A 3D render of a red  teddy bear wearing a top hat at the beach on the left",
            {
                "concept": "teddy bear",
                "style": "3d",
                "scene": "beach",
                "colour": "red",
                "accessory": "top hat",
            },
        ),
        ("a top hat on a blue background", {"concept": "top hat", "scene": "blue background"}),
        ("an orange dog", {"concept": "dog", "colour": "orange"}),
        ("a red orange", {"concept": "orange", "colour": "red"}),
        ("an orange dog toy at the beach", {"colour": "orange", "scene": "beach"}),
        ("a dog sitting on the left", {"concept": "dog"}),
        ("a black and white photo of a bear", {"concept": "bear", "style": "photo"}),
        ("a bored hotdog in oranges", {}),
        ("", {}),
    ],
)
def test_what_a_prompt_states(prompt: str, stated: dict[str, str]) -> None:
    assert CONFIG.stated(prompt) == stated


class _Fixed(JudgeNetwork):
    """Answers by the first pixel: the number of the answer of every attribute."""

    def forward(self, images: Tensor) -> Tensor:
        answer = images[:, 0, 0, 0].mul(10).round().long()
        parts = [
            torch.nn.functional.one_hot(answer % count, count).float()
            for count in CONFIG.counts.values()
        ]
        return torch.cat(parts, 1)


def _answering(*answers: int) -> tuple[Judge, Tensor]:
    images = torch.tensor(answers).div(10)[:, None, None, None].expand(-1, 3, 64, 64)
    return Judge(CONFIG, _Fixed(CONFIG.widths, list(CONFIG.counts.values()))), images


def test_only_what_is_stated_is_counted() -> None:
    judge, images = _answering(0, 1, 1)
    stated = [
        judge.stated(prompt) for prompt in ("a red bear", "a dog on the beach", "a photo of a dog")
    ]
    assert judge.accuracy(images, stated) == {
        "concept": pytest.approx(1 / 3),
        "style": 1.0,
        "scene": 0.0,
        "colour": 1.0,
    }
    assert judge.accuracy(images, [{}, {}, {}]) == {}
    with pytest.raises(ValueError, match="3 pictures but statements about 1"):
        judge.accuracy(images, stated[:1])


def test_what_is_no_judge_is_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no judge in"):
        Judge.load(tmp_path / "none")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    settings = json.loads((copy / "config.json").read_text())
    settings["widths"][0] = 12
    (copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"do not fit their config\.json"):
        Judge.load(copy)
    settings["attributes"]["colour"]["words"]["red"] = []
    (copy / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="colour: no words for red"):
        Judge.load(copy)


def test_the_network_stays_small() -> None:
    counts = [90, 4, 30, 8, 5]
    network = JudgeNetwork((32, 64, 128, 192), counts)
    assert sum(weight.numel() for weight in network.parameters()) <= 800_000
