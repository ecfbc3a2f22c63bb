"""Many pictures of one stage: prompts and seeds in, batches through, pictures out.

Shapes: `B` pictures, `C H W` pixels in [-1, 1].
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cascade.config.stage import AugmentationLevel, SamplerConfig, StageConfig
from cascade.diffusion.noise import Noise, derive_seed
from cascade.stage import Stage
from cascade.text.prompts import PromptEncoder, PromptSource, PromptTable

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
    """Draw one stage's pictures in batches; see `Cascade.sample`. Returns B C H W on the CPU.

    Texts of `negatives` stand in for guidance's unconditional text; they are in the table too.
    """
    name = stage.config.name
    sampler = sampler or stage.config.sampler
    per_batch = len(sampler.timesteps or ()) or sampler.steps
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


def prompt_table(encoder: PromptEncoder, prompts: Sequence[str], stage: StageConfig) -> PromptTable:
    """Embed prompts by a stage's conventions, with the unconditional text."""
    text = stage.text
    return PromptTable.build(
        encoder, list(prompts), text.max_length, text.cleaning, text.null, text.masked
    )


def _counter(
    on_step: OnStep | None, name: str, done: int, total: int
) -> Callable[[int, Tensor, object], None] | None:
    if on_step is None:
        return None
    return lambda index, x, denoised: on_step(name, done + index + 1, total)
