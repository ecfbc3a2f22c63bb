"""Our network, and its step in the training loop."""

from dataclasses import dataclass
from itertools import count, repeat
from pathlib import Path
from tempfile import gettempdir

import torch
from torch import Tensor
from torch.nn import functional as F

from cascade.config.stage import StageConfig
from cascade.data.batch import Batch, crop_sides
from cascade.model.unet import UNet
from cascade.stage import meta_network
from cascade.text.prompts import PromptTable
from cascade.training.distributed import Processes
from cascade.training.learner import Learner
from cascade.training.state import Progress
from cascade_bench.networks import Compilation, Made, Training, Weights
from cascade_bench.timing import Run
from cascade_kernels.names import Backend

_PROMPT = "a photo of a dog"


def ours(
    config: StageConfig,
    weights: Weights,
    backend: Backend = "auto",
    compiled: Compilation | None = None,
) -> Made:
    """Our network, by default with the kernels that a run has by itself; it shares the weights."""
    network = meta_network(config)
    network.load_state_dict(weights, assign=True)
    return Made(network, _step, compiled, backend)


@dataclass(frozen=True)
class _Held:
    """Weights that are in memory, for a run to begin with."""

    weights: Weights

    def rows(self, name: str, rows: slice) -> Tensor:
        """See `cascade.training.weights.Weights`."""
        return self.weights[name][rows]


def _step(made: Made, training: Training) -> Run:
    """Return the loop's step, whose batch is there already."""
    assert isinstance(made.network, UNet)  # as `ours` made it
    batch = _batch(training)
    how = {
        "kernels": made.backend,
        "compile": made.compiled is not None,
        "cuda_graphs": made.compiled == "reduce-overhead",
    }
    device, nowhere = batch.images.device, Path(gettempdir())  # nothing is written
    learner = Learner(
        training.stage,
        _Held(made.network.state_dict()),
        PromptTable({_PROMPT: training.inputs.text[0]}),
        training.run.model_copy(update=how),
        nowhere,
        Processes(0, 1, device),
    )
    batches, steps = repeat(batch), count()

    def run() -> None:
        step = next(steps)
        learner.step(batches, Progress(step, step * batch.positions))

    return run


def _batch(training: Training) -> Batch:
    inputs, rows = training.inputs, len(training.inputs.x)
    low_res = None
    if inputs.low_res is not None:
        low_res = F.adaptive_avg_pool2d(inputs.low_res, crop_sides(training.stage)[1])
    return Batch(
        images=inputs.x,
        low_res=low_res,
        prompts=(_PROMPT,) * rows,
        seeds=tuple(range(rows)),
        weights=torch.ones(rows, device=inputs.x.device),
        terms=("mse",) * rows,
        positions=rows,
    )
