"""The smallest change that makes a run fit a machine, found by trying them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, Final

from cascade.config.base import merged
from cascade.config.machine import MOST_GPUS, MachineConfig
from cascade.config.train import TrainConfig
from cascade.errors import UserError
from cascade.training.footprint import activation_bytes
from cascade.training.parallel import mesh_shape
from cascade.training.plan import Plan, processes_of

_TOGETHER: Final = 3  # changes that are tried at once


@dataclass(frozen=True)
class Change:
    """One setting with another value.

    Attributes:
        setting: "train.parallel.strategy".
        value: as it is written after `--set`.
    """

    setting: str
    value: object

    def __str__(self) -> str:
        """Spell it as the command's option."""
        if self.setting == "machine.gpus":
            return f"--gpus {self.value}"
        return f"--set {self.setting}={str(self.value).lower()}"  # true, as TOML has it

    def nested(self) -> Mapping[str, Any]:
        """Return it as settings."""
        found: Any = self.value
        for name in reversed(self.setting.split(".")):
            found = {name: found}
        return found  # type: ignore[no-any-return]


def require_fit(plan: Plan) -> None:
    """Refuse a run that does not fit, and name the smallest change by which it would.

    Raises:
        UserError: it does not fit.
    """
    if plan.fits:
        return
    needed, room = plan.footprint.device + plan.workspace, plan.capacity
    short = (
        f"Stage '{plan.stage.name}' needs {needed / 2**30:.1f} GiB on each of {plan.machine.gpus} "
        f"{plan.machine.gpu}, which have {room / 2**30:.0f} GiB"
    )
    changes = smallest_changes(plan)
    if not changes:
        raise UserError(
            f"{short}; no setting makes it fit: take a larger GPU, or a smaller network."
        )
    raise UserError(f"{short}; it fits with {' '.join(str(change) for change in changes)}.")


def smallest_changes(plan: Plan) -> Sequence[Change]:
    """Return the first of all changes that makes a run fit: one, else two, else three of them.

    Returns:
        None of them where nothing does.
    """
    known = list(_changes(plan.run, plan.machine))
    for count in range(1, _TOGETHER + 1):
        for changes in combinations(known, count):
            if len({change.setting for change in changes}) == count and _fits(plan, changes):
                return changes
    return ()


def _changes(run: TrainConfig, machine: MachineConfig) -> Iterator[Change]:
    """Yield what may be changed, in the order of what it costs: time, exactness, machines."""
    parallel = run.parallel
    if parallel.strategy != "ddp" and not parallel.reshard_after_forward:
        yield Change("train.parallel.reshard_after_forward", True)
    if run.gradient_checkpointing == "none":
        yield Change("train.gradient_checkpointing", "selective")
    if parallel.strategy == "ddp":
        yield Change("train.parallel.strategy", "fsdp")
    if parallel.strategy == "hsdp":
        copies, _ = mesh_shape(parallel, processes_of(machine))
        for factor in _divisors(copies):
            yield Change("train.parallel.replicas", copies // factor)
    if run.average_labels and not parallel.offload_averages:
        yield Change("train.parallel.offload_averages", True)
    passes = run.gradient_accumulation_steps
    for factor in _divisors(run.batch_size // (passes * machine.gpus)):
        yield Change("train.gradient_accumulation_steps", passes * factor)
    if run.gradient_checkpointing != "full":
        yield Change("train.gradient_checkpointing", "full")
    if run.optimizer.name != "adamw8bit":
        yield Change("train.optimizer.name", "adamw8bit")
    if not parallel.offload:
        yield Change("train.parallel.offload", True)
    gpus = 2 * machine.gpus
    while gpus <= MOST_GPUS:
        yield Change("machine.gpus", gpus)
        gpus *= 2


def _divisors(number: int) -> list[int]:
    return [factor for factor in range(2, number + 1) if number % factor == 0]


def _fits(plan: Plan, changes: Sequence[Change]) -> bool:
    """Return whether a run fits when it is changed so; one that cannot be does not."""
    values = {"train": plan.run.model_dump(), "machine": plan.machine.model_dump()}
    for change in changes:
        values = merged(values, change.nested())
    try:
        run = TrainConfig.parse(values["train"], "the plan")
        machine = MachineConfig.parse(values["machine"], "the plan")
        changed = Plan(plan.stage, run, machine, activations=0)
        # The smallest batch first: where nothing fits there is no more to count.
        return changed.fits and all(
            replace(changed, activations=activations).fits
            for activations in _activations(changed, plan.rows)
        )
    except UserError:
        return False


def _activations(plan: Plan, most: int) -> Iterator[int]:
    """Yield bounds of a plan's activations, the last from above.

    They are counted for one row and for the most; between, a convex function lies below its chord:
    at each moment bytes grow with rows on a line, and the peak is the highest of these lines.
    """
    processes = processes_of(plan.machine)
    yield (one := activation_bytes(plan.stage, plan.run, processes, 1))
    if plan.rows > 1:
        all_rows = activation_bytes(plan.stage, plan.run, processes, most)
        yield one + (all_rows - one) * (plan.rows - 1) // (most - 1)
