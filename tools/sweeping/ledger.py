"""Finished settings, each a line of JSON, kept as they end."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cascade.files import write_bytes

Figures = Mapping[str, float | None]


class Ledger:
    """A file of finished settings; there is never half a line in it.

    Attributes:
        found: what each setting did, by its key.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = [json.loads(line) for line in self._text().splitlines()]
        self.found: dict[str, Figures] = {line["key"]: line["found"] for line in lines}

    def add(self, key: str, about: Mapping[str, Any], found: Figures) -> None:
        """Keep what a setting did.

        Args:
            key: names the setting.
            about: what a reader of the file wants to know of it.
            found: its figures.
        """
        # Read anew: another sweep into the same folder may have added lines of its own.
        text = self._text() + json.dumps({"key": key, **about, "found": found}) + "\n"
        write_bytes(text.encode(), self._path)
        self.found[key] = found

    def _text(self) -> str:
        return self._path.read_text(encoding="utf-8") if self._path.is_file() else ""
