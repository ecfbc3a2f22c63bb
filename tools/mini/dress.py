"""Another colour for a thing of one hue, and something worn on a head."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from PIL import Image, ImageDraw

from sprites import Sprite, Style

# Hue in degrees, factor on saturation, factor on value and the least value of the thing's mean:
# yellow, orange and pink are names of light colours, and dark ones are called brown or olive.
_HUES: Final = {
    "red": (2.0, 1.15, 1.0, 0.60),
    "orange": (27.0, 1.2, 1.1, 0.85),
    "yellow": (52.0, 1.15, 1.15, 0.90),
    "green": (125.0, 1.0, 0.95, 0.45),
    "blue": (218.0, 1.1, 1.0, 0.55),
    "purple": (276.0, 1.0, 0.9, 0.50),
    "pink": (332.0, 0.62, 1.2, 0.92),
}
_GREY: Final = (24, 72)  # saturations below the first keep their hue, above the second lose it
_SCARVES: Final = ((190, 40, 44), (40, 90, 180), (40, 140, 80), (230, 180, 40), (130, 60, 160))
_FINE: Final = 4  # a scarf is drawn larger and made small: Pillow draws without smooth edges

# Width of what is worn in widths of the head, and where its lowest point comes to lie.
_HAT_WIDTH: Final = {"top hat": 0.74, "crown": 0.62}
_GLASSES_WIDTH: Final = 0.80
_SCARF_BELOW: Final = 0.4  # of the eyes, in widths of the head


def recoloured(image: Image.Image, colour: str | None) -> Image.Image:
    """Turn the hue of an RGBA picture's coloured parts; greys, whites and blacks stay."""
    if colour is None:
        return image
    hue, more_saturation, more_value, least = _HUES[colour]
    alpha = image.getchannel("A")
    pixels = np.asarray(image.convert("RGB").convert("HSV")).astype(np.float32)
    old_saturation, value = pixels[..., 1], pixels[..., 2]
    strength = np.clip((old_saturation - _GREY[0]) / (_GREY[1] - _GREY[0]), 0, 1)
    strength *= np.asarray(alpha, dtype=np.float32) > 0
    mean = float((value * strength).sum() / max(1.0, float(strength.sum()))) / 255
    lift = max(more_value, least / max(mean, 0.1))
    turned = np.stack(
        [
            np.full_like(value, hue * 255 / 360),
            np.clip(old_saturation * more_saturation, 110 * more_saturation, 255),
            np.clip(value * lift, 0, 255),
        ],
        axis=-1,
    )
    new = Image.fromarray(turned.astype(np.uint8), "HSV").convert("RGB")
    mixed = Image.composite(
        new, image.convert("RGB"), Image.fromarray((strength * 255).astype(np.uint8))
    )
    mixed.putalpha(alpha)
    return mixed


def dressed(
    image: Image.Image,
    sprite: Sprite,
    accessory: str | None,
    accessories: Mapping[str, Mapping[Style, Image.Image]],
    rng: np.random.Generator,
) -> Image.Image:
    """Put something on a thing's head; the picture grows where it reaches beyond."""
    if accessory is None or sprite.head is None:
        return image
    head, (width, height) = sprite.head, image.size
    across = head.width * width
    if accessory == "scarf":
        worn = _scarf(round(across), rng)
        top = round(head.eyes * height + _SCARF_BELOW * across)
    else:
        drawn = accessories[accessory][sprite.style]
        wide = max(2, round(across * _HAT_WIDTH.get(accessory, _GLASSES_WIDTH)))
        worn = drawn.resize((wide, max(2, round(drawn.height * wide / drawn.width))))
        at_eyes = round(head.eyes * height - worn.height / 2)
        on_top = round((head.top + 0.12 * (head.eyes - head.top)) * height - worn.height * 0.86)
        top = at_eyes if accessory == "sunglasses" else on_top
    return _over(image, worn, round(head.x * width - worn.width / 2), top)


def _over(image: Image.Image, worn: Image.Image, left: int, top: int) -> Image.Image:
    """Paste one RGBA picture over another on a canvas that holds both."""
    x0, y0 = min(0, left), min(0, top)
    x1, y1 = max(image.width, left + worn.width), max(image.height, top + worn.height)
    canvas = Image.new("RGBA", (x1 - x0, y1 - y0))
    canvas.paste(image, (-x0, -y0))
    canvas.alpha_composite(worn, (left - x0, top - y0))
    return canvas


def _scarf(across: int, rng: np.random.Generator) -> Image.Image:
    """Draw a band around the neck with a hanging end, RGBA."""
    wide, band = max(8, round(across * 0.82)) * _FINE, max(3, round(across * 0.17)) * _FINE
    colour = _SCARVES[rng.integers(len(_SCARVES))]
    dark = tuple(int(0.75 * channel) for channel in colour)
    image = Image.new("RGBA", (wide, band * 3))
    draw = ImageDraw.Draw(image)
    tail = round(wide * rng.uniform(0.55, 0.75))
    draw.rounded_rectangle((tail, band // 2, tail + band, band * 3 - 1), band // 4, fill=dark)
    for stripe in range(2):
        low = band * 2 + stripe * band // 2
        draw.rectangle((tail, low, tail + band, low + band // 6), fill=colour)
    draw.rounded_rectangle((0, 0, wide - 1, band), band // 2, fill=colour)
    draw.arc((0, -band, wide - 1, band * 0.7), 20, 160, fill=dark, width=max(1, band // 8))
    return image.resize((wide // _FINE, band * 3 // _FINE), Image.Resampling.LANCZOS)
