"""A stage under training, and one optimizer step of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.data.batch import Batch
from cascade.diffusion.noise import Noise, NoiseSource, derive_seed
from cascade.diffusion.objective import Objective, RowLosses
from cascade.errors import UserError
from cascade.model.precision import autocast, warn_if_emulated
from cascade.text.prompts import PromptSource
from cascade.training.averages import Averages
from cascade.training.checkpoint import kept_state
from cascade.training.distributed import Processes
from cascade.training.guard import Guard
from cascade.training.losses import Losses, row_losses, row_noise
from cascade.training.objective import make_objective, undecayed
from cascade.training.optim import learning_rate, make_optimizer, set_learning_rate
from cascade.training.parallel import (
    accumulating,
    batch_share,
    local,
    spread_stage,
    with_exchange,
)
from cascade.training.report import Throughput
from cascade.training.state import Progress, TrainState
from cascade.training.watch import Place, Watch
from cascade.training.weights import Weights

_EPS: Final = 1e-6  # of `clip_grad_norm_`, against division by zero


class Learner:
    """A stage under training: what a step changes, and what it tells.

    Args:
        weights: that it begins with.
        prompts: embeddings of the rows' captions.
        run_dir: gets what the guard and the watch have to show.
        objective: another than the configuration's.

    Attributes:
        stage: its weights; of a shared network this process's part.
        share: this process's part of a batch.
        averages: of the weights, the first of which is published.
        guard: decides which steps are taken.
        state: what a checkpoint holds.
        speed: counts the rows and the time of steps.
        watch: notes where a step stands; looks at the clock while it is entered.

    Raises:
        UserError: the batch does not divide among the processes, or a kernel cannot run.
    """

    def __init__(
        self,
        stage_config: StageConfig,
        weights: Weights,
        prompts: PromptSource,
        config: TrainConfig,
        run_dir: Path,
        processes: Processes,
        objective: Objective | None = None,
    ) -> None:
        self._config, self._processes, self._prompts = config, processes, prompts
        self.share = batch_share(config, processes)
        if processes.is_main:
            warn_if_emulated(config.precision, processes.device)
        self.stage = spread_stage(stage_config, weights, config, processes)
        network = self.stage.network
        self._objective = objective or make_objective(self.stage, config.objective)
        self._optimizer = make_optimizer(
            config.optimizer,
            network.parameters(),
            undecayed(self.stage, config.objective),
            compiled=config.compile,
        )
        self.averages = Averages(network, config)
        self.guard = Guard(config.guard, run_dir, processes)
        self.state = TrainState(network, self._optimizer, self.averages, self.guard.kept)
        # As the processes run it; the weights stay those of `network`.
        self._network = with_exchange(network, config, processes)
        self._drop_gradients()
        self._denoiser = self.stage.with_network(self._network).denoiser
        self._tokens = stage_config.text.max_length if config.compile else None
        self._losses = Losses()
        self.speed = Throughput(stage_config, config, processes)
        # Told before a time-out ends the run.
        self.watch = Watch(run_dir, processes, 60 * config.parallel.timeout_minutes / 2)

    def settled(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Let DDP take one backward pass, and return the batches from the first on.

        DDP sums gradients in buckets, which it sorts anew after its first pass; where three or more
        processes add, the order of a sum, and so its last bits, depends on them. A run that goes on
        would else take its first step in other buckets than one that was not interrupted. The
        pass's gradients are dropped.
        """
        if not isinstance(self._network, DistributedDataParallel):
            return batches
        first = next(batches)
        batch = first.to(self._processes.device)
        rows = self._scored(batch, Noise(batch.seeds))
        torch.stack(list(rows.terms.values())).sum().backward()
        self._drop_gradients()
        return chain([first], batches)

    def step(self, batches: Iterator[Batch], done: Progress) -> bool:
        """Take one optimizer step over a global batch.

        Args:
            done: before the step.

        Returns:
            Whether it was taken; what the guard does not accept is left out.
        """
        config = self._config
        # Dropout alone draws from this generator.
        torch.manual_seed(derive_seed(config.seed, "dropout", self._processes.rank, done.step))
        for turn in range(self.share.accumulation):
            self._add_gradient(batches, turn, done)
        norm = self._clipped()
        if accepted := self.guard.accepts(norm, done):
            rate = learning_rate(config.optimizer, done.step, config.steps)
            set_learning_rate(self._optimizer, rate)
            self._optimizer.step()
            self.averages.update(done.step)
            self._losses.norm = norm
        else:
            self._losses.clear()
        self._drop_gradients()
        self.watch.at(done.step + 1, Place.END)
        return accepted

    def status(self, done: Progress) -> dict[str, float]:
        """Return what `Report` tells of the steps since the last call; every process asks."""
        losses, optimizer = self._losses, self._config.optimizer
        values = {**done._asdict(), **losses.means(self._processes)}
        values["learning_rate"] = learning_rate(optimizer, done.step - 1, self._config.steps)
        values["grad_norm"] = float(losses.norm) if losses.norm is not None else 0.0
        values |= self.speed.status()
        values |= self.watch.status(self._config.batch_size / values["images_per_second"])
        losses.clear()
        return values

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let what happens inside take its time, which is no part of a step's."""
        with self.speed.paused(), self.watch.paused():
            yield

    def require_finite(self, step: int, checkpoints: Path) -> None:
        """Refuse a gradient that is not finite."""
        norm = self._losses.norm
        if norm is not None and not bool(torch.isfinite(norm)):
            raise UserError(
                f"The gradient is not finite at step {step}; lower the learning rate or train in "
                f"fp32 ({kept_state(checkpoints)})."
            )

    def _add_gradient(self, batches: Iterator[Batch], turn: int, done: Progress) -> None:
        """Add the gradient of one micro-batch."""
        share, config = self.share, self._config
        with accumulating(self._network, turn == share.accumulation - 1):
            self.watch.at(done.step + 1, Place.DATA)
            with self.speed.waiting():
                batch = next(batches)
            batch = batch.to(self._processes.device)
            self.watch.at(done.step + 1, Place.FORWARD)
            if config.cuda_graphs:
                torch.compiler.cudagraph_mark_step_begin()
            noise = row_noise(batch, share.positions(0, turn), config)
            rows = self._scored(batch, noise)
            self.watch.at(done.step + 1, Place.BACKWARD)
            self.guard.note(share.positions(done.images, turn), batch, rows.terms)
            (self._losses.add(batch, rows) / share.accumulation).backward()
            self.speed.add(batch)

    def _scored(self, batch: Batch, noise: NoiseSource) -> RowLosses:
        # Autocast ends before the backward pass: it keeps the weights in bfloat16 as long as it
        # lasts, and the pass would free them one after another.
        with autocast(self._config.precision, self._processes.device):
            return row_losses(
                self._denoiser, self._objective, batch, self._prompts, noise, self._tokens
            )

    def _clipped(self) -> Tensor:
        """Cut the gradients to a norm; return what it was."""
        weights = self.stage.network.parameters()
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        norm = get_total_norm(gradients)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        # Copies of a network may add up the squares in other orders; cut by norms that differ in
        # the last bits they would drift apart.
        norm = self._processes.all_reduce_mean(norm)
        scale = (self._config.optimizer.max_grad_norm / (norm + _EPS)).clamp(max=1.0)
        torch._foreach_mul_([local(gradient) for gradient in gradients], scale)
        return norm

    def _drop_gradients(self) -> None:
        network = self.stage.network
        network.zero_grad(set_to_none=not self._config.cuda_graphs)
        if self._config.cuda_graphs:
            # A graph's outputs are written over when it runs again: what is to outlive them, here
            # the sum over passes, lies elsewhere.
            for parameter in network.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
