"""A plan as a table for people and as JSON for programs."""

import json
from collections.abc import Callable, Mapping
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cascade.progress import amount, spell
from cascade.training.plan import Plan

Facts = Mapping[str, Mapping[str, float]]

_PARTS: Final[dict[str, tuple[str, Callable[[float], str]]]] = {
    "gpu_memory_bytes": ("Memory of a GPU", amount),
    "step_seconds": ("A step", lambda seconds: f"{seconds:.3g} s"),
    "gpu_received_bytes": ("What a GPU receives in a step", amount),
    "speed": ("Speed", lambda value: f"{value:,.4g}"),
    "seconds": ("Time", lambda seconds: f"{seconds:.2g} s" if seconds < 10 else spell(seconds)),
    "bytes": ("Elsewhere", amount),
}


def facts(plan: Plan) -> Facts:
    """Return a plan's figures by part and name."""
    held = plan.footprint
    return {
        "gpu_memory_bytes": {
            "weights": held.weights,
            "gradients": held.gradients,
            "moments": held.moments,
            "averages": held.averages,
            "activations": held.activations,
            "workspace": plan.workspace,
            "total": held.device + plan.workspace,
            "available": plan.capacity,
        },
        "step_seconds": {
            "operations": plan.compute_seconds,
            "exchange": plan.exchange_seconds,
            "optimizer": plan.update_seconds,
            "total": plan.step_seconds,
        },
        "gpu_received_bytes": {
            "links": sum(exchange.link for exchange in plan.exchanges),
            "network": sum(exchange.network for exchange in plan.exchanges),
        },
        "speed": {
            "images per second": plan.images_per_second,
            "operations per image": plan.operations * plan.machine.gpus / plan.run.batch_size,
        },
        "seconds": {
            "all steps": plan.seconds,
            "pause for a checkpoint": plan.pause_seconds,
            "writing a checkpoint": plan.write_seconds,
        },
        "bytes": {"a checkpoint": plan.checkpoint, "host memory of a machine": plan.host},
    }


def as_json(plan: Plan) -> str:
    """Return a plan's settings and figures for programs."""
    settings = {"train": plan.run, "machine": plan.machine}
    told = {name: group.model_dump(mode="json") for name, group in settings.items()}
    return json.dumps({"stage": plan.stage.name, **told, **facts(plan)}, indent=2)


def table(plan: Plan) -> RenderableType:
    """Return a plan's table, and below it what it assumes."""
    run, machine = plan.run, plan.machine
    how = [f"{machine.gpus} {machine.gpu}"]
    if machine.gpus > 1:
        how.append(run.parallel.strategy)
    if run.gradient_checkpointing != "none":
        how.append(f"{run.gradient_checkpointing} recomputation")
    shown = Table(title=f"{plan.stage.name} on {', '.join(how)}", box=box.SIMPLE_HEAD)
    shown.add_column(f"{run.steps} steps of {run.batch_size}, {plan.rows} a pass")
    shown.add_column("", justify="right")
    for part, rows in facts(plan).items():
        title, told = _PARTS[part]
        shown.add_row(title, style="bold")
        for name, value in rows.items():
            shown.add_row(f"  {name}", told(value))
        shown.add_section()
    return Group(shown, Text(_assumptions(plan)))


def _assumptions(plan: Plan) -> str:
    machine = plan.machine
    known = "Assumed: " if machine.log is None else ""
    return (
        f"{known}{machine.utilization:.0%} of {plan.peak / 1e12:.0f} Tflop/s"
        f"{', ' if known else f', as measured in {machine.log}. Assumed: '}"
        f"{machine.network:g} Gbit/s of network for each GPU, {machine.disk:g} GB/s of disk, "
        f"{machine.workspace:.0%} of the memory as workspace, exchange beside operations. "
        "Activations are as the kernels keep them. Not in it: reading pictures, validation."
    )
