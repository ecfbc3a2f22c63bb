"""Cut things out of openly licensed photos."""

from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cascade.data.saliency import U2NetP
from cascade.errors import UserError
from concepts import Thing
from photographs import Photograph
from shaping import bled, colourable, shaped
from sprites import Sprite

_STEP: Final = (0.35, 0.8)  # of the mask: from here to there the edge becomes opaque
_SOLID: Final = 0.97  # from here on a pixel is the thing's own colour


def cut_out(
    thing: Thing, photographs: Mapping[int, Photograph], network: U2NetP
) -> Iterator[Sprite]:
    """Yield the photo sprites of a thing, from the photographs by their rows."""
    for row in thing.photos:
        if row not in photographs:
            raise UserError(
                f"The photo pack has no openly licensed row {row}, which {thing.name} names; "
                "give the pack that concepts.toml was written for."
            )
        image = photographs[row].image
        cut = shaped(transparent(image, np.asarray(network(image))))
        yield Sprite(thing.name, "photo", cut, None, colourable(cut))


def transparent(image: Image.Image, mask: NDArray[np.uint8]) -> Image.Image:
    """Return an RGB picture as RGBA, opaque where the mask, uint8 H W, is sure.

    The edge's colours are those of the thing further inside.
    """
    share = mask.astype(np.float32) / 255
    low, high = _STEP
    alpha = np.clip((share - low) / (high - low), 0, 1)
    colours = bled(np.asarray(image), share > _SOLID)
    return Image.fromarray(np.dstack([colours, (alpha * 255).astype(np.uint8)]))
