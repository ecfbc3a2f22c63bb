"""Mistakes in a call are one sentence, told before anything is drawn; what is right is drawn."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cascade.config.base import MOST_SIDE
from cascade.config.sample import SampleOptions
from cascade.config.stage import AugmentationLevel, SamplerConfig
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade.request import Request, scales

NAN = float("nan")
SAMPLER = SamplerConfig()
TOO_HIGH = AugmentationLevel(value=0.5).model_copy(update={"value": 2.0})

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no prompts": ({"prompts": None}, "the prompts are None; give a text"),
    "a number as prompt": ({"prompts": 5}, "the prompts are 5; give a text"),
    "bytes": ({"prompts": b"a dog"}, "the prompts are b'a dog'; give a text"),
    "None among prompts": ({"prompts": [None]}, "None among the prompts is no text"),
    "bytes among prompts": ({"prompts": ["a", b"b"]}, "b'b' among the prompts is no text"),
    "an empty list": ({"prompts": []}, "give one prompt for all"),
    "one seed": ({"seeds": 3}, r"seeds are 3; give a list of whole numbers, such as \[3\]"),
    "endless seeds": ({"seeds": itertools.count()}, "More than 100000 pictures are too many"),
    "a tensor of one seed": ({"seeds": torch.tensor(3)}, r"seeds are tensor\(3\); give a list"),
    "digits as seeds": ({"seeds": "12"}, "seeds are '12'; give a list"),
    "seeds of fractions": ({"seeds": [0.5]}, "a seed is 0.5; give a whole number"),
    "whole floats": ({"seeds": np.array([1.0])}, "a seed is .*1.0.*; give a whole number"),
    "None among seeds": ({"seeds": [None]}, "a seed is None; give a whole number"),
    "digits among seeds": ({"seeds": ["1"]}, "a seed is '1'; give a whole number"),
    "a truth as seed": ({"seeds": [True]}, "a seed is True; give a whole number"),
    "seeds twice": ({"seeds": [1], "num_images": 2}, "give one of them"),
    "no images": ({"num_images": 0}, "num_images is 0; give a whole number from 1"),
    "half an image": ({"num_images": 1.5}, "num_images is 1.5; give a whole number"),
    "too many images": ({"num_images": 10**8}, "num_images is 100000000; .* to 100000"),
    "too many in all": ({"prompts": ["a", "b"], "num_images": 60_000}, "More than 100000 pictures"),
    "no batch": ({"batch_size": 0}, "batch_size: must be greater than 0"),
    "a negative batch": ({"batch_size": -1}, "batch_size: must be greater than 0, not -1"),
    "half a batch": ({"batch_size": 1.5}, "batch_size: must be a valid integer, not 1.5"),
    "a huge batch": ({"batch_size": 10**9}, "batch_size: must be less than or equal to 1024"),
    "no steps": ({"steps": 0}, "In what is asked: steps: must be greater"),
    "a step's half": ({"steps": 1.5}, "steps: must be a valid integer, not 1.5"),
    "guidance of no value": ({"guidance": NAN}, "guidance: must be a finite number"),
    "negative guidance": ({"guidance": -1}, "guidance: must be greater"),
    "an unknown sampler": ({"sampler": "euler"}, "sampler: must be 'ancestral'"),
    "an unknown list": ({"timesteps": ["fast28"]}, "known are fast27"),
    "lists for other stages": ({"timesteps": ["fast27"] * 3}, "3 lists of timesteps for 2"),
    "a number as list": ({"timesteps": 27}, "timesteps: must be a list, not 27"),
    "an empty list of lists": ({"timesteps": []}, "There are 0 lists of timesteps for 2"),
    "two steps of one level": (
        {"samplers": {"base16": {"timesteps": [0.005, 0]}}},
        r"In samplers\['base16'\]: sampler: timesteps must be a strictly",
    ),
    "steps twice": ({"steps": 3, "timesteps": ["fast27"]}, "give one of them"),
    "samplers of one stage": ({"samplers": SAMPLER}, "samplers: must be a table of settings"),
    "a level of an unknown stage": (
        {"levels": {"x": AugmentationLevel(value=0)}},
        "no stage 'x'; it has base16, sr32",
    ),
    "an unknown argument": ({"stepz": 3}, r"'stepz' is not a setting \(did you mean 'steps'\?\)"),
    "fewer seeds than prompts": ({"prompts": ["a", "b"], "seeds": [1]}, "or one per seed"),
    "more seeds than prompts": ({"prompts": ["a", "b"], "seeds": [1, 2, 3]}, "or one per seed"),
    "no seeds": ({"seeds": []}, "give one prompt for all, or one per seed"),
    "an unknown stage": ({"samplers": {"x": SAMPLER}}, "no stage 'x'; it has base16, sr32"),
    "a name as sampler": ({"samplers": {"sr32": "ddim"}}, r"samplers\['sr32'\] are 'ddim'"),
    "an unknown setting": ({"samplers": {"sr32": {"stepz": 2}}}, "did you mean 'steps'"),
    "unchecked guidance": (
        {"samplers": {"sr32": SAMPLER.model_copy(update={"guidance": NAN})}},
        r"In samplers\['sr32'\]: sampler.guidance",
    ),
    "unchecked steps": (
        {"samplers": {"sr32": SAMPLER.model_copy(update={"steps": 0})}},
        r"In samplers\['sr32'\]: sampler.steps",
    ),
    "a variance that is not learned": (
        {"samplers": {"sr32": {"variance": "learned"}}},
        "needs unet.learned_variance",
    ),
    "a level of a base stage": (
        {"levels": {"base16": AugmentationLevel(value=0.1)}},
        "'base16' enlarges nothing and has no level",
    ),
    "a number as levels": ({"levels": 0.1}, "levels: must be a table of settings"),
    "a number as level": ({"levels": {"sr32": 0.1}}, "levels.sr32: must be a table of settings"),
    "an unchecked level": ({"levels": {"sr32": TOO_HIGH}}, "levels.sr32.value: must be less"),
    "a level beyond its range": ({"noise_level": 1.5}, "noise_level: must be less"),
    "an aspect ratio of words": ({"aspect": "wide"}, "aspect: must be two positive whole numbers"),
    "a number as aspect ratio": ({"aspect": 1.5}, "aspect: must be a valid string, not 1.5"),
    "one side": ({"aspect": "3"}, "width to height, such as 3:2, from 1:4 to 4:1, not '3'"),
    "three sides": ({"aspect": "3:2:1"}, "not '3:2:1'"),
    "a side of nothing": ({"aspect": "3:0"}, "not '3:0'"),
    "a negative side": ({"aspect": "-3:2"}, "not '-3:2'"),
    "a side's half": ({"aspect": "1.5:1"}, "not '1.5:1'"),
    "too wide": ({"aspect": "401:100"}, "not '401:100'"),
    "too high": ({"aspect": "1:5"}, "not '1:5'"),
    "an unknown last stage": ({"last_stage": "sr64"}, "no stage 'sr64'"),
    "numbers as last stage": ({"last_stage": np.arange(2)}, "last_stage: must be a valid string"),
    "negative prompts for others": (
        {"negative_prompts": ["a", "b"]},
        "2 negative prompts for 1 pictures",
    ),
    "a number as negative prompt": (
        {"negative_prompts": 1},
        "negative_prompts: must be a list",
    ),
    "a negative prompt without guidance": (
        {"negative_prompts": "a cat", "guidance": 1},
        "a negative prompt does nothing",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_drawn(cascade: Cascade, case: str) -> None:
    wrong, message = WRONG[case]
    begun: list[object] = []
    given = {"prompts": "a dog", "on_step": lambda *step: begun.append(step)} | wrong
    with pytest.raises(UserError, match=message):
        cascade.sample(**given)
    assert begun == []


@pytest.mark.parametrize(
    "seeds", [np.arange(2), torch.arange(2), range(2), (0, 1), iter([0, 1]), [np.int64(0), 1]]
)
def test_seeds_are_whole_numbers_of_any_kind(cascade: Cascade, seeds: Any) -> None:
    request = Request.of(cascade.configs, "a dog", seeds)
    assert request.seeds == (0, 1)
    assert all(type(seed) is int for seed in request.seeds)


def test_every_prompt_has_its_number_of_images(cascade: Cascade) -> None:
    request = Request.of(cascade.configs, ["a dog", "a cat"], num_images=2)
    assert request.prompts == ("a dog", "a dog", "a cat", "a cat")
    assert request.seeds == (0, 1, 0, 1)
    assert Request.of(cascade.configs, ["a dog", "a cat"]).seeds == (0, 1)


def test_settings_are_the_checkpoints_but_for_what_is_asked(cascade: Cascade) -> None:
    base, large = cascade.configs
    asked = Request.of(
        cascade.configs,
        "a dog",
        None,
        SampleOptions(steps=4, noise_level=0.5, samplers={"sr32": {"guidance": 2}}),
    ).settings
    assert asked[0].sampler == base.sampler.model_copy(update={"steps": 4})
    assert asked[1].sampler == large.sampler.model_copy(update={"steps": 4, "guidance": 2.0})
    assert [setting.level for setting in asked] == [None, AugmentationLevel(value=0.5)]
    (first,) = Request.of(
        cascade.configs, "a dog", None, SampleOptions(last_stage="base16")
    ).settings
    assert first.stage == "base16"
    listed = base.model_copy(
        update={"sampler": base.sampler.model_copy(update={"timesteps": (900.0, 500.0, 100.0)})}
    )
    (plain,) = Request.of((listed,), "a dog").settings
    assert plain.sampler == listed.sampler
    (counted,) = Request.of((listed,), "a dog", None, SampleOptions(steps=4)).settings
    assert counted.sampler == base.sampler.model_copy(update={"steps": 4})
    named = Request.of(
        cascade.configs, "a", None, SampleOptions(timesteps=("fast27", "smart27"))
    ).settings
    assert [len(setting.sampler.timesteps or ()) for setting in named] == [27, 27]
    some = SampleOptions(timesteps=("fast27",), samplers={"sr32": {"steps": 9}})
    own = Request.of(cascade.configs, "a", None, some).settings
    assert [setting.sampler.count for setting in own] == [27, 9]


def test_shorthands_draw_what_whole_settings_draw(cascade: Cascade) -> None:
    whole = {
        config.name: config.sampler.model_copy(update={"steps": 4, "guidance": 2.0})
        for config in cascade.configs
    }
    expected = cascade.sample("a dog", [0, 1], samplers=whole)
    drawn = cascade.sample("a dog", num_images=2, steps=np.int64(4), guidance=2)
    assert torch.equal(drawn.tensor, expected.tensor)


def test_guidance_leads_away_from_a_negative_prompt(cascade: Cascade) -> None:
    plain = cascade.sample("a dog", [0], guidance=3.0)
    away = cascade.sample("a dog", [0], guidance=3.0, negative_prompts="a cat on the beach")
    for name, images in away.stages.items():
        assert (images - plain.stages[name]).abs().max() > 1e-3
    # Both branches the same: any guidance is none, as with a weight of 1.
    same = cascade.sample("a dog", [0], guidance=3.0, negative_prompts="a dog")
    none = cascade.sample("a dog", [0], guidance=1.0)
    torch.testing.assert_close(same.tensor, none.tensor, rtol=0, atol=1e-4)
    each = cascade.sample(
        "a dog", [0, 0], guidance=3.0, negative_prompts=["a cat on the beach", "a dog"]
    )
    torch.testing.assert_close(each.tensor[:1], away.tensor, rtol=0, atol=1e-4)
    torch.testing.assert_close(each.tensor[1:], same.tensor, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("argument", "values", "message"),
    [
        ("path", (None, [], 3, "", [""], [None], b"mini"), "A cascade is a folder, not"),
        ("device", ("tpu", "meta", "cuda:99", "", 1.5, 10**30), "no device '{}'"),
        (
            "encoder_mode",
            ("float16", "", None, 3, [], {}, np.arange(2)),
            "text encoder cannot be held in",
        ),
        ("embeddings", (3,), "embeddings are 3; give the folder of a store"),
        ("embeddings", ("some/gone",), "gone"),
    ],
)
def test_what_cannot_be_loaded(
    tiny_cascade: Path, argument: str, values: tuple[Any, ...], message: str
) -> None:
    for value in values:
        with pytest.raises(UserError, match=message.format(value)):
            Cascade.load(**{"path": tiny_cascade, argument: value})


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (48, "pictures of 16, 32, 64 pixels"),
        (2 * MOST_SIDE, "the size is 8192; give a whole number from 1 to 4096"),
        (0, "the size is 0; give a whole number"),
        (64.0, "the size is 64.0; give a whole number"),
        ("64", "the size is '64'; give a whole number"),
        (None, "the size is None; give a whole number"),
    ],
)
def test_sizes_that_are_not_made(cascade: Cascade, size: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scales(cascade.configs, size)


def test_the_class_is_found_where_the_package_is_and_the_package_alone_is_light() -> None:
    code = (
        "import sys, cascade; assert 'torch' not in sys.modules; "
        "from cascade import Cascade; assert Cascade is sys.modules['cascade.pipeline'].Cascade"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
