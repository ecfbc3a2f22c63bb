"""Training of a judge: the steps that fit into some minutes, the learning rate falling to zero.

Shapes: `N` pictures, `B` of a batch, `A` attributes, `K` answers of all attributes.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from cascade.errors import UserError
from cascade.evaluate.judge import Judge
from cascade.evaluate.judge_config import JudgeConfig
from cascade.evaluate.judge_network import JudgeNetwork
from cascade.progress import progress_bar
from judge_pictures import Labelled, batches, varied

WEIGHT_DECAY: Final = 0.02
SMOOTHING: Final = 0.05
MEASURED: Final = 10
"""Steps that are measured; the learning rate rises in them."""
PLANNED: Final = 0.95
"""Share of the time left that is planned with: not all steps take the same."""

Step = Callable[[float], Tensor]
"""Makes one step at a learning rate and returns the loss."""


@dataclass(frozen=True)
class Training:
    """Settings of a judge's training.

    Attributes:
        minutes: that all steps together may take.
        batch_size: pictures of a step.
        learning_rate: the highest.
        compiled: whether the network is compiled first, which takes its part of the minutes.
        seed: decides the weights, the order of the pictures and how they are varied.
    """

    minutes: float
    batch_size: int = 1024
    learning_rate: float = 3e-3
    compiled: bool = False
    seed: int = 0


def train(pictures: Labelled, training: Training) -> tuple[Judge, Mapping[str, object]]:
    """Train a judge on labelled pictures, on the device where they lie.

    Returns:
        The judge, and what there is to tell of its training.
    """
    if len(pictures.images) < 2:
        raise UserError("There are fewer than two pictures to train on; make more.")
    end = time.perf_counter() + 60 * training.minutes
    device = pictures.images.device
    config = JudgeConfig(attributes=pictures.attributes())
    torch.manual_seed(training.seed)
    network = JudgeNetwork(config.widths, list(config.counts.values()), normalised=True)
    network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    step = _step(network.train(), pictures, training)
    seconds = _seconds(step, training.learning_rate, device)
    count = max(1, int(PLANNED * (end - time.perf_counter()) / seconds))
    loss = torch.zeros(())
    with progress_bar() as bar:
        task = bar.add_task("judge", total=count, details="")
        for number in range(count):
            loss = step(training.learning_rate * (1 - number / count))
            if number % 50 == 0:
                bar.update(task, completed=number, details=f"loss {float(loss):.3f}")
    _wait(device)
    return Judge(config, network.eval()), {
        "pictures": len(pictures.images),
        "steps": count + MEASURED,
        "batch size": training.batch_size,
        "learning rate": training.learning_rate,
        "seconds": round(time.perf_counter() - end + 60 * training.minutes, 1),
        "loss": float(loss),
        "parameters": sum(weight.numel() for weight in network.parameters()),
    }


def _step(network: JudgeNetwork, pictures: Labelled, training: Training) -> Step:
    device = pictures.images.device
    generator = torch.Generator(device).manual_seed(training.seed)
    rows = batches(len(pictures.images), training.batch_size, generator)
    targets = pictures.targets().to(device)
    counts = [len(attribute.answers) for attribute in pictures.attributes().values()]
    forward: Callable[[Tensor], Tensor] = torch.compile(network) if training.compiled else network
    optimizer = torch.optim.AdamW(
        network.parameters(), weight_decay=WEIGHT_DECAY, fused=device.type == "cuda"
    )

    def step(learning_rate: float) -> Tensor:
        chosen = next(rows)
        images = varied(pictures.images[chosen], generator)
        images = images.to(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = forward(images)
        loss = answers_loss(logits.float(), targets[chosen], counts)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def answers_loss(logits: Tensor, targets: Tensor, counts: list[int]) -> Tensor:
    """Return the sum over attributes of the mean smoothed cross-entropy of their answers.

    Args:
        logits: B K.
        targets: B A, places among the attribute's answers; -1 is not counted.
        counts: the number of answers of each attribute, A.
    """
    loss = logits.new_zeros(())
    for part, wanted in zip(logits.split(counts, 1), targets.unbind(1), strict=True):
        total = F.cross_entropy(
            part, wanted, ignore_index=-1, label_smoothing=SMOOTHING, reduction="sum"
        )
        loss = loss + total / (wanted >= 0).sum().clamp(min=1)
    return loss


def _seconds(step: Step, learning_rate: float, device: torch.device) -> float:
    """Make the first steps, and return the seconds of one."""
    step(0.0)  # compiles, and finds the fastest algorithms
    _wait(device)
    begun = time.perf_counter()
    for number in range(MEASURED):
        step(learning_rate * (number + 1) / MEASURED)
    _wait(device)
    return (time.perf_counter() - begun) / MEASURED


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
