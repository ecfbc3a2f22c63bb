"""The one training loop.

Base or super-resolution, from scratch or DreamBooth: the flows differ in their objective and in
their stream of batches, never here. Progress is counted in positions of the stream; what is random
about a row is a function of its position; so a run that was killed and started again ends with the
weights of one that was not, bit for bit, and more processes see the rows that one would.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain, groupby
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from cascade.config.train import TrainConfig
from cascade.data.batch import Batch, RankSlice, Stream
from cascade.diffusion.denoiser import Conditioning, Denoiser
from cascade.diffusion.noise import Noise, NoiseSource, Stratified, derive_seed, to_device
from cascade.diffusion.objective import Objective
from cascade.diffusion.philox import PhiloxNoise
from cascade.errors import UserError
from cascade.model.precision import autocast, warn_if_emulated
from cascade.model.unet import UNet
from cascade.stage import Stage
from cascade.text.prompts import PromptSource
from cascade.training.checkpoint import CHECKPOINTS, kept_state, load_checkpoint, save_checkpoint
from cascade.training.distributed import Processes
from cascade.training.interrupt import Interrupts, Stop, TimeIsUp
from cascade.training.objective import undecayed
from cascade.training.optim import EMA, learning_rate, make_optimizer, set_learning_rate
from cascade.training.report import Report, Throughput

Validate = Callable[[Stage, int], None]


def train(
    stage: Stage,
    objective: Objective,
    stream: Stream,
    prompts: PromptSource,
    config: TrainConfig,
    run_dir: Path,
    processes: Processes,
    validate: Validate | None = None,
    deadline: float | None = None,
) -> Stage:
    """Train a stage's network in place, going on from the newest checkpoint in `run_dir`.

    Args:
        stage: its network is trained; it lies on the processes' device.
        objective: loss per row.
        stream: micro-batches from any position on.
        prompts: embeddings of the rows' captions.
        config: how long and how.
        run_dir: gets `log.jsonl` and `checkpoints/`.
        processes: this process's place in the run.
        validate: called by every process with the stage (averaged weights) and the step.
        deadline: by `time.monotonic`; the run stops after the first step that ends later.

    Returns:
        The stage with the weights to publish: the average if one is kept, else the trained ones.

    Raises:
        UserError: the batch does not divide among the processes, or the loss is not finite.
        KeyboardInterrupt: the run was interrupted, after its state was saved.
        TimeIsUp: so it was by its deadline.
    """
    # What is trained, and how.
    share = _share(config, processes)
    if processes.is_main:
        warn_if_emulated(config.precision, processes.device)
    network = _prepared(stage, config)
    optimizer = make_optimizer(
        config.optimizer,
        network.parameters(),
        undecayed(stage, config.objective),
        compiled=config.compile,
    )
    ema = EMA(network, config.ema_decay) if config.ema_decay else None
    averaged = ema.network if ema else None
    published = stage.with_network(averaged) if averaged else stage

    # Where an earlier run stopped.
    checkpoints = run_dir / CHECKPOINTS
    step = load_checkpoint(checkpoints, network, optimizer, averaged)
    batches = stream.batches(step * config.batch_size, share)

    # The network as the processes run it; the weights stay those of `network`.
    wrapped = processes.wrap(network)
    denoiser = stage.with_network(wrapped).denoiser
    if wrapped is not network and step < config.steps:
        batches = _settled(batches, denoiser, objective, prompts, config, processes.device)
    losses, speed = Losses(), Throughput(stage.config, config, processes)
    log = run_dir / "log.jsonl"
    with (
        Interrupts(deadline) as interrupts,
        Report(stage.config.name, log, step, config.steps, processes.is_main) as report,
    ):
        while step < config.steps:
            # One optimizer step over a global batch. Dropout is all that draws from this generator.
            torch.manual_seed(derive_seed(config.seed, "dropout", processes.rank, step))
            rate = learning_rate(config.optimizer, step, config.steps)
            for turn in range(share.accumulation):
                last = turn == share.accumulation - 1  # gradients are exchanged once a step
                exchange = nullcontext() if last else processes.no_sync(wrapped)
                with exchange, autocast(config.precision, processes.device):
                    batch = next(batches).to(processes.device)
                    noise = _noise(batch, share.positions(0, turn).start, config)
                    rows = _row_losses(denoiser, objective, batch, prompts, noise)
                    (losses.add(batch, rows) / share.accumulation).backward()
                    speed.add(batch)
            losses.norm = _step(optimizer, network, rate, config.optimizer.max_grad_norm)
            if ema:
                ema.update(network, step)
            step += 1
            report.advance()

            # What is told, kept and looked at.
            if _due(step, config.log_every, config):
                _refuse_nonfinite(losses.norm, step, checkpoints)
                values = _status(losses, processes, step, config, rate)
                report.status(values | speed.status())
                losses.clear()
            stop = _stop(interrupts, processes, step, config)
            if stop or _due(step, config.checkpoint_every, config):
                _refuse_nonfinite(losses.norm, step, checkpoints)
                kept = config.checkpoints_kept
                with speed.paused():
                    save_checkpoint(
                        checkpoints, step, network, optimizer, averaged, processes, kept
                    )
            if stop:
                raise TimeIsUp(step) if stop is Stop.TIME else KeyboardInterrupt
            if validate and config.validate_every and step % config.validate_every == 0:
                with speed.paused():
                    validate(published, step)
    return published


@dataclass
class Losses:
    """Sums of the losses since the last status, kept on the device so that nothing waits."""

    norm: Tensor | None = None
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, batch: Batch, parts: dict[str, Tensor]) -> Tensor:
        """Note one micro-batch; return its loss, the weighted sum of rows per position."""
        total = torch.stack(list(parts.values())).sum(dim=0)
        loss = (total * batch.weights).sum() / batch.positions
        self._note("loss", loss, 1)
        # The rows of a term lie side by side: slices need no mask, which would have to be copied to
        # the device and counted there.
        first = 0
        for term, rows in groupby(batch.terms):
            last = first + len(list(rows))
            self._note(f"loss/{term}", total[first:last].sum(), last - first)
            first = last
        if len(parts) > 1:
            for name, part in parts.items():
                self._note(f"loss/{name}", part.sum(), len(part))
        return loss

    def means(self, processes: Processes) -> dict[str, float]:
        """Mean of each loss since the last status, over all processes."""
        pairs = {name: processes.all_reduce_mean(pair) for name, pair in self.sums.items()}
        return {name: float(pair[0] / pair[1]) for name, pair in pairs.items()}

    def clear(self) -> None:
        """Begin the next status."""
        self.sums = {}

    def _note(self, name: str, value: Tensor, count: int) -> None:
        pair = torch.stack([value.detach().double(), torch.full_like(value, count).double()])
        self.sums[name] = self.sums[name] + pair if name in self.sums else pair


def _row_losses(
    denoiser: Denoiser,
    objective: Objective,
    batch: Batch,
    prompts: PromptSource,
    noise: NoiseSource,
) -> dict[str, Tensor]:
    device = batch.images.device
    text = prompts.rows(batch.prompts)
    cond = Conditioning(
        to_device(text.embedding, device), to_device(text.mask, device), batch.low_res
    )
    return objective(denoiser, batch.images, cond, noise, batch.pixel_weights)


def _noise(batch: Batch, first: int, config: TrainConfig) -> NoiseSource:
    """Return the rows' noise; `first` is the micro-batch's position in its global batch."""
    on_device = config.noise == "device"
    noise: NoiseSource = (
        PhiloxNoise(batch.seeds, batch.images.device) if on_device else Noise(batch.seeds)
    )
    if not config.stratified:
        return noise
    # Every kind of rows has one at each position; each kind is spread for itself.
    places = first + torch.arange(len(batch.seeds)) % batch.positions
    return Stratified(noise, places, config.batch_size)


def _settled(
    batches: Iterator[Batch],
    denoiser: Denoiser,
    objective: Objective,
    prompts: PromptSource,
    config: TrainConfig,
    device: torch.device,
) -> Iterator[Batch]:
    """Take one backward pass whose gradients are dropped, and return the batches from the first on.

    DDP sums gradients in buckets, which it sorts anew after its first pass; where three or more
    processes add, the order of a sum, and so its last bits, depends on them. A run that goes on
    would else take its first step in other buckets than one that was not interrupted.
    """
    first = next(batches)
    batch = first.to(device)
    with autocast(config.precision, device):
        rows = _row_losses(denoiser, objective, batch, prompts, Noise(batch.seeds))
        torch.stack(list(rows.values())).sum().backward()
    denoiser.zero_grad(set_to_none=True)
    return chain([first], batches)


def _prepared(stage: Stage, config: TrainConfig) -> nn.Module:
    stage.set_backend(config.kernels)
    network = stage.network.train()
    if isinstance(network, UNet):
        network.checkpointing = config.gradient_checkpointing
    if config.compile:
        network.compile()
    return network


def _due(step: int, every: int, config: TrainConfig) -> bool:
    return step == config.steps or step % every == 0


def _stop(interrupts: Interrupts, processes: Processes, step: int, config: TrainConfig) -> Stop:
    """Agree with all processes, every so many steps; a run that has ended has had its time."""
    if not (_due(step, config.stop_every, config) or _due(step, config.checkpoint_every, config)):
        return Stop.NO
    stop = Stop(processes.all_reduce_max(interrupts.wanted()))
    return Stop.NO if stop is Stop.TIME and step == config.steps else stop


def _share(config: TrainConfig, processes: Processes) -> RankSlice:
    parts = config.gradient_accumulation_steps * processes.world_size
    if config.batch_size % parts:
        raise UserError(
            f"A batch of {config.batch_size} does not divide into {processes.world_size} processes "
            f"x {config.gradient_accumulation_steps} accumulated parts; use a multiple of {parts}."
        )
    accumulation = config.gradient_accumulation_steps
    return RankSlice(config.batch_size, accumulation, processes.rank, processes.world_size)


def _step(optimizer: Optimizer, network: nn.Module, rate: float, max_norm: float) -> Tensor:
    set_learning_rate(optimizer, rate)
    norm = clip_grad_norm_(network.parameters(), max_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.detach()


def _status(
    losses: Losses, processes: Processes, step: int, config: TrainConfig, rate: float
) -> dict[str, float]:
    values = {"step": step, "images": step * config.batch_size, **losses.means(processes)}
    values["learning_rate"] = rate
    values["grad_norm"] = float(losses.norm) if losses.norm is not None else 0.0
    return values


def _refuse_nonfinite(norm: Tensor | None, step: int, checkpoints: Path) -> None:
    if norm is not None and not bool(torch.isfinite(norm)):
        raise UserError(
            f"The gradient is not finite at step {step}; lower the learning rate or train in fp32 "
            f"({kept_state(checkpoints)})."
        )
