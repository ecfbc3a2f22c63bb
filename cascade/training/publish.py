"""The end of a stage's run: its weights are proven and written."""

from pathlib import Path
from typing import Final

import torch

from cascade.config.train import TrainConfig
from cascade.errors import UserError
from cascade.model.example import example_inputs
from cascade.stage import Stage
from cascade.training.checkpoint import CHECKPOINTS, checkpoint_steps, kept_state
from cascade.training.distributed import Processes

_LARGEST: Final = 65504.0
"""The largest number of half precision, in which stages are kept and exported too. The norms of a
network with larger weights still answer with finite numbers."""


def published(folder: Path, run_dir: Path, steps: int) -> bool:
    """Return whether a run of so many steps has published its stage: it may have been extended."""
    done = checkpoint_steps(run_dir / CHECKPOINTS)
    return (folder / "model.safetensors").is_file() and not (done and done[-1] < steps)


def can_grow(run: TrainConfig, folder: Path, run_dir: Path) -> bool:
    """Return whether a run can be extended: its learning rate allows it, its state is there."""
    done = (folder / "model.safetensors").is_file()
    return run.may_grow and (not done or bool(checkpoint_steps(run_dir / CHECKPOINTS)))


def publish(stage: Stage, folder: Path, run_dir: Path, processes: Processes) -> None:
    """Write a trained stage; every process calls it, the first writes."""
    weights = processes.full_state_dict(stage.network)
    answers = _answers(stage)
    if not processes.is_main:
        return
    largest = max(float(weight.abs().max()) for weight in weights.values())
    if not largest <= _LARGEST or not answers:
        raise UserError(
            f"The trained stage '{stage.config.name}' draws nothing (weights of up to "
            f"{largest:.3g}), so it is not published; lower the learning rate or train in fp32 "
            f"({kept_state(run_dir / CHECKPOINTS)})."
        )
    stage.save(folder, weights=weights)


@torch.no_grad()
def _answers(stage: Stage) -> bool:
    """Return whether the network's prediction for one small image is finite."""
    unet = stage.config.unet
    with stage.device:
        inputs = example_inputs(unet, 1, unet.factor * -(-16 // unet.factor), 1)
    answer = stage.network.eval()(**inputs)
    return bool(torch.isfinite(answer).all())
