"""Large sets of pictures and their features on disk: drawn or computed once, in pieces.

Whatever is interrupted goes on where it was, and what depends on other settings lies in another
place. Pictures are stored in 8 bits, as a PNG would.

Shapes: `N` pictures, `C H W` pixels, `D` features.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cascade.config.stage import SamplerConfig
from cascade.evaluate.features import FeatureExtractor
from cascade.files import read_json, write_bytes
from cascade.sampling import sample_stage
from cascade.stage import Stage
from cascade.text.prompts import PromptSource

OnDone = Callable[[int, int], None]
"""Called with (done, of how many) when a piece is on disk; what it raises loses nothing."""

_PIECE = 256  # pictures whose features are computed between two writes


@dataclass(frozen=True)
class PictureSet:
    """One picture of a stage per prompt and seed."""

    stage: Stage
    sampler: SamplerConfig
    table: PromptSource  # the embeddings of the prompts
    text_digest: str  # tells apart what the embeddings were made with
    prompts: Sequence[str]
    seeds: Sequence[int]
    low_res: Tensor | None = None  # what a super-resolution stage enlarges, N C h w

    @cached_property
    def name(self) -> str:
        """The stage's name and a digest of everything that the pictures depend on."""
        digest = hashlib.sha256(self.stage.fingerprint().encode())
        settings = [self.sampler.model_dump(mode="json"), self.text_digest]
        digest.update(json.dumps([*settings, list(self.prompts), list(self.seeds)]).encode())
        if self.low_res is not None:
            digest.update(self.low_res.numpy().tobytes())
        return f"{self.stage.config.name}-{digest.hexdigest()[:12]}"

    @property
    def side(self) -> int:
        """Side of the pictures, pixels."""
        config = self.stage.config
        if self.low_res is None or config.low_res is None:
            return config.size
        return self.low_res.shape[-1] * (config.size // config.low_res.size)

    def draw(
        self, folder: Path, batch_size: int = 8, on_done: OnDone | None = None
    ) -> NDArray[np.uint8]:
        """Draw what `folder` does not have yet; N C H W, mapped from the file `NAME.npy`.

        `NAME.json` says how much of it is drawn; both are written after every batch.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path, state = folder / f"{self.name}.npy", folder / f"{self.name}.json"
        begun = path.is_file() and state.is_file()
        drawn = int(str(read_json(state)["drawn"])) if begun else 0
        shape = (len(self.seeds), 3, self.side, self.side)
        images = np.lib.format.open_memmap(
            path, mode="r+" if drawn else "w+", dtype=np.uint8, shape=shape
        )
        _report(on_done, drawn, len(images))
        while drawn < len(images):
            rows = slice(drawn, drawn + batch_size)
            images[rows] = to_bytes(self._sample(rows))
            images.flush()
            drawn = min(rows.stop, len(images))
            write_bytes(json.dumps({"drawn": drawn, "of": len(images)}).encode(), state)
            _report(on_done, drawn, len(images))
        return images

    def _sample(self, rows: slice) -> Tensor:
        return sample_stage(
            self.stage,
            self.table,
            self.prompts[rows],
            self.seeds[rows],
            low_res=None if self.low_res is None else self.low_res[rows],
            sampler=self.sampler,
            batch_size=len(self.seeds[rows]),
        )


def stored_features(
    extractor: FeatureExtractor,
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    digest: str,
    folder: Path,
    on_done: OnDone | None = None,
) -> Tensor:
    """Return the features of some pictures N 3 S S, `len(rows) D`, reading what `folder` has.

    It gets one `.npz` for each extractor, choice of rows, and digest that tells these pictures from
    all others.
    """
    key = hashlib.sha256(f"{extractor.name} {digest}".encode() + rows.tobytes()).hexdigest()
    path = folder / f"{key[:16]}.npz"
    features = torch.empty(0)
    if path.is_file():
        with np.load(path) as file:
            features = torch.from_numpy(file["features"])
    _report(on_done, len(features), len(rows))
    while len(features) < len(rows):
        piece = to_floats(images[rows[len(features) : len(features) + _PIECE]])
        found = extractor(piece)
        features = torch.cat([features, found]) if len(features) else found
        buffer = io.BytesIO()
        np.savez(buffer, features=features.numpy(), extractor=extractor.name, digest=digest)
        write_bytes(buffer.getvalue(), path)
        _report(on_done, len(features), len(rows))
    return features


def evenly(count: int, number: int) -> NDArray[np.int64]:
    """Return `number` of the places 0..count-1 at equal distances, all where there are fewer."""
    return np.arange(min(count, number)) * count // min(count, number)


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """Round N C H W in [-1, 1] to 8 bits."""
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).numpy()


def to_floats(images: NDArray[np.uint8]) -> Tensor:
    """Return 8-bit pictures N C H W in [-1, 1]."""
    return torch.from_numpy(np.array(images)).float().div_(127.5).sub_(1.0)


def _report(on_done: OnDone | None, done: int, total: int) -> None:
    if on_done is not None:
        on_done(done, total)
