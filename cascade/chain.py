"""How a cascade's stages follow one another, and its last one used again on its own pictures."""

from collections.abc import Sequence
from pathlib import Path

from cascade.config.base import MOST_SIDE
from cascade.config.manifest import MANIFEST
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.request import whole


def check_chain(stages: Sequence[StageConfig], width: int, folder: Path) -> None:
    """Make sure that each stage enlarges the pictures of the one before, and reads text of `width`.

    Raises:
        UserError: it does not.
    """
    made: int | None = None
    names: set[str] = set()
    for stage in stages:
        if stage.name in names:
            raise UserError(
                f"In {folder} two stages are called '{stage.name}'; give one of them another name "
                "in its config.json."
            )
        names.add(stage.name)
        wanted = stage.low_res.size if stage.low_res else None
        if wanted != made:
            enlarges = "makes pictures from nothing" if wanted is None else f"enlarges {wanted} px"
            before = "it is the first" if made is None else f"the one before makes {made} px"
            raise UserError(
                f"In {folder} stage '{stage.name}' {enlarges} but {before}; "
                f"put the stages of {MANIFEST} in order, base first."
            )
        if stage.unet.text_width != width:
            raise UserError(
                f"In {folder} stage '{stage.name}' reads text of width {stage.unet.text_width} but "
                f"the encoder's is {width}; use the encoder that belongs to the stages."
            )
        made = stage.size


def scales(stages: Sequence[StageConfig], size: int) -> list[StageConfig]:
    """The stages with the last one used again up to `size` pixels; see `Cascade.enlarged`.

    Raises:
        UserError: the last stage cannot be used again, or does not arrive at `size`.
    """
    chain = list(stages)
    size = whole(size, "the size", 1, MOST_SIDE)
    while chain[-1].size < size:
        chain.append(_next_scale(chain[-1]))
    if chain[-1].size != size:
        made = ", ".join(str(stage.size) for stage in chain)
        raise UserError(f"This cascade makes pictures of {made} pixels; give one of these.")
    return chain


def _next_scale(config: StageConfig) -> StageConfig:
    """The same super-resolution network, one scale up."""
    if config.low_res is None or {"self", "joint"} & set(config.unet.attention):
        raise UserError(
            f"Stage '{config.name}' cannot be used again at a larger scale: only a "
            f"super-resolution stage without self-attention can; {config.size} is its size."
        )
    size = config.size * config.size // config.low_res.size
    low_res = config.low_res.model_copy(update={"size": config.size})
    name = f"{config.name.partition('-at-')[0]}-at-{size}"
    return config.model_copy(update={"name": name, "size": size, "low_res": low_res})
