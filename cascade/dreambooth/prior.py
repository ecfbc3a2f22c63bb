"""Class images: what the frozen cascade draws for `a [class noun]` (DreamBooth section 3.3).

They are kept on disk under a key of everything they depend on, made in batches, and a run that was
cut short goes on where it stopped and ends with the same files.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor

from cascade.config.dreambooth import PriorConfig
from cascade.config.stage import SamplerConfig
from cascade.data.images import SUFFIXES, read_image, read_photos, to_pil, write_png
from cascade.diffusion.noise import derive_seed
from cascade.errors import UserError
from cascade.files import write_bytes
from cascade.sampling import sample_stage
from cascade.stage import Stage
from cascade.text.prompts import PromptSource

OnImages = Callable[[int, int], None]
"""Called with (class images there, of how many)."""


@dataclass(frozen=True)
class Prior:
    """The recipe of a set of class images: every value that a picture depends on.

    Attributes:
        stages: the frozen stages, base first; the last one's pictures are the class images.
        prompt: `a [class noun]`.
        config: how many, and the base's sampler.
        seed: the run's.
    """

    stages: tuple[Stage, ...]
    prompt: str
    config: PriorConfig
    seed: int

    @property
    def prompts(self) -> tuple[str, ...]:
        """What the class images show, by turns."""
        return self.config.prompts(self.prompt)

    def samplers(self) -> list[SamplerConfig]:
        """The base's by the recipe; super-resolution samples by the checkpoint's own settings."""
        own = [stage.config.sampler for stage in self.stages]
        base = self.config.sampler or own[0].model_copy(update={"guidance": 1.0})
        return [base, *own[1:]]

    def key(self) -> str:
        """A hash of the weights, the prompts, the samplers and the seed."""
        parts = {
            "weights": [stage.fingerprint() for stage in self.stages],
            "prompts": self.prompts,
            "samplers": [sampler.model_dump(mode="json") for sampler in self.samplers()],
            "seed": self.seed,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]

    def draw(self, table: PromptSource, indices: Sequence[int]) -> list[Image.Image]:
        """Draw the class images of these indices; each is a function of its index alone."""
        seeds = [derive_seed(self.seed, "class image", index) for index in indices]
        prompts = [self.prompts[index % len(self.prompts)] for index in indices]
        low_res: Tensor | None = None
        for stage, sampler in zip(self.stages, self.samplers(), strict=True):
            low_res = sample_stage(
                stage,
                table,
                prompts,
                seeds,
                low_res=low_res,
                sampler=sampler,
                batch_size=self.config.batch_size,
            )
        assert low_res is not None, "a cascade has at least one stage"
        return to_pil(low_res)


def class_images(
    prior: Prior,
    table: PromptSource,
    folder: Path | None,
    rank: int = 0,
    world: int = 1,
    on_images: OnImages | None = None,
) -> list[Path]:
    """Make what is missing of the class images and return all their paths.

    Args:
        prior: what they depend on.
        table: holds the prompts' embeddings.
        folder: where sets are kept, each under its key. None is the user's cache.
        rank: this process's number; each makes its batches and none waits here for the others.
        world: how many processes there are.
        on_images: told about progress.
    """
    place = (folder or default_folder()) / prior.key()
    paths = [place / f"{index:06d}.png" for index in range(prior.config.images)]
    if rank == 0 and not all(path.is_file() for path in paths):
        note = {"prompts": prior.prompts, "stages": [stage.config.name for stage in prior.stages]}
        write_bytes((json.dumps(note) + "\n").encode(), place / "about.json")
    size = prior.config.batch_size
    for first in range(rank * size, len(paths), world * size):
        batch = range(first, min(first + size, len(paths)))
        if not all(paths[index].is_file() for index in batch):
            # The batch is drawn whole: one of another size rounds differently in its last bits,
            # and a run that was cut short would not end with the files of one that was not.
            for index, image in zip(batch, prior.draw(table, batch), strict=True):
                if not paths[index].is_file():
                    write_png(image, paths[index])
        if on_images is not None:
            on_images(sum(path.is_file() for path in paths), len(paths))
    return paths


def given_class_images(folder: Path | None) -> list[Path]:
    """The person's own class pictures, directly inside the folder, if any; each is checked.

    Raises:
        UserError: a picture is corrupt.
    """
    if folder is None or not folder.is_dir():
        return []
    if not any(path.suffix.lower() in SUFFIXES for path in folder.iterdir()):
        return []
    return list(read_photos(folder).paths)


def read_class_images(paths: Sequence[Path]) -> tuple[Image.Image, ...]:
    """Decode class images; a damaged generated one is named so that it can be removed.

    Raises:
        UserError: a picture is corrupt or missing.
    """
    if not paths:
        raise UserError("There are no class images; give a number of at least one.")
    return tuple(read_image(path) for path in paths)


def default_folder() -> Path:
    """The user's cache of class images."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "dreamcascade" / "class-images"
