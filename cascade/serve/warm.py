"""The first calls of networks, which take longer than all after them."""

from collections.abc import Callable
from time import perf_counter
from typing import Final

import torch

from cascade.config.sample import SampleOptions
from cascade.config.serve import BatchConfig
from cascade.config.stage import SamplerConfig
from cascade.diffusion.noise import Noise
from cascade.drawing import Drawing, answers
from cascade.serve.lanes import filled, row_counts
from cascade.serve.models import Models
from cascade.serve.pace import Pace
from cascade.serve.shelf import Loaded
from cascade.stage import Stage

_PROMPT: Final = ""


def warm_up(models: Models, batch: BatchConfig, pace: Pace, stopped: Callable[[], bool]) -> None:
    """Call every network of every model with every number of rows that can occur.

    Args:
        pace: is told what a step takes.
        stopped: asked between two calls.
    """
    for model in models.names():
        loaded = models.acquire(model)
        if loaded is None:
            continue  # what is being drawn leaves no room; it is opened when it is asked for
        try:
            _warm(models, loaded, batch, pace, stopped)
        finally:
            models.release(loaded)


def _warm(
    models: Models, loaded: Loaded, batch: BatchConfig, pace: Pace, stopped: Callable[[], bool]
) -> None:
    request = models.request(loaded.model, _PROMPT, [0], SampleOptions())
    padded = batch.mode == "padded"
    for whole, setting in zip(loaded.cascade.stages, request.settings, strict=False):
        with whole.pinned() as stage:
            plain = setting.sampler.changed("the first calls", guidance=1.0)
            for rows in row_counts(batch, loaded.exact):
                if stopped():
                    return
                ones = [_begun(loaded, stage, plain, padded) for _ in range(rows)]
                answers(ones, filled(batch))
            usual = _begun(loaded, stage, setting.sampler, padded)
            start = perf_counter()
            answers([usual], filled(batch))[0].cpu()
            pace.note(loaded.model, setting.stage, perf_counter() - start)


def _begun(loaded: Loaded, stage: Stage, sampler: SamplerConfig, padded: bool) -> Drawing:
    texts = loaded.texts(stage.config).rows([_PROMPT])
    if padded:
        texts = texts.extended(stage.config.text.max_length)
    config = stage.config.low_res
    low_res = None if config is None else torch.zeros(1, 3, config.size, config.size)
    return stage.begin(texts, texts, Noise([0]), low_res, sampler)
