"""Many images: prompts and seeds in, batches through one stage or all, images out.

Shapes: `B` images, `C H W` pixels in [-1, 1].
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor

from cascade.config.stage import AugmentationLevel, SamplerConfig, StageConfig, TextConfig
from cascade.diffusion.denoiser import HasSide
from cascade.diffusion.noise import Noise, derive_seed
from cascade.errors import UserError
from cascade.request import Request
from cascade.stage import Stage
from cascade.text.prompts import PromptEncoder, PromptSource, PromptTable
from cascade.text.tokenizer import report_lost

Tables = Mapping[TextConfig, PromptTable]
"""Embeddings by the conventions that they follow."""

OnStep = Callable[[str, int, int], None]
"""Called with (stage name, steps done, of how many), a step being one of one batch."""


def sample_stage(
    stage: Stage,
    table: PromptSource,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    negatives: Sequence[str | None] | None = None,
    low_res: Tensor | None = None,
    sampler: SamplerConfig | None = None,
    level: AugmentationLevel | None = None,
    batch_size: int = 8,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample one stage in batches; see `Cascade.sample`. Returns B C H W on the CPU.

    Texts of `negatives` stand in for guidance's unconditional text; they are in the table too.
    """
    name = stage.config.name
    sampler = sampler or stage.config.sampler
    per_batch = sampler.count
    total = per_batch * -(-len(seeds) // batch_size)
    without = negatives or [None] * len(seeds)
    parts: list[Tensor] = []
    for first in range(0, len(seeds), batch_size):
        rows = slice(first, first + batch_size)
        text = table.rows(prompts[rows])
        null = table.rows(without[rows])
        done = len(parts) * per_batch
        parts.append(
            stage.sample(
                text,
                null,
                Noise([derive_seed(seed, name) for seed in seeds[rows]]),
                None if low_res is None else low_res[rows],
                sampler,
                level,
                _counter(on_step, name, done, total),
            ).cpu()
        )
    return torch.cat(parts)


def sample_stages(
    stages: Iterable[Stage],
    tables: Tables,
    prompts: Sequence[str],
    seeds: Sequence[int],
    samplers: Sequence[SamplerConfig] | None = None,
    batch_size: int = 8,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample a chain of stages, base first, and return the last one's images, B C H W.

    Stages of an iterator are asked for one by one, so only one of them need be in memory.
    """
    images: Tensor | None = None
    for at, stage in enumerate(stages):
        images = sample_stage(
            stage,
            tables[stage.config.text],
            prompts,
            seeds,
            low_res=images,
            sampler=samplers[at] if samplers else None,
            batch_size=batch_size,
            on_step=on_step,
        )
    assert images is not None, "a cascade has at least one stage"
    return images


def of_size(stages: Sequence[Stage], size: tuple[int, int]) -> list[Stage]:
    """Return a cascade's stages, the base drawing pictures of a width and height.

    Raises:
        UserError: it is another size than the base's own, and a stage takes no other.
    """
    base, *later = stages
    if size == base.size:
        return [*stages]
    require_any_size(stages, "aspect")
    base = copy.copy(base)
    base.size = size
    return [base, *later]


def require_any_size(stages: Iterable[Stage], asked: str) -> None:
    """Refuse another size of picture where a stage's engine was built for its own alone."""
    for stage in stages:
        network = stage.denoiser.network
        if isinstance(network, HasSide) and network.side is not None:
            raise UserError(
                f"Stage '{stage.config.name}' runs on a plan, which takes squares of "
                f"{network.side} pixels alone; leave the {asked} out, or take another engine."
            )


def sample_request(
    stages: Sequence[Stage],
    tables: Tables,
    request: Request,
    batches: Sequence[range],
    on_step: OnStep | None = None,
) -> Iterator[tuple[range, dict[str, Tensor]]]:
    """Sample batches of a request, each through all stages; see `Cascade.sample_batches`.

    A batch is drawn with the weights of its beginning, whatever is swapped meanwhile.

    Yields:
        A batch, and its images B C H W by stage name.
    """
    for number, rows in enumerate(batches):
        with ExitStack() as pins:
            pinned = [pins.enter_context(stage.pinned()) for stage in stages]
            images = _sample_batch(
                pinned, tables, request, rows, _part_of(on_step, number, len(batches))
            )
        yield rows, images


def _sample_batch(
    stages: Sequence[Stage],
    tables: Tables,
    request: Request,
    rows: range,
    on_step: OnStep | None,
) -> dict[str, Tensor]:
    images: dict[str, Tensor] = {}
    low_res: Tensor | None = None
    for stage, setting in zip(stages, request.settings, strict=False):
        low_res = sample_stage(
            stage,
            tables[stage.config.text],
            request.prompts[rows.start : rows.stop],
            request.seeds[rows.start : rows.stop],
            negatives=request.negatives[rows.start : rows.stop],
            low_res=low_res,
            sampler=setting.sampler,
            level=setting.level,
            batch_size=request.batch_size,
            on_step=on_step,
        )
        images[setting.stage] = low_res
    return images


def prompt_tables(
    encoder: PromptEncoder, prompts: Sequence[str], stages: Iterable[StageConfig]
) -> Tables:
    """Embed prompts by the conventions of every stage, each distinct one once, and alone.

    What is lost of them, behind a token limit or in no vocabulary, is logged.
    """
    tables: dict[TextConfig, PromptTable] = {}
    for stage in stages:
        if stage.text not in tables:
            tables[stage.text] = PromptTable.build(encoder, prompts, stage.text, alone=True)
            report_lost(encoder.tokenizer, prompts, stage.text)
    return tables


def _part_of(on_step: OnStep | None, number: int, count: int) -> OnStep | None:
    """Count the steps of one batch among those of `count` batches."""
    if on_step is None:
        return None
    return lambda name, done, of: on_step(name, number * of + done, count * of)


def _counter(
    on_step: OnStep | None, name: str, done: int, total: int
) -> Callable[[int, Tensor, object], None] | None:
    if on_step is None:
        return None
    return lambda index, x, denoised: on_step(name, done + index + 1, total)
