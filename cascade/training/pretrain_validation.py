"""What `cascade train` looks at on the way: its prompts, rows of its data, held-out rows."""

import torch
from torch import Tensor

from cascade.config.train import PretrainConfig
from cascade.data.captioned import CaptionedSamples
from cascade.data.held_out import HeldOut
from cascade.data.images import to_tensors
from cascade.text.prompts import PromptEncoder, PromptSource, PromptTable
from cascade.training.distributed import Processes
from cascade.training.held_out import read_held_out
from cascade.training.losses import batch_text
from cascade.training.other_stages import OtherStages
from cascade.training.panels import X0Panel
from cascade.training.validation import (
    Draw,
    SampleGrid,
    Score,
    Validation,
    cascade_grid,
)


def make_validation(
    config: PretrainConfig,
    samples: CaptionedSamples,
    others: OtherStages | None,
    encoder: PromptEncoder,
    prompts: PromptSource,
    held_out: HeldOut | None,
    processes: Processes,
) -> Validation | None:
    """Return what a run looks at, None where that is nothing.

    Args:
        others: the stages that complete the one in training; the earlier ones draw at once.
        encoder: embeds the validation's prompts, by the conventions of every stage.
        prompts: the embeddings that rows are trained with.
        held_out: the rows that are scored.
    """
    draws: list[Draw] = []
    if config.validation.images_per_prompt:
        draws += _grids(config, samples, others, encoder, processes)
    if config.validation.x0_rows:
        sizes = samples.sizes(range(config.validation.x0_rows))
        alike = [position for position, size in enumerate(sizes) if size == sizes[0]]
        rows = samples.rows(alike).to(torch.device("cpu"))
        draws.append(X0Panel(rows, batch_text(rows, prompts), processes))
    scores: list[Score] = []
    if held_out is not None:
        scores.append(read_held_out(held_out, encoder, config.train, processes))
    if not draws and not scores:
        return None
    return Validation(draws, config.output, processes, scores)


def _grids(
    config: PretrainConfig,
    samples: CaptionedSamples,
    others: OtherStages | None,
    encoder: PromptEncoder,
    processes: Processes,
) -> list[SampleGrid]:
    each, named = config.validation.images_per_prompt, config.validation.prompts
    captions = [samples.captions(index % len(samples))[0] for index in range(each)]
    prompts = [prompt for prompt in named for _ in range(each)] or captions
    # In one order in every process: they embed together.
    texts = dict.fromkeys(s.text for s in (config.stage, *(others.configs if others else ())))
    tables = {text: PromptTable.build(encoder, prompts, text) for text in texts}
    low_res = _low_res_of(config, samples, len(prompts))
    if others is None or low_res is None:
        later = () if others is None else tuple(others.later)
        return [SampleGrid(prompts, tables, each, low_res, later, processes=processes)]
    return [
        SampleGrid(prompts, tables, each, low_res, processes=processes),
        cascade_grid(prompts, tables, each, others, processes),
    ]


def _low_res_of(config: PretrainConfig, samples: CaptionedSamples, count: int) -> Tensor | None:
    """Downscale the first pictures of the data by the checkpoint's kernel."""
    if config.stage.low_res is None:
        return None
    twins = [samples.whole(index % len(samples))[1] for index in range(count)]
    return to_tensors([twin for twin in twins if twin is not None])
