"""The one training loop.

Base or super-resolution, from scratch or DreamBooth: the flows differ in their objective and in
their stream of batches, never here. Progress is counted in positions of the stream; what is random
about a row is a function of its position; so a run that was killed and started again ends with the
weights of one that was not, bit for bit, and more processes see the rows that one would.
"""

from collections.abc import Callable
from pathlib import Path

from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.data.stream import Stream
from cascade.diffusion.objective import Objective
from cascade.stage import Stage
from cascade.text.prompts import PromptSource
from cascade.training.checkpoint import CHECKPOINTS, SNAPSHOTS, Checkpoints
from cascade.training.distributed import Processes
from cascade.training.interrupt import Interrupts, Stop
from cascade.training.learner import Learner
from cascade.training.report import Report
from cascade.training.state import Progress
from cascade.training.validation import Look
from cascade.training.weights import Weights

Validate = Callable[[Stage, int], Look]


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
            then and at the end; returns what the first process has found.
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
    learner = Learner(stage_config, weights, prompts, config, run_dir, processes, objective)
    folder, kept = run_dir / CHECKPOINTS, config.checkpoints_kept
    with (
        Checkpoints(folder, stage_config, config, processes, kept) as checkpoints,
        Checkpoints(run_dir / SNAPSHOTS, stage_config, config, processes) as snapshots,
    ):
        # Where an earlier run stopped.
        done = checkpoints.load(learner.state)
        batches = stream.batches(done.images, learner.share)
        if done.step < config.steps:
            batches = learner.settled(batches)
        with (
            Interrupts(deadline) as interrupts,
            Report(stage_config, config, run_dir, done.step, processes.is_main) as report,
            learner.watch,
        ):
            while done.step < config.steps:
                accepted = learner.step(batches, done)
                done = Progress(done.step + 1, done.images + config.batch_size)
                if not accepted and (earlier := _rolled_back(learner, checkpoints)):
                    # To the weights of that step, and on with the rows behind those left out.
                    done = Progress(earlier, done.images)
                    batches = stream.batches(done.images, learner.share)
                    report.rewind(earlier)
                    continue
                report.advance()
                checkpoints.poll()
                step = done.step

                # What is told, kept and looked at.
                if _due(step, config.log_every, config):
                    learner.require_finite(step, folder)
                    report.status(learner.status(done))
                stop = _stop(interrupts, processes, step, config)
                if stop or _due(step, config.checkpoint_every, config):
                    learner.require_finite(step, folder)
                    with learner.paused():
                        checkpoints.save(step, learner.state.state_dict(done.images))
                    learner.guard.saved()
                if _due(step, config.snapshot_every, config):
                    with learner.paused():
                        snapshots.save(step, learner.state.snapshot())
                if stop:
                    checkpoints.wait()
                    snapshots.wait()
                    raise interrupts.end(stop, step)
                every = config.validate_every or config.steps
                if step % every == 0 and step < config.steps:
                    _look(learner, validate, report, done)
            # Also where a run goes on that had done its last step.
            _look(learner, validate, report, done)
    learner.averages.publish()
    return learner.stage


def _look(learner: Learner, validate: Validate | None, report: Report, done: Progress) -> None:
    """Look at the weights that are published."""
    if validate is not None:
        with learner.paused(), learner.averages.published():
            look = validate(learner.stage, done.step)
            report.figures(done._asdict(), look.figures)
            report.pictures(done.step, look.pictures)


def _due(step: int, every: int | None, config: TrainConfig) -> bool:
    return every is not None and (step == config.steps or step % every == 0)


def _stop(interrupts: Interrupts, processes: Processes, step: int, config: TrainConfig) -> Stop:
    """Agree with all processes, every so many steps; a run that has ended has had its time."""
    if not (_due(step, config.stop_every, config) or _due(step, config.checkpoint_every, config)):
        return Stop.NO
    stop = Stop(processes.all_reduce_max(interrupts.wanted()))
    return Stop.NO if stop is Stop.TIME and step == config.steps else stop


def _rolled_back(learner: Learner, checkpoints: Checkpoints) -> int:
    """Load the newest checkpoint if the guard wants it; return its step, 0 if there is none."""
    if not learner.guard.rolls_back:
        return 0
    checkpoints.wait()
    return checkpoints.load(learner.state).step
