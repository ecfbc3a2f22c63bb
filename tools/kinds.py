"""The kinds of cascades that are compared: the untouched one, and what tuning makes of it."""

from typing import Final

from cascade.config.dreambooth import Recipe

BEFORE: Final = "before"
NO_PRIOR: Final = "without prior preservation"
PLAIN: Final = "plain DreamBooth"
CLASS_SCENES: Final = "class images in scenes"
AFTER: Final = "after"
"""Tuned as the cascade's recipe says."""


def recipe_of(kind: str, recipe: Recipe) -> Recipe:
    """Leave out of a recipe what a kind of tuning does without."""
    if kind == NO_PRIOR:
        return recipe.model_copy(update={"prior": None})
    if kind == CLASS_SCENES:
        return recipe.model_copy(update={"masks": None})
    if kind == PLAIN:
        prior = recipe.prior
        if prior and (prior.in_scenes or prior.variations):
            # As many of the class alone as the recipe draws, by turns with the others.
            alone = {"in_scenes": False, "variations": (), "images": -(-prior.images // 2)}
            prior = prior.model_copy(update=alone)
        return recipe.model_copy(update={"masks": None, "prior": prior})
    return recipe


def shortened(recipe: Recipe, share: float) -> Recipe:
    """Train the base on a share of a recipe's steps."""
    steps = max(1, round(share * recipe.base.steps))
    return recipe.model_copy(update={"base": recipe.base.model_copy(update={"steps": steps})})
