"""The subject cut out of its photos and set into scenes."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from cascade.config.dreambooth import SceneRowsConfig

_STANDS: Final = (0.7, 0.98)  # where a thing's foot is, of the picture's height from the top


@dataclass(frozen=True)
class Cutout:
    """The subject of a photo.

    Attributes:
        image: RGBA, within the subject's bounds.
        cut: whether the photo's left, top, right and lower edge cut the subject off.
    """

    image: Image.Image
    cut: tuple[bool, bool, bool, bool]


@dataclass(frozen=True)
class InScenes:
    """Ingredients of the rows that show the subject in scenes.

    Attributes:
        config: how many of the rows, how large the subject is and where, what its scene counts.
        cutouts: the subject of each photo.
        scenes: pictures of the stage's size.
        prompts: what names the subject in them, by turns, as of `Concept`.
    """

    config: SceneRowsConfig
    cutouts: tuple[Cutout, ...]
    scenes: tuple[Image.Image, ...]
    prompts: tuple[str, ...]

    def compose(
        self, photo: int, scene: int, rng: np.random.Generator
    ) -> tuple[Image.Image, Image.Image]:
        """Set a photo's subject into a scene, at a random size and place; see `set_into`."""
        size = float(rng.uniform(self.config.least_size, self.config.largest_size))
        return set_into(self.scenes[scene], self.cutouts[photo], size, self.config.spread, rng)


def cut_out(photo: Image.Image, mask: Image.Image, side: int) -> Cutout:
    """Cut the subject out of its photo.

    Args:
        photo: RGB.
        mask: grey, of the photo's size; some of it must be above 127.
        side: to make the cut-out no longer than, pixels.
    """
    bounds = mask.point(lambda value: 255 * (value > 127)).getbbox()
    assert bounds is not None, "the mask marks something"
    left, top, right, lower = bounds
    layer = photo.convert("RGBA")
    # What a mask is unsure of is for the most part the edge: half of that is made sure.
    layer.putalpha(mask.point(lambda value: min(max(2 * value - 127, 0), 255)))
    layer = layer.crop(bounds)
    scale = min(1.0, side / max(layer.size))
    cut = (left == 0, top == 0, right == photo.width, lower == photo.height)
    return Cutout(_scaled(layer, scale), cut)


def set_into(
    scene: Image.Image, cutout: Cutout, size: float, spread: float, rng: np.random.Generator
) -> tuple[Image.Image, Image.Image]:
    """Set a cut-out into a square scene, at a random place.

    It is never enlarged, and stays at the edge where its photo cut it off.

    Args:
        scene: RGB.
        cutout: the subject.
        size: its longer side, of the scene's.
        spread: 0 sets it into the middle, rather low; 1 anywhere.
        rng: of the place.

    Returns:
        The picture, and where in it the subject is: grey, 255 on the subject.
    """
    side = scene.width
    layer = _scaled(cutout.image, min(1.0, size * side / max(cutout.image.size)))
    across, foot = _about(0.0, 1.0, spread, rng), _about(*_STANDS, spread, rng)
    cut_left, cut_top, cut_right, cut_below = cutout.cut
    left = _along(side - layer.width, cut_left, cut_right, across * (side - layer.width))
    top = _along(side - layer.height, cut_top, cut_below, max(0.0, foot * side - layer.height))
    alpha = layer.getchannel("A")
    # Softened inwards only: outside the mask the layer still has the photo's background.
    soft = ImageChops.darker(alpha, alpha.filter(ImageFilter.GaussianBlur(side / 512)))
    picture, mask = scene.copy(), Image.new("L", scene.size)
    picture.paste(layer.convert("RGB"), (left, top), soft)
    mask.paste(soft, (left, top))
    return picture, mask


def _about(least: float, most: float, spread: float, rng: np.random.Generator) -> float:
    """Draw from the middle part of a range; `spread` is that part."""
    middle = (least + most) / 2
    return float(rng.uniform(middle + spread * (least - middle), middle + spread * (most - middle)))


def _along(room: int, at_start: bool, at_end: bool, otherwise: float) -> int:
    """Return where along one side a cut-out begins: at an edge, if its photo cut it off there."""
    if at_start != at_end:
        return 0 if at_start else room
    return round(otherwise)


def _scaled(layer: Image.Image, scale: float) -> Image.Image:
    width, height = (max(1, round(length * scale)) for length in layer.size)
    return layer.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=None)
