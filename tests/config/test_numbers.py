"""Every number of every setting has a range, and nothing but a number is one."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from cascade.config.base import Frozen
from cascade.config.data import DataConfig, DataSetConfig, RowConfig
from cascade.config.dreambooth import DrawnConfig, DreamBoothConfig
from cascade.config.embed import EmbedConfig
from cascade.config.engine import BundleOptions, EngineOptions
from cascade.config.evaluate import DrawingConfig, StageScoreConfig, SubjectScoreConfig
from cascade.config.look import CheckConfig, InfoConfig
from cascade.config.memory import MemoryConfig
from cascade.config.pack import PackConfig
from cascade.config.recipes import RECIPES
from cascade.config.sample import LoraOptions, SampleConfig, SampleOptions
from cascade.config.serve import KeyConfig, KeyOptions, KeysConfig, ServeConfig, ServerEngines
from cascade.config.stage import AugmentationLevel
from cascade.config.train import PretrainConfig
from cascade.errors import UserError
from cascade.evaluate.judge_config import Attribute, JudgeConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LEVEL = AugmentationLevel(value=0.5)
WRONG = (math.inf, math.nan, -1e30, 1e30, -(10**30), 10**30, 10**5000, True, "x", "1")

# Every setting that may be left out is given, and every list has an entry.
WHOLE: tuple[Frozen, ...] = (
    PretrainConfig.read(
        CONFIGS / "mini-sr256.toml",
        [
            "stage.low_res.crop=64",
            "stage.sampler.timesteps=[3, 1.5]",
            "stage.sampler.threshold={cap=1.5}",
            "train.ema_decay=0.9",
            "train.validate_every=5",
            "stage.sampler.guidance_interval=[0.5, 50.0]",
            "train.averages=[{std=0.1}, {half_life=5}]",
            "train.guard.spike=9.0",
            "train.parallel={strategy='hsdp', replicas=2}",
            "train.snapshot_every=5",
            "validation.loss_rows=9",
        ],
    ),
    DreamBoothConfig(
        cascade="mini",
        instance_data_dir=Path("photos"),
        output_dir=Path("out"),
        class_noun="dog",
        recipe=RECIPES["mini"],
    ),
    SampleConfig(
        prompts=("a dog",),
        steps=3,
        guidance=2.0,
        guidance_interval=(0.5, 50.0),
        noise_level=0.1,
        size=512,
        levels={"sr": LEVEL},
        engines=BundleOptions(threads=2, max_memory=100),
    ),
    DataConfig(sets=(DataSetConfig(folder="pictures", weight=2.0),)),
    MemoryConfig(size=64),
    InfoConfig(),
    CheckConfig(workers=2),
    EmbedConfig(output=Path("store"), cascade="mini", caption=("a dog",)),
    PackConfig(
        sources=("photos",),
        output=Path("pack"),
        shrink=512,
        most_aspect=2.0,
        duplicates=4,
        workers=2,
    ),
    ServeConfig(
        options={"mini": SampleOptions(steps=3)},
        engines=ServerEngines(threads=2),
        max_memory=100,
    ),
    KeysConfig(
        keys=(KeyConfig(name="me", sha256="0" * 64, requests_per_minute=3, pictures_per_day=9),)
    ),
    JudgeConfig(attributes={"concept": Attribute(words={"dog": ("dog",)})}),
    SubjectScoreConfig(),
    StageScoreConfig(side=64, steps=5, guidance=1.0, guidance_interval=(0.5, 50.0)),
)


Place = tuple[type[Frozen] | None, tuple[str | int, ...]]


def numbers(
    settings: object, owner: type[Frozen] | None = None, path: tuple[str | int, ...] = ()
) -> Iterator[Place]:
    """Where the numbers inside of settings are, with the class that each is a field of."""
    if isinstance(settings, Frozen):
        for name in type(settings).model_fields:
            yield from numbers(getattr(settings, name), type(settings), (*path, name))
    elif isinstance(settings, tuple):
        for index, entry in enumerate(settings):
            yield from numbers(entry, owner, (*path, index))
    elif isinstance(settings, int | float) and not isinstance(settings, bool):
        yield owner, path


def field_of(path: tuple[str | int, ...]) -> str:
    return next(part for part in reversed(path) if isinstance(part, str))


PLACES = [(whole, path) for whole in WHOLE for _, path in numbers(whole)]


@pytest.mark.parametrize(
    ("whole", "path"),
    PLACES,
    ids=[f"{type(whole).__name__}-{'.'.join(map(str, path))}" for whole, path in PLACES],
)
def test_what_is_no_number_in_its_range_is_refused(
    whole: Frozen, path: tuple[str | int, ...]
) -> None:
    for wrong in WRONG:
        values: Any = whole.model_dump(mode="json")
        table = values
        for part in path[:-1]:
            table = table[part]
        table[path[-1]] = wrong
        with pytest.raises(UserError, match=field_of(path)) as caught:
            type(whole).parse(values, "settings.toml")
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith(".")


def test_no_number_was_left_out() -> None:
    seen = {(owner, field_of(path)) for whole in WHOLE for owner, path in numbers(whole)}
    held = {kind for kind in settings_classes(Frozen) if kind.__module__.startswith("cascade.")}
    # What a pack tells of itself is counted and measured, not set.
    held = {kind for kind in held if kind.__module__ != "cascade.data.pack"}
    # Only their heirs are made.
    parents = {DrawnConfig, DrawingConfig, EngineOptions, LoraOptions, RowConfig}
    parents |= {KeyOptions, SampleOptions}
    everywhere = {
        (kind, name)
        for kind in held - parents
        for name, field in kind.model_fields.items()
        if is_number(field.annotation)
    }
    assert everywhere - seen == set()


def settings_classes(kind: type[Frozen]) -> Iterator[type[Frozen]]:
    for inner in kind.__subclasses__():
        yield inner
        yield from settings_classes(inner)


def is_number(annotation: Any) -> bool:
    return annotation in (int, float) or any(map(is_number, get_args(annotation)))


def test_every_setting_says_what_it_is() -> None:
    held = {
        kind for kind in settings_classes(Frozen) if kind.__module__.startswith("cascade.config")
    }
    silent = [
        f"{kind.__name__}.{name}"
        for kind in held
        for name, field in kind.model_fields.items()
        if not field.description
    ]
    assert silent == []
