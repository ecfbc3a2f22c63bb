"""Reports of a personalisation: its forecast before the long work, and its result."""

from collections.abc import Iterator, Sequence
from shlex import quote

from cascade.dreambooth.class_images import samplers
from cascade.dreambooth.concepts import prior_of, up_to, wanted
from cascade.dreambooth.plan import Plan, end_prompts, run_folder, run_of
from cascade.dreambooth.samples import AT_ONCE
from cascade.progress import say, spell
from cascade.training.checkpoint import CHECKPOINTS, checkpoint_steps
from cascade.training.forecast import Pace, Work, drawing_seconds, micro_batch, training


def report_subject(plan: Plan) -> None:
    """Say which photos are learned under which name."""
    subject = plan.subject
    for note in subject.photos.notes:
        say(note)
    say(
        f"{len(subject.images)} photos of '{subject.instance_prompt}' "
        f"(identifier '{subject.config.identifier}'); tuning {', '.join(plan.tuned)}."
    )
    if plan.own.pictures or plan.own.foreign:
        for note in (*plan.own.notes(), _of_the_class(plan)):
            say(f"Class pictures: {note}")


def _of_the_class(plan: Plan) -> str:
    drawn = plan.missing_class_images
    return f"{len(plan.own.pictures)} of your own are used, and {drawn or 'none'} drawn."


def forecast(plan: Plan, unfinished: Sequence[str], pace: Pace, world: int) -> list[Work]:
    """Return the parts of the run, with the time that each is likely to take."""
    works = [_tuning(plan, folder, pace, world) for folder in unfinished]
    return [*works, *_samples(plan, pace)] if works else []


def report_result(plan: Plan, seconds: float) -> None:
    """Say where the cascade is, and how it draws the subject."""
    folder, prompt = plan.config.output_dir, f"{plan.subject.instance_prompt} on the beach"
    say(f"The personalised cascade is in {folder}, after {spell(seconds)}.")
    say(f"Draw: cascade sample --cascade {quote(str(folder))} --prompt {quote(prompt)}")


def _tuning(plan: Plan, folder: str, pace: Pace, world: int) -> Work:
    stage = plan.stages[folder]
    run = run_of(plan.config, stage)
    steps = checkpoint_steps(run_folder(plan, folder) / CHECKPOINTS)
    done = steps[-1] if steps else 0
    kinds = ("photo", "class image") if prior_of(plan, folder) else ("photo",)
    rows = micro_batch(run, world) * len(kinds)
    seconds = (run.steps - done) * pace.step(stage, run, rows)
    stages = [plan.stages[name] for name in up_to(plan, folder)]
    before = {} if done else wanted(plan, folder)
    for drawn in before.values():
        chain = samplers(stages, drawn)
        seconds += drawing_seconds(pace, stages, chain, drawn.images, drawn.batch_size) / world
    return training(
        stage,
        run,
        done,
        seconds,
        batch=" + ".join(_counted(run.batch_size, kind) for kind in kinds),
        before=", ".join(f"{drawn.images} {name}" for name, drawn in before.items()),
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _samples(plan: Plan, pace: Pace) -> Iterator[Work]:
    stages, count = list(plan.stages.values()), len(end_prompts(plan))
    if count:
        chain = [stage.sampler for stage in stages]
        seconds = drawing_seconds(pace, stages, chain, count, AT_ONCE)
        yield Work(
            name="samples", size=stages[-1].size, seconds=seconds, batch=_counted(count, "picture")
        )
