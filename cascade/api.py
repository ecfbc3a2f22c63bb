"""Training and personalising from Python, as the commands of these names do."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cascade.config.dreambooth import DreamBoothConfig
from cascade.config.recipes import recipe_of
from cascade.config.train import PretrainConfig


def train(config: PretrainConfig | Mapping[str, Any] | Path | str, set: Iterable[str] = ()) -> Path:
    """Train one stage from scratch, or on from a stage's weights: `cascade train`.

    Started again with the same settings it goes on from its last checkpoint.

    Args:
        config: the settings, as a value, as nested plain values, or as a TOML file.
        set: settings of the file to replace, each as `a.b=value`.

    Returns:
        The folder of the trained stage.

    Raises:
        UserError: the settings or the data cannot work.
    """
    from cascade.training.pretrain import pretrain

    if isinstance(config, Mapping):
        config = PretrainConfig.parse(config, "the settings")
    elif isinstance(config, (str, Path)):
        config = PretrainConfig.read(Path(config), set)
    return pretrain(config)


def personalise(config: DreamBoothConfig | None = None, **settings: Any) -> Path:
    """Tune a cascade on 3 to 5 photos of a subject: `cascade dreambooth`.

    Started again with the same settings it goes on where it was.

    Args:
        config: the settings as a value, or in its place:
        settings: fields of `DreamBoothConfig` by name. `recipe` may be a recipe's name, or what
            differs from the cascade's own: `recipe={"base": {"steps": 500}}`.

    Returns:
        The folder of the new cascade, for `Cascade.load`.

    Raises:
        UserError: the settings or the photos cannot work.
    """
    from cascade.dreambooth.personalise import personalise

    if config is None:
        recipe = recipe_of(settings.get("cascade", "mini"), settings.pop("recipe", None))
        config = DreamBoothConfig.parse({**settings, "recipe": recipe}, "the settings")
    return personalise(config)
