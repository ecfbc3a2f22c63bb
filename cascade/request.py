"""A sampling request: prompts, seeds and settings, checked before anything is sampled.

Only the stages' configurations are looked at, so a mistake is told before weights are loaded.
"""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from cascade.config.aspect import SQUARE, Aspect, read_aspect
from cascade.config.base import MOST_DRAWN, MOST_SIDE
from cascade.config.folders import stage_index
from cascade.config.sample import SampleOptions
from cascade.config.stage import AugmentationLevel, SamplerConfig, StageConfig
from cascade.errors import UserError


@dataclass(frozen=True)
class Setting:
    """The settings of one stage.

    Attributes:
        stage: its name.
        sampler: whole and checked.
        level: the augmentation level; None is the checkpoint's own.
    """

    stage: str
    sampler: SamplerConfig
    level: AugmentationLevel | None


@dataclass(frozen=True)
class Request:
    """B pictures that are wanted.

    Attributes:
        prompts: B texts.
        negatives: B texts that guidance leads away from; None is the checkpoint's own null text.
        seeds: B whole numbers.
        settings: of the stages that draw, base first.
        batch_size: pictures worked on at once.
        aspect: width to height, in lowest terms.
        size: width and height of what the base draws, pixels.
    """

    prompts: tuple[str, ...]
    negatives: tuple[str | None, ...]
    seeds: tuple[int, ...]
    settings: tuple[Setting, ...]
    batch_size: int
    aspect: Aspect
    size: tuple[int, int]

    @classmethod
    def of(
        cls,
        stages: Sequence[StageConfig],
        prompts: str | Sequence[str],
        seeds: Iterable[int] | None = None,
        options: SampleOptions | None = None,
        num_images: int | None = None,
    ) -> "Request":
        """Check what is asked of the stages of a cascade, base first; see `Cascade.sample`."""
        options = options or SampleOptions()
        texts, numbers = _pairs(prompts, seeds, num_images)
        settings = _settings(stages, options)
        negatives = _negatives(options.negative_prompts, len(texts))
        if negatives[0] is not None and all(one.sampler.guidance == 1 for one in settings):
            raise UserError("Without guidance (1) a negative prompt does nothing; raise guidance.")
        aspect = _aspect(options.aspect)
        return cls(
            tuple(texts),
            tuple(negatives),
            tuple(numbers),
            settings,
            options.batch_size,
            aspect,
            _base_size(stages, aspect),
        )

    def batches(self) -> list[range]:
        """Return the ranges of images that are worked on together."""
        starts = range(0, len(self.seeds), self.batch_size)
        return [range(at, min(at + self.batch_size, len(self.seeds))) for at in starts]

    def notes(self, row: int, at: int, cascade: str) -> dict[str, str]:
        """Return what the file of a picture says of it, beside what its weights were.

        Args:
            at: the index of the stage that drew it.
            cascade: its name, for people.
        """
        negative = self.negatives[row]
        return {
            "prompt": self.prompts[row],
            **({} if negative is None else {"negative prompt": negative}),
            "seed": str(self.seeds[row]),
            **({} if self.aspect == SQUARE else {"aspect": "{}:{}".format(*self.aspect)}),
            "cascade": cascade,
            "sampler": self.settings[at].sampler.model_dump_json(),
        }


def whole(value: object, what: str, least: int, most: int) -> int:
    """Return a whole number of Python's, NumPy's or PyTorch's."""
    number = _index(value, what)
    if not least <= number <= most:
        raise UserError(f"{what} is {number}; give a whole number from {least} to {most}.")
    return number


def _index(value: object, what: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise UserError(f"{what} is {value!r}; give a whole number.") from None


def _texts(value: object) -> list[str]:
    """Return one prompt, or several, as a list."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or isinstance(texts, (bytes, bytearray)):
        raise UserError(f"the prompts are {value!r}; give a text, or a list of texts.")
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise UserError(f"{wrong[0]!r} among the prompts is no text; give texts alone.")
    return list(texts)


def _pairs(prompts: object, seeds: object, each: object) -> tuple[list[str], list[int]]:
    """Return a prompt and a seed for every image."""
    texts = _texts(prompts)
    if each is not None:
        if seeds is not None:
            raise UserError("seeds and num_images both say how many pictures; give one of them.")
        count = whole(each, "num_images", 1, MOST_DRAWN)
        numbers = list(range(count)) * len(texts)
        texts = [text for text in texts for _ in range(count)]
    elif seeds is None:
        numbers = list(range(len(texts)))
    else:
        numbers = _seeds(seeds)
    if len(texts) == 1:
        texts = texts * len(numbers)
    if len(texts) != len(numbers) or not texts:
        raise UserError(
            f"There are {len(texts)} prompts for {len(numbers)} seeds; give one prompt for all, "
            "or one per seed."
        )
    if len(texts) > MOST_DRAWN:
        raise UserError(
            f"More than {MOST_DRAWN} pictures are too many for one call; draw in parts."
        )
    return texts, numbers


def _seeds(given: Any) -> list[int]:
    """Whole numbers of a list, a range, an array or a tensor."""
    try:
        seeds = list(islice(given, MOST_DRAWN + 1))  # a range may be endlessly long
    except TypeError:  # a tensor of no dimension says only here that it holds no list
        seeds = None
    if seeds is None or isinstance(given, str):
        raise UserError(f"seeds are {given!r}; give a list of whole numbers, such as [3].")
    return [_index(seed, "a seed") for seed in seeds]


def _negatives(given: Sequence[str] | None, count: int) -> Sequence[str | None]:
    if given is None:
        return [None] * count
    if len(given) not in (1, count):
        raise UserError(
            f"There are {len(given)} negative prompts for {count} pictures; give one for all, or "
            "one for each."
        )
    return given if len(given) == count else [*given] * count


def _settings(stages: Sequence[StageConfig], options: SampleOptions) -> tuple[Setting, ...]:
    """Return the settings of every stage that runs."""
    samplers, levels = options.samplers or {}, options.levels or {}
    for name in (*samplers, *levels):
        stage_index(name, stages)
    count = len(stages)
    if options.last_stage is not None:
        count = stage_index(options.last_stage, stages) + 1
    lists = _lists(options.timesteps, len(stages))
    settings = []
    for stage, listed in zip(stages, lists, strict=True):
        source = f"samplers['{stage.name}']" if stage.name in samplers else "what is asked"
        own = _plain(samplers.get(stage.name), source)
        changes = {
            "name": options.sampler,
            "steps": options.steps,
            "timesteps": None if "steps" in own else listed,
            "guidance": options.guidance,
            "guidance_interval": options.guidance_interval,
            "precision": options.precision,
        }
        given = {key: value for key, value in changes.items() if value is not None}
        values = stage.sampler.values_with(given | own)
        # As a whole configuration: it knows which settings its network cannot do.
        config = StageConfig.parse(stage.model_dump() | {"sampler": values}, source)
        level = _level(stage, levels.get(stage.name), options.noise_level)
        settings.append(Setting(stage.name, config.sampler, level))
    return tuple(settings[:count])


def _lists(given: Sequence[str] | None, stages: int) -> Sequence[str | None]:
    """Return the named timesteps of each stage, or None where its other settings hold."""
    if given is None:
        return [None] * stages
    if len(given) not in (1, stages):
        raise UserError(
            f"There are {len(given)} lists of timesteps for {stages} stages; give one for all, or "
            "one for each."
        )
    return given if len(given) == stages else [*given] * stages


def _plain(given: object, source: str) -> dict[str, Any]:
    """Return settings as plain values: those of a model may have been changed unchecked."""
    if isinstance(given, SamplerConfig):
        return given.model_dump(warnings="none")
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    raise UserError(f"{source} are {given!r}; give a SamplerConfig, or its settings by name.")


def _level(
    stage: StageConfig, own: AugmentationLevel | None, common: float | None
) -> AugmentationLevel | None:
    if stage.low_res is None:
        if own is not None:
            raise UserError(
                f"levels['{stage.name}']: stage '{stage.name}' enlarges nothing and has no level."
            )
        return None
    return own if common is None or own is not None else AugmentationLevel(value=common)


def _aspect(text: str | None) -> Aspect:
    """Return an aspect ratio in lowest terms; a square where none is asked."""
    width, height = SQUARE if text is None else read_aspect(text)
    common = math.gcd(width, height)
    return width // common, height // common


def _base_size(stages: Sequence[StageConfig], aspect: Aspect) -> tuple[int, int]:
    """Return the width and height that the base draws, so that every stage can enlarge them."""
    base = stages[0]
    wanted = [
        stage.unet.factor // math.gcd(stage.unet.factor, stage.size // base.size)
        for stage in stages
    ]
    return base.shape(aspect, math.lcm(*wanted))


def scales(stages: Sequence[StageConfig], size: int) -> list[StageConfig]:
    """Return the stages, the last applied again up to `size` pixels; see `Cascade.upscaled_to`."""
    chain = list(stages)
    size = whole(size, "the size", 1, MOST_SIDE)
    while chain[-1].size < size:
        chain.append(_next_scale(chain[-1]))
    if chain[-1].size != size:
        made = ", ".join(str(stage.size) for stage in chain)
        raise UserError(f"This cascade makes pictures of {made} pixels; give one of these.")
    return chain


def _next_scale(config: StageConfig) -> StageConfig:
    """Return the same super-resolution network, one scale up."""
    if config.low_res is None or {"self", "joint"} & set(config.unet.attention):
        raise UserError(
            f"Stage '{config.name}' cannot be used again at a larger scale: only a "
            f"super-resolution stage without self-attention can; {config.size} is its size."
        )
    size = config.size * config.size // config.low_res.size
    low_res = config.low_res.model_copy(update={"size": config.size})
    name = f"{config.name.partition('-at-')[0]}-at-{size}"
    return config.model_copy(update={"name": name, "size": size, "low_res": low_res})
