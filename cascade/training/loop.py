"""The one training loop.

Base or super-resolution, from scratch or DreamBooth: the flows differ in their objective and in
their stream of batches, never here. Progress is counted in positions of the stream; what is random
about a row is a function of its position; so a run that was killed and started again ends with the
weights of one that was not, bit for bit, and more processes see the rows that one would.
"""

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.data.batch import Batch, Stream
from cascade.diffusion.denoiser import Denoiser
from cascade.diffusion.noise import Noise, derive_seed
from cascade.diffusion.objective import Objective
from cascade.errors import UserError
from cascade.model.precision import autocast, warn_if_emulated
from cascade.stage import Stage
from cascade.text.prompts import PromptSource
from cascade.training.averages import Averages
from cascade.training.checkpoint import (
    CHECKPOINTS,
    SNAPSHOTS,
    Checkpoints,
    kept_state,
)
from cascade.training.distributed import Processes
from cascade.training.guard import Guard
from cascade.training.interrupt import Interrupts, Stop
from cascade.training.losses import Losses, row_losses, row_noise
from cascade.training.objective import make_objective, undecayed
from cascade.training.optim import learning_rate, make_optimizer, set_learning_rate
from cascade.training.parallel import accumulating, batch_share, spread_stage, with_exchange
from cascade.training.report import Report, Throughput
from cascade.training.state import Progress, TrainState
from cascade.training.validation import Pictures
from cascade.training.watch import Place, Watch
from cascade.training.weights import Weights

Validate = Callable[[Stage, int], Pictures]


def train(
    stage_config: StageConfig,
    weights: Weights,
    stream: Stream,
    prompts: PromptSource,
    config: TrainConfig,
    run_dir: Path,
    processes: Processes,
    validate: Validate | None = None,
    deadline: float | None = None,
    objective: Objective | None = None,
) -> Stage:
    """Train a stage, going on from the newest checkpoint in `run_dir`.

    Args:
        stage_config: of the stage that is trained.
        weights: that it begins with.
        stream: micro-batches from any position on.
        prompts: embeddings of the rows' captions.
        config: how long and how.
        run_dir: gets `log.jsonl` and `checkpoints/`.
        processes: this process's place in the run.
        validate: called by every process with the stage (averaged weights) and the step, now and
            then and at the end; returns what the first process has drawn.
        deadline: by `time.monotonic`; the run stops after the first step that ends later.
        objective: another than the configuration's.

    Returns:
        The stage with the weights to publish: the average if one is kept, else the trained ones;
        of a shared network this process's part.

    Raises:
        UserError: the batch does not divide among the processes, or a gradient is not finite and
            the guard has no other remedy.
        KeyboardInterrupt: the run was interrupted or `Preempted`, after its state was saved.
        TimeIsUp: so it was by its deadline.
    """
    # What is trained, and how.
    share = batch_share(config, processes)
    if processes.is_main:
        warn_if_emulated(config.precision, processes.device)
    stage = spread_stage(stage_config, weights, config, processes)
    network, objective = stage.network, objective or make_objective(stage, config.objective)
    optimizer = make_optimizer(
        config.optimizer,
        network.parameters(),
        undecayed(stage, config.objective),
        compiled=config.compile,
    )
    averages = Averages(network, config)
    guard = Guard(config.guard, run_dir, processes)
    state = TrainState(network, optimizer, averages, guard.kept)
    tokens = stage_config.text.max_length if config.compile else None

    # The network as the processes run it; the weights stay those of `network`.
    exchanged = with_exchange(network, config, processes)
    denoiser = stage.with_network(exchanged).denoiser
    folder = run_dir / CHECKPOINTS
    kept, snapshots_in = config.checkpoints_kept, run_dir / SNAPSHOTS
    with (
        Checkpoints(folder, stage_config, config, processes, kept) as checkpoints,
        Checkpoints(snapshots_in, stage_config, config, processes) as snapshots,
    ):
        # Where an earlier run stopped.
        step, images = checkpoints.load(state)
        batches = stream.batches(images, share)
        if step < config.steps:
            batches = _settled(batches, denoiser, objective, prompts, config, tokens)
        losses, speed = Losses(), Throughput(stage_config, config, processes)
        with (
            Interrupts(deadline) as interrupts,
            Report(stage_config, config, run_dir, step, processes.is_main) as report,
            # Told before a time-out ends the run.
            Watch(run_dir, processes, 60 * config.parallel.timeout_minutes / 2) as watch,
        ):
            while step < config.steps:
                # One optimizer step over a global batch. Dropout alone draws from this generator.
                torch.manual_seed(derive_seed(config.seed, "dropout", processes.rank, step))
                rate = learning_rate(config.optimizer, step, config.steps)
                for turn in range(share.accumulation):
                    last = turn == share.accumulation - 1
                    with (
                        accumulating(exchanged, last),
                        autocast(config.precision, processes.device),
                    ):
                        watch.at(step + 1, Place.DATA)
                        with speed.waiting():
                            batch = next(batches)
                        batch = batch.to(processes.device)
                        watch.at(step + 1, Place.FORWARD)
                        noise = row_noise(batch, share.positions(0, turn).start, config)
                        rows = row_losses(denoiser, objective, batch, prompts, noise, tokens)
                        watch.at(step + 1, Place.BACKWARD)
                        guard.note(share.positions(images, turn), batch, rows.terms)
                        (losses.add(batch, rows) / share.accumulation).backward()
                        speed.add(batch)
                norm = _clipped(network, config.optimizer.max_grad_norm)
                if sound := guard.accepts(norm, Progress(step, images)):
                    set_learning_rate(optimizer, rate)
                    optimizer.step()
                    averages.update(step)
                    losses.norm = norm
                else:
                    losses.clear()
                optimizer.zero_grad(set_to_none=True)
                watch.at(step + 1, Place.END)
                step, images = step + 1, images + config.batch_size
                if not sound and (earlier := _rolled_back(guard, checkpoints, state)):
                    step, batches = earlier, stream.batches(images, share)
                    report.rewind(step)
                    continue
                report.advance()
                checkpoints.poll()

                # What is told, kept and looked at.
                if _due(step, config.log_every, config):
                    _refuse_nonfinite(losses.norm, step, folder)
                    values = _status(losses, processes, Progress(step, images), rate)
                    values |= speed.status()
                    step_seconds = config.batch_size / values["images_per_second"]
                    report.status(values | watch.status(step_seconds))
                    losses.clear()
                stop = _stop(interrupts, processes, step, config)
                if stop or _due(step, config.checkpoint_every, config):
                    _refuse_nonfinite(losses.norm, step, folder)
                    with speed.paused(), watch.paused():
                        checkpoints.save(step, state.state_dict(images))
                    guard.saved()
                if _due(step, config.snapshot_every, config):
                    with speed.paused(), watch.paused():
                        snapshots.save(step, state.snapshot())
                if stop:
                    checkpoints.wait()
                    snapshots.wait()
                    raise interrupts.end(stop, step)
                every = config.validate_every or config.steps
                if step % every == 0 and step < config.steps:
                    with speed.paused(), watch.paused():
                        _look(stage, averages, validate, report, step)
            # Also where a run goes on that had done its last step.
            with watch.paused():
                _look(stage, averages, validate, report, step)
    averages.publish()
    return stage


def _look(
    stage: Stage, averages: Averages, validate: Validate | None, report: Report, step: int
) -> None:
    """Draw pictures by the weights that are published."""
    if validate is not None:
        with averages.published():
            report.pictures(step, validate(stage, step))


def _settled(
    batches: Iterator[Batch],
    denoiser: Denoiser,
    objective: Objective,
    prompts: PromptSource,
    config: TrainConfig,
    tokens: int | None,
) -> Iterator[Batch]:
    """Let DDP take one backward pass, and return the batches from the first on.

    DDP sums gradients in buckets, which it sorts anew after its first pass; where three or more
    processes add, the order of a sum, and so its last bits, depends on them. A run that goes on
    would else take its first step in other buckets than one that was not interrupted. The pass's
    gradients are dropped.
    """
    network = denoiser.network
    if not isinstance(network, DistributedDataParallel):
        return batches
    first = next(batches)
    device = next(network.parameters()).device
    batch = first.to(device)
    with autocast(config.precision, device):
        rows = row_losses(denoiser, objective, batch, prompts, Noise(batch.seeds), tokens)
        torch.stack(list(rows.terms.values())).sum().backward()
    denoiser.zero_grad(set_to_none=True)
    return chain([first], batches)


def _due(step: int, every: int | None, config: TrainConfig) -> bool:
    return every is not None and (step == config.steps or step % every == 0)


def _stop(interrupts: Interrupts, processes: Processes, step: int, config: TrainConfig) -> Stop:
    """Agree with all processes, every so many steps; a run that has ended has had its time."""
    if not (_due(step, config.stop_every, config) or _due(step, config.checkpoint_every, config)):
        return Stop.NO
    stop = Stop(processes.all_reduce_max(interrupts.wanted()))
    return Stop.NO if stop is Stop.TIME and step == config.steps else stop


def _rolled_back(guard: Guard, checkpoints: Checkpoints, state: TrainState) -> int:
    """Load the newest checkpoint if the guard wants it; return its step, 0 if there is none."""
    if not guard.rolls_back:
        return 0
    checkpoints.wait()
    return checkpoints.load(state).step


def _clipped(network: nn.Module, max_norm: float) -> Tensor:
    """Cut the gradients to a norm; return what it was."""
    norm = clip_grad_norm_(network.parameters(), max_norm)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).detach()


def _status(
    losses: Losses, processes: Processes, progress: Progress, rate: float
) -> dict[str, float]:
    values = {**progress._asdict(), **losses.means(processes)}
    values["learning_rate"] = rate
    values["grad_norm"] = float(losses.norm) if losses.norm is not None else 0.0
    return values


def _refuse_nonfinite(norm: Tensor | None, step: int, checkpoints: Path) -> None:
    if norm is not None and not bool(torch.isfinite(norm)):
        raise UserError(
            f"The gradient is not finite at step {step}; lower the learning rate or train in fp32 "
            f"({kept_state(checkpoints)})."
        )
