"""What a pre-training reports: figures, curves, and the tables for the cascade's card."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from statistics import median
from typing import Any

from bench.device import described
from cascade.files import write_bytes
from cascade.stage import read_stage_config, weight_shapes
from cascade.train.report import read_log
from gpu.pieces import Context
from gpu.pretrain_plan import BASE, LARGE, STAGES, Job
from gpu.pretrain_runs import read_throughput
from gpu.pretrain_scores import FINAL, SO_FAR, read_score, score_folder
from scoring import markdown

_DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Run:
    """One stage's training in figures.

    Attributes:
        steps: of the optimizer.
        images: rows seen.
        minutes: of training, without starts, checkpoints and validation.
        images_per_second: the median of the statuses.
        peak_share: of the device's peak that the network's operations take, likewise; None where
            the peak is not known.
        peak_memory_gib: None on a CPU.
        loss: of the last status.
    """

    steps: int
    images: int
    minutes: float
    images_per_second: float
    peak_share: float | None
    peak_memory_gib: float | None
    loss: float


def write_report(job: Job, context: Context) -> None:
    """Write `curves.png` and, of a whole cascade, `figures.json` and `card.md`.

    Without matplotlib there are no curves; they can be drawn from the logs elsewhere.
    """
    logs = {stage: log for stage in STAGES if (log := read_log(job.run(stage) / "log.jsonl"))}
    if logs and find_spec("matplotlib") is not None:
        write_bytes(_curves(logs), job.results / "curves.png")
    if not all(job.shipped(stage).is_dir() for stage in STAGES):
        return
    figures: dict[str, Any] = {
        "dry_run": context.dry_run,
        "environment": described(context.device, context.commit),
        "runs": {stage: asdict(summary(log)) for stage, log in logs.items()},
        "throughput": {stage: read_throughput(stage, job)["runs"] for stage in STAGES},
        "scores": {
            f"{stage} {name}": read_score(stage, name, job)
            for stage in STAGES
            for name in _scores(stage, job)
        },
    }
    write_bytes((json.dumps(figures, indent=1) + "\n").encode(), job.results / "figures.json")
    write_bytes(_card(job, figures).encode(), job.results / "card.md")


def summary(log: Sequence[Mapping[str, float]]) -> Run:
    """Sum up the statuses of a run's log, of which there is at least one."""
    seen = [line["images"] for line in log]
    rows = [after - before for before, after in zip([0.0, *seen], seen, strict=False)]
    seconds = [count / line["images_per_second"] for count, line in zip(rows, log, strict=True)]
    shares = [line["peak_share"] for line in log if "peak_share" in line]
    memory = [line["peak_memory_gib"] for line in log if "peak_memory_gib" in line]
    return Run(
        steps=int(log[-1]["step"]),
        images=int(log[-1]["images"]),
        minutes=sum(seconds) / 60,
        images_per_second=median(line["images_per_second"] for line in log),
        peak_share=median(shares) if shares else None,
        peak_memory_gib=max(memory, default=None),
        loss=log[-1]["loss"],
    )


def _curves(logs: Mapping[str, Sequence[Mapping[str, float]]]) -> bytes:
    """Each run's loss over the rows seen, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(logs), 4), layout="constrained")
    (row,) = figure.subplots(1, len(logs), squeeze=False)
    for axes, (stage, log) in zip(row, logs.items(), strict=True):
        axes.plot([line["images"] for line in log], [line["loss"] for line in log])
        axes.set(title=stage, xlabel="rows", ylabel="loss", yscale="log")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


def _scores(stage: str, job: Job) -> list[str]:
    found = score_folder(stage, FINAL, job).parent.glob("*/score.json")
    return sorted(path.parent.name for path in found)


def _card(job: Job, figures: Mapping[str, Any]) -> str:
    """The card's figures as Markdown."""
    told = figures["environment"]
    versions = f"{told['machine']}, torch {told['torch']}, commit {told['commit']}, {told['date']}"
    parts = [f"Trained and measured on {versions}.", _training_table(job, figures["runs"])]
    scores = [name for name in _scores(BASE, job) if not name.startswith(SO_FAR)]
    if scores:
        parts.append(_base_table({name: read_score(BASE, name, job) for name in scores}))
    else:
        parts.append("The base is not scored yet.")
    if FINAL in _scores(LARGE, job):
        text = (score_folder(LARGE, FINAL, job) / "score.md").read_text(encoding="utf-8")
        parts.append(text.strip())
    else:
        parts.append("The super-resolution stage is not scored yet.")
    return "\n\n".join(parts) + "\n"


def _training_table(job: Job, runs: Mapping[str, Mapping[str, Any]]) -> str:
    head = ["stage", "pixels", "weights", "steps", "rows", "minutes", "rows/s"]
    head += ["share of the peak", "memory, GiB"]
    rows = []
    for stage, run in runs.items():
        shapes = weight_shapes(job.shipped(stage) / "model.safetensors").values()
        rows.append(
            [
                stage,
                str(read_stage_config(job.shipped(stage)).size),
                f"{sum(map(math.prod, shapes)) / 1e6:.2f} M",
                f"{run['steps']:,}",
                f"{run['images']:,}",
                f"{run['minutes']:.1f}",
                f"{run['images_per_second']:,.0f}",
                _DASH if run["peak_share"] is None else f"{run['peak_share']:.0%}",
                _DASH if run["peak_memory_gib"] is None else f"{run['peak_memory_gib']:.1f}",
            ]
        )
    return markdown(head, rows).strip()


def _base_table(scores: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each score; the training photos' FID and the photos' accuracy are the bounds."""
    head = ["base", "guidance", "pictures", "FID", "top-1", "top-5", "coarse"]
    rows = []
    for name, score in scores.items():
        found = score["class accuracy"]["of"]
        shares = [f"{found['pictures'][kind]:.1%}" for kind in ("top_1", "top_5", "coarse")]
        distance = score["fid"]["to"][0]
        guidance = f"{score['sampler']['guidance']:g}"
        count = f"{score['pictures']:,}"
        rows.append([name, guidance, count, f"{distance['pictures']:.1f}", *shares])
        if name == FINAL:
            photos = [f"{found['photos'][kind]:.1%}" for kind in ("top_1", "top_5", "coarse")]
            floor = f"{distance['training_pictures']:.1f}"
            rows.append(["training photos; validation photos", _DASH, count, floor, *photos])
            chance = [f"{found['chance'][kind]:.1%}" for kind in ("top_1", "top_5", "coarse")]
            rows.append(["chance", _DASH, _DASH, _DASH, *chance])
    return markdown(head, rows).strip()
