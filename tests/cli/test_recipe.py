"""Each flag of `cascade dreambooth` replaces the numbers it names, and no others."""

from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from cascade.cli.dreambooth import dreambooth
from cascade.cli.dreambooth_flags import precision_of, scenes_of
from cascade.cli.recipe import PATHS, USED_BY, recipe_from_flags
from cascade.cli.values import comma_separated
from cascade.config.dreambooth import DreamBoothConfig, MaskConfig, Recipe
from cascade.config.recipes import RECIPES
from cascade.errors import UserError
from cascade.launch import NEEDED

START = RECIPES["mini"]
VALUES: dict[str, Any] = {
    "center_crop": False,
    "flip": True,
    "augmentation": "imagen",
    "prior_loss_weight": 0.25,
    "num_class_images": 17,
    "prior_caption_dropout": 0.125,
    "sample_batch_size": 5,
    "sr_prior_preservation": True,
    "class_scenes": True,
    "unmasked_weight": 0.3,
    "unmasked_probability": 0.75,
    "scene_share": 0.5,
    "scene_weight": 0.35,
    "num_scene_images": 13,
    "sr_scenes": True,
    "max_train_steps": 123,
    "learning_rate": 3e-6,
    "train_batch_size": 6,
    "sr_max_train_steps": 321,
    "sr_learning_rate": 2e-6,
    "sr_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": True,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 11,
    "adam_weight_decay": 0.5,
    "adam_epsilon": 1e-6,
    "max_grad_norm": 3.0,
    "snr_gamma": 4.0,
    "variance": "freeze",
    "ema_decay": 0.75,
    "seed": 9,
    "checkpointing_steps": 77,
    "checkpoints_total_limit": 3,
    "keep_checkpoints": True,
    "validation_steps": 55,
    "report_to": ("wandb",),
    "logging_dir": Path("logs"),
    "class_variations": ("a cartoon of a {class_noun}", "a red {class_noun}"),
    "masks": "alpha",
    "scenes": ({"phrase": "on the beach", "prompt": "a beach"},),
    "adam_beta1": 0.5,
    "adam_beta2": 0.6,
    "mixed_precision": "bf16",
}
# What a flag sets besides its own path.
# What a switch of diffusers stands for.
MEANT = {"gradient_checkpointing": "full"}
BESIDES = {
    "snr_gamma": {"base.objective.weighting", "super_resolution.objective.weighting"},
    "logging_dir": {"base.trackers", "super_resolution.trackers"},
}


def leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if path.endswith("betas"):
        values = {str(place): value for place, value in enumerate(values)}
    if isinstance(values, dict):
        for name, value in values.items():
            yield from leaves(value, f"{path}.{name}".lstrip("."))
    else:
        yield path, values


def changed(before: Recipe, after: Recipe) -> dict[str, Any]:
    old = dict(leaves(before.model_dump()))
    return {name: v for name, v in leaves(after.model_dump()) if old.get(name, ...) != v}


def test_every_flag_with_a_path_is_tested_and_is_a_flag() -> None:
    assert set(VALUES) == set(PATHS)
    assert set(PATHS) <= set(signature(dreambooth).parameters)


@pytest.mark.parametrize("spelling", ["_", "-"])
def test_every_flag_reaches_the_run_in_both_spellings(
    command: Callable[..., Any],
    received: list[DreamBoothConfig],
    tiny_cascade: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    spelling: str,
) -> None:
    launched = dict.fromkeys(NEEDED, "1") | {"WORLD_SIZE": "3", "RANK": "0"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    Path("some/photos").mkdir(parents=True)
    values = VALUES | {"masks": "some/masks", "gradient_accumulation_steps": 2}
    plain = {
        "instance_data_dir": "some/photos",
        "class_noun": "dog",
        "output_dir": "new",
        "identifier": "zug",
        "instance_prompt": "one {identifier} {class_noun}",
        "class_prompt": "one {class_noun}",
        "sr_prompt": "this {class_noun}",
        "class_data_dir": "some/class",
    }
    others = {
        "pretrained_model_name_or_path": tiny_cascade,
        "stages": "base16, sr32",
        "num_validation_images": 2,
        "validation_cascade": True,
        "validation_prompt": "a zug dog",
        "recipe": "paper",
        "with_prior_preservation": True,
        "scale_lr": True,
        "use_8bit_adam": True,
    }
    words = [
        word for given in (plain | others | values).items() for word in _words(spelling, *given)
    ]
    assert command("dreambooth", *words).status == 0
    (config,) = received
    switches = {"prior_preservation": True, "scale_lr": True, "use_8bit_adam": True}
    assert config == DreamBoothConfig.model_validate(
        {
            **plain,
            "cascade": str(tiny_cascade),
            "stages": ("base16", "sr32"),
            "validation_prompts": ("a zug dog",),
            "validation_images": 2,
            "validation_cascade": True,
            "seed": 9,
            "recipe": recipe_from_flags(RECIPES["paper"], values | switches, world=3),
        }
    )
    assert config.recipe.base.batch_size == 6 * 2 * 3


def _words(spelling: str, flag: str, value: Any) -> list[object]:
    """A flag and its value as they are typed."""
    spelt = f"--{'random_crop' if flag == 'center_crop' else flag}".replace("_", spelling)
    if isinstance(value, bool):
        return [spelt]
    if isinstance(value, tuple):
        parts = (" = ".join(one.values()) if isinstance(one, dict) else one for one in value)
        value = ", ".join(parts)
    return [spelt, value]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--report_to all", ("tensorboard", "wandb")),
        ("--report-to tensorboard,wandb", ("tensorboard", "wandb")),
        ("--report_to none --logging_dir logs", ()),
        ("--logging_dir logs", ("tensorboard",)),
        ("--report_to wandb --logging_dir logs", ("wandb",)),
        ("", ()),
    ],
)
def test_trackers_by_diffusers_words(
    command: Callable[..., Any],
    received: list[DreamBoothConfig],
    tiny_cascade: Path,
    photos: Path,
    words: str,
    told: tuple[str, ...],
) -> None:
    asked = ("--cascade", tiny_cascade, "--instance-data-dir", photos, "--class-noun", "dog")
    assert command("dreambooth", *asked, "--output", "new", *words.split()).status == 0
    (config,) = received
    for run in (config.recipe.base, config.recipe.super_resolution):
        assert run.trackers == told
        assert run.logging_dir == Path("logs" if "logging" in words else "tensorboard")


def test_a_tracker_nobody_knows_is_told_by_its_flag(
    command: Callable[..., Any], tiny_cascade: Path, photos: Path, tmp_path: Path
) -> None:
    asked = ("--cascade", tiny_cascade, "--instance-data-dir", photos, "--class-noun", "dog")
    done = command("dreambooth", *asked, "--output", tmp_path / "new", "--report_to", "comet_ml")
    assert done.status == 2
    assert "--report-to" in done.err
    assert "'tensorboard' or 'wandb', not 'comet_ml'" in done.err


@pytest.mark.parametrize("flag", PATHS)
def test_a_flag_lands_where_it_should_and_nowhere_else(flag: str) -> None:
    after = recipe_from_flags(START, {flag: VALUES[flag]}, world=1)
    found = dict(leaves(after.model_dump()))
    for path in PATHS[flag]:
        assert found[path] == MEANT.get(flag, VALUES[flag])
    assert set(changed(START, after)) <= set(PATHS[flag]) | BESIDES.get(flag, set())


@pytest.mark.parametrize(
    ("flag", "stages"),
    [
        ("max_train_steps", {"base"}),
        ("learning_rate", {"base"}),
        ("train_batch_size", {"base"}),
        ("sr_max_train_steps", {"super_resolution"}),
        ("sr_learning_rate", {"super_resolution"}),
        ("sr_train_batch_size", {"super_resolution"}),
        ("lr_warmup_steps", {"base", "super_resolution"}),
        ("checkpointing_steps", {"base", "super_resolution"}),
        ("seed", {"base", "super_resolution"}),
        ("num_class_images", {"prior"}),
        ("sr_prior_preservation", {"prior"}),
        ("scene_share", {"masks"}),
    ],
)
def test_a_flag_belongs_to_its_stages(flag: str, stages: set[str]) -> None:
    after = changed(START, recipe_from_flags(START, {flag: VALUES[flag]}, world=1))
    assert {path.partition(".")[0] for path in after} == stages


def test_derived_flags() -> None:
    flags = {"mixed_precision": precision_of("no"), "snr_gamma": 5.0, "use_8bit_adam": True}
    after = recipe_from_flags(START, flags, world=1)
    for run in (after.base, after.super_resolution):
        assert run.precision == "fp32"
        assert run.objective.weighting == "min_snr"
        assert run.optimizer.name == "adamw8bit"


def test_the_batch_is_one_process_s_and_one_pass_s() -> None:
    flags = {"train_batch_size": 2, "gradient_accumulation_steps": 3}
    after = recipe_from_flags(START, flags, world=4)
    assert after.base.batch_size == 2 * 3 * 4
    assert after.super_resolution.batch_size == START.super_resolution.batch_size * 3 * 4
    assert after.base.gradient_accumulation_steps == 3


def test_accumulation_of_a_recipe_counts_as_if_it_were_a_flag() -> None:
    start = RECIPES["deepfloyd"]
    parts = recipe_from_flags(start, {"sr_train_batch_size": 4}, world=1).super_resolution
    assert (parts.gradient_accumulation_steps, parts.batch_size) == (6, 24)
    whole = {"sr_train_batch_size": 12, "gradient_accumulation_steps": 1}
    parts = recipe_from_flags(start, whole, world=1).super_resolution
    assert (parts.gradient_accumulation_steps, parts.batch_size) == (1, 12)


def test_scale_lr_multiplies_by_the_whole_batch() -> None:
    flags = {
        "train_batch_size": 2,
        "gradient_accumulation_steps": 3,
        "learning_rate": 1e-6,
        "scale_lr": True,
    }
    after = recipe_from_flags(START, flags, world=4)
    assert after.base.optimizer.learning_rate == pytest.approx(24e-6)
    flags["scale_lr"] = False
    after = recipe_from_flags(START, flags, world=4)
    assert after.base.optimizer.learning_rate == 1e-6


def test_prior_preservation_is_switched_off_and_on() -> None:
    off = recipe_from_flags(START, {"prior_preservation": False}, world=1)
    assert off.prior is None
    on = recipe_from_flags(off, {"prior_preservation": True, "num_class_images": 3}, world=1)
    assert on.prior.images == 3
    kept = recipe_from_flags(START, {"prior_preservation": True}, world=1)
    assert kept.prior == START.prior


def test_masks_are_switched_off_and_on() -> None:
    off = recipe_from_flags(START, {"masks": "none"}, world=1)
    assert off.masks is None
    assert off.scene_rows is None
    on = recipe_from_flags(off, {"masks": "alpha", "unmasked_weight": 0.5}, world=1)
    assert on.masks == MaskConfig(source="alpha", unmasked_weight=0.5)
    kept = recipe_from_flags(START, {"masks": "some/masks"}, world=1)
    assert kept.masks == START.masks.model_copy(update={"source": Path("some/masks")})
    assert Recipe.model_validate(kept.model_dump(mode="json")) == kept


def test_scenes_are_a_phrase_and_what_draws_it_empty() -> None:
    text = "on the beach = a beach, in  snow=snow "
    scenes = recipe_from_flags(START, {"scenes": scenes_of(text)}, world=1).scenes
    assert [(one.phrase, one.prompt) for one in scenes] == [
        ("on the beach", "a beach"),
        ("in  snow", "snow"),
    ]
    for text in ("on the beach", "on the beach = a beach,", "= a beach"):
        with pytest.raises(UserError, match=r"scenes\.\d\.(prompt|phrase)"):
            recipe_from_flags(START, {"scenes": scenes_of(text)}, world=1)
    with pytest.raises(UserError, match="need a list of scenes"):
        recipe_from_flags(START, {"scenes": ()}, world=1)
    off = {"scenes": (), "scene_share": 0.0, "class_scenes": False}
    none = recipe_from_flags(START, off, world=1)
    assert none.scenes == ()


def test_variations_of_the_class_are_templates() -> None:
    text = "a cartoon of a {class_noun}, a red {class_noun}"
    flags = {"class_variations": comma_separated(text)}
    prior = recipe_from_flags(START, flags, world=1).prior
    assert prior.variations == ("a cartoon of a {class_noun}", "a red {class_noun}")
    none = recipe_from_flags(START, {"class_variations": ()}, world=1).prior
    assert none.variations == ()
    with pytest.raises(UserError, match=r"prior\.variations\.1"):
        recipe_from_flags(
            START, {"class_variations": comma_separated("a red {class_noun},")}, world=1
        )


GIVEN = VALUES | {
    "class_prompt": "a {class_noun}",
    "class_data_dir": Path("class"),
    "sr_prompt": "a {class_noun}",
}
BELONGS = {**PATHS, **USED_BY}


def _within(*parts: str) -> set[str]:
    """The flags that belong to nothing but these parts."""
    return {flag for flag, paths in BELONGS.items() if all(p.startswith(parts) for p in paths)}


BOTH = {"base", "super_resolution"}
PLAIN = {"prior_preservation": False, "masks": "none"}
OF_SCENES = {"scene_weight", "num_scene_images", "sr_scenes"}
# What is off, the parts that are tuned, the flags that are then without effect, and what is told.
IDLE: dict[str, tuple[dict[str, Any], set[str], set[str], str]] = {
    "no base": ({}, {"super_resolution"}, _within("base."), "the base to be tuned"),
    "no super-resolution": (
        {},
        {"base"},
        _within("super_resolution.", "augmentation") | {"sr_prior_preservation", "sr_scenes"},
        "a super-resolution stage to be tuned",
    ),
    "no prior": (PLAIN, BOTH, _within("prior."), "prior preservation"),
    "no masks": (PLAIN, BOTH, _within("masks.") - {"masks"}, "masks"),
    "neither": (PLAIN, BOTH, {"sample_batch_size", "class_data_dir"}, "prior preservation"),
    "no scenes": (PLAIN, BOTH, {"scenes"}, "the class or the subject in scenes"),
    "no scene rows": ({"scene_share": 0.0}, BOTH, OF_SCENES, "the subject in scenes"),
    "prior of the base alone": (
        {},
        {"super_resolution"},
        _within("prior.") - {"sr_prior_preservation"},
        "the prior of what is tuned to be preserved; give --sr-prior-preservation",
    ),
    "scenes of the base alone": (
        {},
        {"super_resolution"},
        {"scene_share", "scene_weight", "num_scene_images"},
        "scenes for what is tuned; give --sr-scenes",
    ),
}


@pytest.mark.parametrize(
    ("case", "flag"),
    [(case, flag) for case, (_, _, flags, _) in IDLE.items() for flag in sorted(flags)],
)
def test_a_flag_without_effect_is_refused(case: str, flag: str) -> None:
    off, tuned, _, needs = IDLE[case]
    spelt = f"--{flag.replace('_', '-')}"
    with pytest.raises(UserError, match=rf"^{spelt} needs {needs}.*too, or leave {spelt} out"):
        recipe_from_flags(START, off | {flag: GIVEN[flag]}, world=1, tuned=tuned)


def test_every_flag_of_a_part_is_tried_without_it_and_with_it() -> None:
    assert BELONGS.keys() == GIVEN.keys()
    tried = {flag for _, _, flags, _ in IDLE.values() for flag in flags}
    of_every_stage = {"center_crop", "flip"} | {f for f, p in PATHS.items() if p[0][:5] == "base."}
    assert BELONGS.keys() - tried == of_every_stage - _within("base.") | {"masks"}
    # With everything on, none is refused; nor is one that says no to what is not done.
    recipe_from_flags(START, GIVEN, world=1)
    no = {"sr_scenes": False, "sr_prior_preservation": False, "scenes": (), "scene_share": 0.0}
    recipe_from_flags(START, PLAIN | no, world=1, tuned={"base"})


def test_a_recipes_own_warm_up_is_shortened_and_a_persons_is_not(
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = START.base.optimizer.model_copy(update={"warmup_steps": 30})
    start = START.model_copy(
        update={"base": START.base.model_copy(update={"steps": 99, "optimizer": base})}
    )
    short = recipe_from_flags(start, {"max_train_steps": 20}, world=1)
    assert short.base.optimizer.warmup_steps == 2
    assert "warm-up is longer than 20 steps; it is 2 here" in capsys.readouterr().err
    with pytest.raises(UserError, match="learning rate would never be reached"):
        recipe_from_flags(start, {"max_train_steps": 20, "lr_warmup_steps": 20}, world=1)


def test_values_that_do_not_work_are_named() -> None:
    with pytest.raises(UserError, match=r"flags: --learning-rate .base\.optimizer\.learning_rate"):
        recipe_from_flags(START, {"learning_rate": 0.0}, world=1)
    with pytest.raises(UserError, match=r"optimizer\.betas"):
        recipe_from_flags(START, {"adam_beta1": 1.5}, world=1)


def test_an_average_that_warms_up_for_longer_than_the_run_is_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe_from_flags(START, {"ema_decay": 0.99, "max_train_steps": 891}, world=1, tuned=["base"])
    assert capsys.readouterr().err == ""  # (1 + n) / (10 + n) is 0.99 after 890 updates
    flags = {"ema_decay": 0.99, "max_train_steps": 800}
    recipe_from_flags(START, flags, world=1, tuned=["base", "super_resolution"])
    base, _ = capsys.readouterr().err.splitlines()
    assert base == (
        "--ema-decay: 0.99 is not reached in 800 steps: the average's decay grows to 0.9889, and "
        "any number above that gives the same weights."
    )
