"""Samples of the frozen cascade before it is tuned: class images, and scenes for the subject.

Class images are what it draws for `a [class noun]` (DreamBooth section 3.3). Sets of pictures are
kept on disk under a key of everything they depend on, made in batches, and a run that was cut short
goes on where it stopped and ends with the same files.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from cascade.config.dreambooth import DrawnConfig
from cascade.config.stage import SamplerConfig, StageConfig
from cascade.data.finding import SortedFiles, sort_files
from cascade.data.images import read_image, require_sides, resize, square, to_pil, write_png
from cascade.diffusion.noise import Noise, derive_seed
from cascade.errors import UserError
from cascade.files import file_digest, remove_partials, user_cache, write_bytes
from cascade.model.precision import in_bf16
from cascade.sampling import Tables, sample_stages
from cascade.stage import Stage

# Sides of a stage that a larger picture is decoded at least at. The stage's kernel then makes what
# it would have made of all pixels, but for 0.35 grey levels (RMS, 106 photos of 512 pixels at 32).
_SIDES: Final = 8

OnImages = Callable[[int, int], None]
"""Called with (pictures there, of how many)."""


@dataclass(frozen=True)
class Drawing:
    """A set of pictures that is drawn: every value that a picture depends on.

    Attributes:
        stages: the frozen stages, base first; the last one's pictures are the set.
        prompts: what the pictures show, by turns.
        config: how many, and the base's sampler.
        seed: of the set.
        text: what embeds the prompts: weights, vocabulary, whether in 8 bits.
    """

    stages: tuple[Stage, ...]
    prompts: tuple[str, ...]
    config: DrawnConfig
    seed: int
    text: str = ""

    def samplers(self) -> list[SamplerConfig]:
        """Return the samplers of its stages."""
        return samplers([stage.config for stage in self.stages], self.config)

    def key(self) -> str:
        """Hash the weights, the prompts and what embeds them, the samplers and the seed."""
        device = self.stages[0].device
        parts = {
            "weights": [stage.fingerprint() for stage in self.stages],
            "prompts": self.prompts,
            "samplers": [
                sampler.model_dump(mode="json")
                | {"precision": "bf16" if in_bf16(sampler.precision, device) else "fp32"}
                for sampler in self.samplers()
            ],
            "seed": self.seed,
            "noise": Noise.KIND,
            "text": self.text,
            # Pictures of batches of another size, or on another device, round differently.
            "batch_size": self.config.batch_size,
            "device": device.type,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]

    def batches(self) -> list[range]:
        """Return the images' indices, batch by batch."""
        count, size = self.config.images, self.config.batch_size
        return [range(first, min(first + size, count)) for first in range(0, count, size)]

    def paths(self, folder: Path | None) -> list[Path]:
        """Return the images' files.

        Those of a last, shorter batch, which round differently, have names of their own.

        Args:
            folder: where sets are kept, each under its key. None is the user's cache.
        """
        place, size = (folder or default_folder()) / self.key(), self.config.batch_size
        return [
            place / f"{index:06d}{'' if len(batch) == size else f'-of-{len(batch)}'}.png"
            for batch in self.batches()
            for index in batch
        ]

    def draw(self, tables: Tables, indices: Sequence[int]) -> list[Image.Image]:
        """Sample the images of these indices; each is a function of its index alone."""
        seeds = [derive_seed(self.seed, "class image", index) for index in indices]
        prompts = [self.prompts[index % len(self.prompts)] for index in indices]
        return to_pil(
            sample_stages(
                self.stages, tables, prompts, seeds, self.samplers(), self.config.batch_size
            )
        )


def samplers(stages: Sequence[StageConfig], config: DrawnConfig) -> list[SamplerConfig]:
    """Return the samplers: the base's by the recipe, the others the checkpoint's, guidance off.

    As the base's, for the same reason: see `DrawnConfig.sampler`.
    """
    own = [stage.sampler.model_copy(update={"guidance": 1.0}) for stage in stages]
    return [config.sampler or own[0], *own[1:]]


def make_pictures(
    drawing: Drawing,
    tables: Tables,
    folder: Path | None,
    rank: int = 0,
    world: int = 1,
    on_images: OnImages | None = None,
) -> list[Path]:
    """Make what is missing of a set and return all its paths.

    Args:
        folder: where sets are kept; see `Drawing.paths`.
        rank: this process's number; each makes its batches and none waits here for the others.
    """
    paths = drawing.paths(folder)
    if rank == 0 and not all(path.is_file() for path in paths):
        place = paths[0].parent
        remove_partials(place)
        note = {
            "prompts": drawing.prompts,
            "stages": [stage.config.name for stage in drawing.stages],
        }
        write_bytes((json.dumps(note) + "\n").encode(), place / "about.json")
    for batch in drawing.batches()[rank::world]:
        if not all(paths[index].is_file() for index in batch):
            # The batch is drawn whole: one of another size rounds differently in its last bits,
            # and a run that was cut short would not end with the files of one that was not.
            for index, image in zip(batch, drawing.draw(tables, batch), strict=True):
                if not paths[index].is_file():
                    write_png(image, paths[index])
        if on_images is not None:
            on_images(sum(path.is_file() for path in paths), len(paths))
    return paths


def own_class_images(folder: Path | None, photos: Sequence[Path], least_side: int) -> SortedFiles:
    """Find the person's own class pictures directly inside a folder, and look at each.

    Args:
        least_side: the shorter side that each must have, pixels.
    """
    if folder is None or not folder.is_dir():
        return SortedFiles()
    own = sort_files(folder)
    digests = {file_digest(path): path.name for path in photos} if own.pictures else {}
    for path in own.pictures:
        photo = digests.get(file_digest(path))
        if photo is not None:
            raise UserError(
                f"The class picture {path} is the subject's photo {photo}; "
                "give pictures of others of its class, or no --class-data-dir to have them drawn."
            )
        require_sides([path], [read_image(path, least_side).size], least_side)
    return own


def read_squares(paths: Sequence[Path], stage: StageConfig) -> tuple[Image.Image, ...]:
    """Decode pictures one after another, each cut to its centred square of the stage's size."""
    return tuple(
        resize(square(read_image(path, _SIDES * stage.size)), stage.size, stage.resize)
        for path in paths
    )


def read_pictures(paths: Sequence[Path]) -> tuple[Image.Image, ...]:
    """Decode the pictures of a set; a damaged one is named so that it can be removed."""
    return tuple(read_image(path) for path in paths)


def default_folder() -> Path:
    """Return the user's cache of class images."""
    return user_cache("class-images")
