"""The recipes of DreamBooth that are known to work, by the cascades that they suit."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from cascade.config.base import merged
from cascade.config.dreambooth import (
    MaskConfig,
    PriorConfig,
    Recipe,
    Scene,
    SceneRowsConfig,
)
from cascade.config.folders import cascade_folder, read_manifest
from cascade.config.optimizer import OptimizerConfig
from cascade.config.stage import RecipeName, SamplerConfig, ThresholdConfig
from cascade.config.train import ObjectiveConfig, TrainConfig
from cascade.errors import UserError


def _tuning(
    learning_rate: float,
    steps: int,
    batch_size: int,
    accumulation: int = 1,
    schedule: Literal["constant", "linear"] = "constant",
    warmup_steps: int = 0,
) -> TrainConfig:
    optimizer = OptimizerConfig(
        learning_rate=learning_rate,
        weight_decay=1e-2,
        schedule=schedule,
        warmup_steps=warmup_steps,
    )
    return TrainConfig(
        steps=steps,
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        optimizer=optimizer,
    )


# Places that `mini` can draw, as its captions call them.
MINI_SCENES = tuple(
    Scene(phrase=phrase, prompt=prompt)
    for phrase, prompt in (
        ("on the beach", "a beach"),
        ("in the snow", "snow"),
        ("with a mountain in the background", "mountains"),
        ("in the forest", "a forest"),
        ("in the jungle", "a jungle"),
        ("in the desert", "a desert"),
        ("on the grass", "a meadow"),
        ("in space", "space"),
        ("with a city in the background", "a city"),
        ("in the city at night", "a city at night"),
        ("on a cobblestone street", "a cobblestone street"),
        ("on a wooden table", "a wooden table"),
        ("on top of a wooden floor", "a wooden floor"),
        ("in a living room", "a living room"),
        ("on top of pink fabric", "pink fabric"),
        ("under water", "the bottom of the sea"),
        ("floating on top of water", "water"),
        ("at sunset", "a sunset"),
        ("with a tree and autumn leaves in the background", "autumn leaves"),
        *(
            (f"on a {colour} background", f"a {colour} background")
            for colour in ("blue", "green", "red", "yellow", "white")
        ),
    )
)

# What else its captions say of things.
MINI_VARIATIONS = (
    *(f"{style} of a {{class_noun}}" for style in ("a cartoon", "a flat drawing", "a 3d render")),
    *(f"a {colour} {{class_noun}}" for colour in ("red", "green", "blue", "purple")),
    *(
        f"a {{class_noun}} wearing {worn}"
        for worn in ("a top hat", "a crown", "a scarf", "sunglasses")
    ),
)

# As the checkpoint samples, guided: unguided, so small a network draws no class worth keeping.
# Twelve steps are enough for 64 pixels, and a CPU waits for each.
_MINI_DRAWS = SamplerConfig(
    name="dpmpp_2m",
    steps=12,
    guidance=3.0,
    precision="auto",
    threshold=ThresholdConfig(kind="dynamic", percentile=0.95, cap=1.5),
)

RECIPES: dict[RecipeName, Recipe] = {
    # DreamBooth section 3.3: rate 1e-5, 1000 steps, lambda 1, about 1000 class images. One photo
    # and one class image a step is the reading under which the numbers of both versions of the
    # paper agree. The optimizer is not stated.
    "paper": Recipe(base=_tuning(1e-5, 1000, 1), super_resolution=_tuning(1e-5, 1000, 1)),
    # For the few million weights of `mini`, which move further at a step of this size.
    "mini": Recipe(
        prior=PriorConfig(
            images=2 * (len(MINI_SCENES) + len(MINI_VARIATIONS)),
            in_scenes=True,
            variations=MINI_VARIATIONS,
            batch_size=len(MINI_SCENES),
            caption_dropout=0.25,
            sampler=_MINI_DRAWS,
        ),
        masks=MaskConfig(
            scenes=SceneRowsConfig(
                share=0.6,
                # A few poses of about one size and place: so small a network, tuned so shortly,
                # else learns the subject's texture and not its shape.
                least_size=0.65,
                largest_size=0.8,
                spread=0.2,
                scene_weight=0.25,
                images=2 * len(MINI_SCENES),
                batch_size=len(MINI_SCENES),
                sampler=SamplerConfig(steps=32, guidance=1.0, precision="auto"),
            ),
        ),
        scenes=MINI_SCENES,
        # Weighting and even timesteps as in its own training; an average of the last steps. Warmed
        # up: AdamW's first steps move every weight by the whole rate, and the class is lost.
        base=_tuning(3e-4, 375, 8, schedule="linear", warmup_steps=30).model_copy(
            update={
                "objective": ObjectiveConfig(weighting="min_snr"),
                "stratified": True,
                "ema_decay": 0.98,
                "precision": "auto",
            }
        ),
        super_resolution=_tuning(5e-4, 250, 4, schedule="linear").model_copy(
            update={"precision": "auto"}
        ),
    ),
    # DeepFloyd IF, all weights of both stages, after diffusers' examples/dreambooth/README.md,
    # section "IF": stage I at 1e-7, batch 4, 150 steps; stage II at 5e-6, batch 2 x 6 accumulated,
    # 2000 steps. Both were found without prior preservation and with the variance dropped, and
    # stage II on the noisy picture shown twice instead of pairs; here they are not yet measured.
    "deepfloyd": Recipe(
        # On, as in DreamBooth section 3.3; `--no-prior-preservation` is diffusers' recipe. The 600
        # class rows of the run show each image once. They are drawn as the checkpoint samples:
        # learned variance, its thresholding. IF was trained with 10 % of the captions dropped (its
        # model card).
        prior=PriorConfig(images=600, caption_dropout=0.1, sampler=None),
        base=_tuning(1e-7, 150, 4),
        super_resolution=_tuning(5e-6, 2000, 12, accumulation=6),
    ),
}


def recipe_of(cascade: Path | str, changes: object = None, source: str = "the settings") -> Recipe:
    """Return the recipe of a cascade, or another one, with the given changes.

    Args:
        cascade: a folder, or the name of one that ships with the project.
        changes: None, a `Recipe`, a recipe's name, or nested settings that differ from it, with
            `preset` naming which; the cascade's own if it is left out.
        source: where they come from, for the error's sentence.

    Raises:
        UserError: there is no such cascade or recipe, or a setting is unknown or wrong.
    """
    if isinstance(changes, Recipe):
        return changes
    given = {"preset": changes} if isinstance(changes, str) else changes or {}
    if not isinstance(given, Mapping):
        raise UserError(f"In {source}: the recipe must be a name or settings, not {given!r}.")
    preset = given.get("preset") or read_manifest(cascade_folder(cascade)).recipe
    if preset not in RECIPES:
        raise UserError(f"There is no recipe '{preset}'; take one of {', '.join(RECIPES)}.")
    changed = {name: value for name, value in given.items() if name != "preset"}
    return Recipe.parse(merged(RECIPES[preset].model_dump(), changed), source)
