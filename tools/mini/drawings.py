"""An emoji as it is drawn in one of the three packages: a picture with transparency."""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image

from cascade.errors import UserError
from sprites import Style

SIDE: Final = 512  # of a drawn vector picture: more than twice a sprite's, so that edges are fine
SELECTOR: Final = "fe0f"  # Unicode's "as a picture", which file names keep in places


class Drawings:
    """The drawings of the unpacked packages."""

    def __init__(self, packages: Mapping[str, Path]) -> None:
        """Take the folder of each style's package."""
        self._packages = packages
        self._icons = _read(packages["cartoon"] / "icons.json")
        self._names = {
            _plain(code): name for code, name in _read(packages["cartoon"] / "chars.json").items()
        }

    def draw(self, emoji: str, style: Style) -> Image.Image:
        """Return an emoji in a drawn style, RGBA, as large as the package gives it."""
        code = "-".join(f"{ord(letter):x}" for letter in emoji)
        if style == "3d":
            return Image.open(self._asset(code, "3d", ".webp")).convert("RGBA")
        if style == "flat":
            return _rendered(self._asset(code, "flat", ".svg").read_bytes())
        return _rendered(self._icon(code))

    def _asset(self, code: str, style: Style, suffix: str) -> Path:
        assets = self._packages[style] / "assets"
        for named in (code, f"{code}-{SELECTOR}", code.removesuffix(f"-{SELECTOR}")):
            path = assets / f"{named}{suffix}"
            if path.is_file():
                return path
        raise UserError(f"The package of style {style} has no emoji {code}; name another one.")

    def _icon(self, code: str) -> bytes:
        name = self._names.get(_plain(code))
        if name is None:
            raise UserError(f"The package of style cartoon has no emoji {code}; name another one.")
        icon = self._icons["icons"].get(name)
        if icon is None:
            icon = self._icons["icons"][self._icons["aliases"][name]["parent"]]
        width = icon.get("width", self._icons["width"])
        height = icon.get("height", self._icons["height"])
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
        ).encode()


def _rendered(svg: bytes) -> Image.Image:
    try:
        import cairosvg
    except ImportError as error:
        raise UserError(
            "Drawings need the package cairosvg; pip install -e '.[pretrain]'"
        ) from error
    except OSError as error:  # cairocffi looks for it while it is imported
        raise UserError(
            "Drawings need the library cairo, which this machine lacks; "
            "install it (Debian: apt install libcairo2)."
        ) from error
    png = cairosvg.svg2png(bytestring=svg, output_width=SIDE, output_height=SIDE)
    return Image.open(BytesIO(png)).convert("RGBA")


def _plain(code: str) -> str:
    return "-".join(part for part in code.split("-") if part != SELECTOR)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
