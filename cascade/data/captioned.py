"""Training rows of one stage from captioned pictures: shuffled, cut, mirrored, captions dropped.

Shapes: `B` rows; pixels are uint8 until a batch is moved to its device.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Final

import numpy as np
import torch
from torch import Tensor

from cascade.config.data import RowConfig
from cascade.config.stage import StageConfig
from cascade.data.batch import Batch, crop_sides
from cascade.data.choosing import Choice, Choose, choose, random_words
from cascade.data.cutting import Window, cut, enough
from cascade.data.dataset import UnusableRecord
from cascade.data.mixture import Mixture
from cascade.data.order import Order, mixed
from cascade.data.source import Source
from cascade.diffusion.noise import derive_seed
from cascade.errors import UserError
from cascade.text.packed import PackedTexts

_SUBSTITUTES: Final = 16  # records of a shard that are tried for one that is of no use
_FETCHES: Final = 4  # shards at once


@dataclass(frozen=True)
class CaptionedSamples:
    """Training rows of one stage: a pure function of the seed and their positions.

    Attributes:
        sources: where pictures come from.
        stage: that is trained.
        seed: of the run.
        config: how rows are drawn.
        group: consecutive positions whose rows have one shape.
        chooser: makes the choices of a row.
    """

    sources: tuple[Source, ...]
    stage: StageConfig
    seed: int
    config: RowConfig
    group: int = 1
    chooser: Choose = choose

    def __len__(self) -> int:
        """Return the number of pictures."""
        return int(self.first[-1])

    def locate(self, number: int) -> tuple[int, int]:
        """Return the source of a picture of all sources, laid end to end, and its index there."""
        source = int(np.searchsorted(self.first, number, side="right")) - 1
        return source, number - int(self.first[source])

    @cached_property
    def first(self) -> np.ndarray:
        """Pictures of the sources before each, int64; the last is all of them."""
        return np.cumsum([0, *(int(source.ends[-1]) for source in self.sources)])

    def rows(self, positions: Sequence[int]) -> Batch:
        """Return the rows at these positions; see `cascade.data.stream`."""
        skipped = list[str]()
        made = [
            self._made(position, choice, skipped)
            for position, choice in zip(positions, self.decide(positions), strict=True)
        ]
        choices = [choice for choice, _, _ in made]
        low = [low for _, _, low in made if low is not None]
        return Batch(
            images=stacked([high for _, high, _ in made]),
            low_res=stacked(low) if low else None,
            prompts=tuple(choice.prompt for choice in choices),
            seeds=tuple(choice.seed for choice in choices),
            weights=torch.ones(len(made)),
            terms=("mse",) * len(made),
            positions=len(made),
            texts=self._texts(choices),
            skipped=tuple(skipped),
        )

    def decide(self, positions: Sequence[int]) -> list[Choice]:
        """Make the random choices of the rows at these positions, all at once."""
        at = np.asarray(positions, dtype=np.int64)
        return self._decided(at, *self._records(at))

    def sizes(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        """Return the size of the whole picture at each of these positions, width and height."""
        sources, _ = self._records(np.asarray(positions, dtype=np.int64))
        return [self.sources[source].size for source in sources.tolist()]

    def bring(self, positions: Sequence[int]) -> None:
        """Fetch the shards that rows are made of, where they are far."""
        sources, index = self._records(np.asarray(positions, dtype=np.int64))
        with ThreadPoolExecutor(_FETCHES) as pool:
            for number in np.unique(sources).tolist():
                source = self.sources[number]
                shards = np.unique(source.shards(index[sources == number])).tolist()
                list(pool.map(source.data.bring, shards))

    def captions(self, number: int) -> tuple[str, ...]:
        """Return the captions of a picture of all sources, laid end to end."""
        source, index = self.locate(number)
        return self.sources[source].captions(index)

    def whole(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the pixels of a picture of all sources, uncropped, as `pixels`."""
        source, index = self.locate(number)
        try:
            return self.uncropped.pixels(Choice(source, index))
        except UnusableRecord as error:
            raise UserError(
                f"{self.sources[source].data.name(index)} is of no use ({error}); pack the "
                "pictures again without it."
            ) from None

    @cached_property
    def uncropped(self) -> "CaptionedSamples":
        """Return the same samples with whole pictures in their rows."""
        low_res = self.stage.low_res
        if low_res is None or low_res.crop is None:
            return self
        whole = low_res.model_copy(update={"crop": None})
        return replace(self, stage=self.stage.model_copy(update={"low_res": whole}))

    def all_captions(self) -> Iterator[tuple[str, ...]]:
        """Yield every picture's captions as they are trained on, source by source."""
        return chain.from_iterable(source.all_captions() for source in self.sources)

    def pixels(self, choice: Choice) -> tuple[np.ndarray, np.ndarray | None]:
        """Return a row's pixels and their low-resolution twin, H W 3 and h w 3.

        Raises:
            UnusableRecord: its picture is damaged, or too small.
        """
        source = self.sources[choice.source]
        whole = source.data.size(choice.index)
        window = self._window(choice, *whole, source.size)
        picture = source.data.picture(choice.index, enough(min(source.size), window, whole))
        left = choice.left
        if choice.mirrored and self.stage.low_res is not None:
            left = self.stage.low_res.size - crop_sides(self.stage)[1] - left
        scale = picture.width / whole[0]
        high, low = cut(self.stage, picture, scale, window, source.size, (choice.top, left))
        if not choice.mirrored:
            return high, low
        return high[:, ::-1], None if low is None else low[:, ::-1]

    def some_captions(self, count: int) -> Iterator[str]:
        """Yield captions of about so many pictures of each source."""
        for source in self.sources:
            for captions in source.data.some_captions(count):
                yield from (source.prefix + caption for caption in captions)

    def embeddings(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every caption with its embedding, which lies beside its picture."""
        for source in self.sources:
            for index, captions in enumerate(source.all_captions()):
                for number, caption in enumerate(captions):
                    row = source.embedding(index, number, caption)
                    assert row is not None, "it is no null text"
                    yield caption, row

    @property
    def has_texts(self) -> bool:
        """Whether rows bring their captions' embeddings."""
        return all(source.texts is not None for source in self.sources)

    def _texts(self, choices: Sequence[Choice]) -> PackedTexts | None:
        if not self.has_texts:
            return None
        rows = [
            self.sources[one.source].embedding(one.index, one.caption, one.prompt)
            for one in choices
        ]
        return PackedTexts.pack(rows, self.stage.unet.text_width)

    def _made(
        self, position: int, choice: Choice, skipped: list[str]
    ) -> tuple[Choice, np.ndarray, np.ndarray | None]:
        """Make a row; another record of the same shard stands in for one that is of no use."""
        source = self.sources[choice.source]
        for attempt in range(_SUBSTITUTES):
            try:
                return choice, *self.pixels(choice)
            except UnusableRecord as error:
                skipped.append(f"{source.data.name(choice.index)} ({error})")
            word = int(mixed(derive_seed(self.seed, "substitute"), position, attempt))
            index = source.neighbour(choice.index, word)
            at, sources = np.array([position]), np.array([choice.source])
            (choice,) = self._decided(at, sources, np.array([index]))
        raise UserError(
            f"{_SUBSTITUTES} pictures of one shard are of no use, as {skipped[-1]}; see 'cascade "
            "data check', and pack them again."
        )

    def _window(self, choice: Choice, width: int, height: int, size: tuple[int, int]) -> Window:
        """Return the part of a picture that a row shows, of the shape of `size`."""
        largest = min(width / size[0], height / size[1])
        if largest < 1:
            raise UnusableRecord(
                f"{width}x{height} is smaller than the {size[0]}x{size[1]} that are trained on"
            )
        least = max(self.config.least_scale, 1 / largest)
        scale = largest * (least + choice.scale * (1 - least))
        wide, high = min(scale * size[0], width), min(scale * size[1], height)
        if self.config.crop == "random":
            left, top = choice.across * (width - wide), choice.down * (height - high)
        else:
            left, top = (width - wide) // 2, (height - high) // 2
        return Window(left, top, left + wide, top + high)

    def _records(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the source of each position's picture, and its index in it."""
        sources, own = self._mixture.of(positions)
        index = np.empty_like(own)
        for number, order in enumerate(self._orders):
            of_source = sources == number
            if of_source.any():
                index[of_source] = order.indices(own[of_source])
        return sources, index

    def _decided(
        self, positions: np.ndarray, sources: np.ndarray, index: np.ndarray
    ) -> list[Choice]:
        words = random_words(self.seed, positions)
        return [
            self.chooser(self.config, self.stage, (source, at), self._captions(source, at), row)
            for source, at, row in zip(sources.tolist(), index.tolist(), words, strict=True)
        ]

    def _captions(self, source: int, index: int) -> tuple[str, ...]:
        try:
            return self.sources[source].captions(index)
        except UnusableRecord:  # its pixels, read next, will be of no use either
            return ("",)

    @cached_property
    def _mixture(self) -> Mixture:
        weights = tuple(source.weight for source in self.sources)
        return Mixture(weights, self.seed, self.group)

    @cached_property
    def _orders(self) -> tuple[Order, ...]:
        return tuple(
            Order(
                source.data.counts,
                derive_seed(self.seed, "source", number),
                self.config.window,
                self.config.lanes,
            )
            for number, source in enumerate(self.sources)
        )


def stacked(pictures: Sequence[np.ndarray]) -> Tensor:
    """Return pictures H W C as one tensor B C H W."""
    return torch.from_numpy(np.stack([picture.transpose(2, 0, 1) for picture in pictures]))
