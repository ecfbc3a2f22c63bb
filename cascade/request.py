"""What is asked of a cascade: prompts, seeds and settings, checked before anything is drawn.

Only the stages' configurations are looked at, so a mistake is told before weights are loaded.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, Final, TypedDict

from pydantic import Field

from cascade.config.stage import AugmentationLevel, Precision, SamplerConfig, StageConfig
from cascade.errors import UserError

MOST_PICTURES: Final = 100_000
"""Pictures of one call: no one looks through a folder of more, and tools no longer list it."""
MOST_AT_ONCE: Final = 1024
"""Pictures of one batch: 64 pixels wide, they keep any device busy, and memory grows with them."""

AtOnce = Annotated[int, Field(strict=True, gt=0, le=MOST_AT_ONCE)]


class Asked(TypedDict, total=False):
    """What may be asked for beside prompts and seeds; None is as good as left out.

    Attributes:
        num_images: pictures of each prompt, with seeds 0, 1, 2, ...; in place of seeds.
        negative_prompts: what to lead away from, one for all pictures or one for each: guidance's
            unconditional text (Imagen eq. 2) is replaced by it.
        sampler: name of another sampler than the checkpoints', for every stage.
        steps: another number of its steps; a checkpoint's list of timesteps gives way.
        timesteps: a list's name, such as "smart100": one for all stages, or one for each.
        guidance: another guidance weight.
        precision: of the networks' arithmetic.
        noise_level: augmentation level of every super-resolution stage, in [0, 1].
        samplers: stage name to settings, whole or those that differ from the checkpoint's.
        levels: stage name to augmentation level, of super-resolution stages.
        last_stage: stop after this stage.
        batch_size: how many pictures are worked on at once; 8 by default.
    """

    num_images: int | None
    negative_prompts: str | Sequence[str] | None
    sampler: str | None
    steps: int | None
    timesteps: str | Sequence[str] | None
    guidance: float | None
    precision: Precision | None
    noise_level: float | None
    samplers: Mapping[str, SamplerConfig | Mapping[str, object]] | None
    levels: Mapping[str, AugmentationLevel] | None
    last_stage: str | None
    batch_size: int


@dataclass(frozen=True)
class Setting:
    """How one stage draws.

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
    """

    prompts: tuple[str, ...]
    negatives: tuple[str | None, ...]
    seeds: tuple[int, ...]
    settings: tuple[Setting, ...]
    batch_size: int

    @classmethod
    def of(
        cls,
        stages: Sequence[StageConfig],
        prompts: str | Sequence[str],
        seeds: Iterable[int] | None,
        asked: Asked,
    ) -> "Request":
        """Check what is asked of the stages of a cascade, base first.

        Raises:
            UserError: numbers of prompts and seeds differ, a value is of another kind or out of
                range, or a stage is unknown or cannot do what it should.
            TypeError: nothing of this name can be asked.
        """
        unknown = asked.keys() - Asked.__annotations__.keys()
        if unknown:
            raise TypeError(f"sample has no argument {', '.join(sorted(unknown))}")
        texts, numbers = _pairs(prompts, seeds, asked.get("num_images"))
        settings = _settings(stages, asked)
        negatives = _negatives(asked.get("negative_prompts"), len(texts))
        if negatives[0] is not None and all(one.sampler.guidance == 1 for one in settings):
            raise UserError("Without guidance (1) a negative prompt does nothing; raise guidance.")
        batch = whole(asked.get("batch_size", 8), "the batch size", 1, MOST_AT_ONCE)
        return cls(tuple(texts), tuple(negatives), tuple(numbers), settings, batch)

    def batches(self) -> list[range]:
        """Which of the pictures are worked on together."""
        starts = range(0, len(self.seeds), self.batch_size)
        return [range(at, min(at + self.batch_size, len(self.seeds))) for at in starts]


def whole(value: object, what: str, least: int, most: int) -> int:
    """Return a whole number of Python's, NumPy's or PyTorch's.

    Raises:
        UserError: it is none, or out of range.
    """
    number = _index(value, what)
    if not least <= number <= most:
        raise UserError(f"{what} is {number}; give a whole number from {least} to {most}.")
    return number


def place_of(name: object, stages: Sequence[StageConfig]) -> int:
    """Where a stage of this name stands.

    Raises:
        UserError: there is none.
    """
    known = [stage.name for stage in stages]
    if not isinstance(name, str) or name not in known:
        raise UserError(f"The cascade has no stage '{name}'; it has {', '.join(known)}.")
    return known.index(name)


def _index(value: object, what: str) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise UserError(f"{what} is {value!r}; give a whole number.") from None


def _texts(value: object, what: str) -> list[str]:
    """One text, or several."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or isinstance(texts, (bytes, bytearray)):
        raise UserError(f"{what} are {value!r}; give a text, or a list of texts.")
    wrong = [text for text in texts if not isinstance(text, str)]
    if wrong:
        raise UserError(f"{wrong[0]!r} among {what} is no text; give texts alone.")
    return list(texts)


def _pairs(prompts: object, seeds: object, each: object) -> tuple[list[str], list[int]]:
    """A prompt and a seed for every picture."""
    texts = _texts(prompts, "the prompts")
    if each is not None:
        if seeds is not None:
            raise UserError("seeds and num_images both say how many pictures; give one of them.")
        count = whole(each, "num_images", 1, MOST_PICTURES)
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
    if len(texts) > MOST_PICTURES:
        raise UserError(
            f"More than {MOST_PICTURES} pictures are too many for one call; draw in parts."
        )
    return texts, numbers


def _seeds(given: Any) -> list[int]:
    """Whole numbers of a list, a range, an array or a tensor."""
    try:
        seeds = list(islice(given, MOST_PICTURES + 1))  # a range may be endlessly long
    except TypeError:  # a tensor of no dimension says only here that it holds no list
        seeds = None
    if seeds is None or isinstance(given, str):
        raise UserError(f"seeds are {given!r}; give a list of whole numbers, such as [3].")
    return [_index(seed, "a seed") for seed in seeds]


def _negatives(given: object, count: int) -> list[str | None]:
    if given is None:
        return [None] * count
    texts = _texts(given, "the negative prompts")
    if len(texts) not in (1, count):
        raise UserError(
            f"There are {len(texts)} negative prompts for {count} pictures; give one for all, or "
            "one for each."
        )
    return list(texts if len(texts) == count else texts * count)


def _settings(stages: Sequence[StageConfig], asked: Asked) -> tuple[Setting, ...]:
    """The settings of every stage that draws."""
    samplers = _by_stage(asked.get("samplers"), "samplers", stages)
    levels = _by_stage(asked.get("levels"), "levels", stages)
    last = asked.get("last_stage")
    count = len(stages) if last is None else place_of(last, stages) + 1
    lists = _lists(asked, len(stages))
    settings = []
    for stage, listed in zip(stages, lists, strict=True):
        own = samplers.get(stage.name)
        source = f"samplers['{stage.name}']" if own is not None else "what is asked"
        change = _changes(asked) | ({} if listed is None else {"timesteps": listed})
        values = stage.sampler.model_dump() | change | _plain(own, source)
        settings.append(
            Setting(
                stage.name,
                # As a whole configuration: it knows which settings its network cannot do.
                StageConfig.parse(stage.model_dump() | {"sampler": values}, source).sampler,
                _level(stage, levels.get(stage.name), asked.get("noise_level")),
            )
        )
    return tuple(settings[:count])


def _by_stage(given: Any, what: str, stages: Sequence[StageConfig]) -> Mapping[str, Any]:
    """Values by stage name."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UserError(f"{what} are by stage; give for instance {{'{stages[0].name}': ...}}.")
    for name in given:
        place_of(name, stages)
    return given


def _changes(asked: Asked) -> dict[str, object]:
    """What is asked of every stage's sampler."""
    steps = asked.get("steps")
    given: dict[str, object] = {
        "name": asked.get("sampler"),
        "steps": None if steps is None else _index(steps, "steps"),
        "guidance": asked.get("guidance"),
        "precision": asked.get("precision"),
    }
    changes = {key: value for key, value in given.items() if value is not None}
    return changes if steps is None else changes | {"timesteps": None}


def _lists(asked: Asked, stages: int) -> Sequence[str | None]:
    """The named list of timesteps of each stage, or None where its other settings hold."""
    given = asked.get("timesteps")
    if given is None:
        return [None] * stages
    names = _texts(given, "the lists of timesteps")
    if asked.get("steps") is not None:
        raise UserError("steps and timesteps both say how to sample; give one of them.")
    if len(names) not in (1, stages):
        raise UserError(
            f"There are {len(names)} lists of timesteps for {stages} stages; give one for all, or "
            "one for each."
        )
    return list(names) if len(names) == stages else [names[0]] * stages


def _plain(given: object, source: str) -> dict[str, object]:
    """Settings as plain values: those of a model may have been changed unchecked."""
    if isinstance(given, SamplerConfig):
        return given.model_dump(warnings="none")
    if given is None or isinstance(given, Mapping):
        return dict(given or {})
    raise UserError(f"{source} are {given!r}; give a SamplerConfig, or its settings by name.")


def _level(stage: StageConfig, own: object, common: object) -> AugmentationLevel | None:
    source = f"levels['{stage.name}']" if own is not None else "noise_level"
    if stage.low_res is None:
        if own is not None:
            raise UserError(f"{source}: stage '{stage.name}' enlarges nothing and has no level.")
        return None
    if own is None:
        return None if common is None else AugmentationLevel.parse({"value": common}, source)
    if not isinstance(own, AugmentationLevel):
        raise UserError(f"{source} is {own!r}; give an AugmentationLevel.")
    return AugmentationLevel.parse(own.model_dump(warnings="none"), source)
