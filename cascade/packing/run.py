"""`cascade data pack`: planned, packed by several processes, finished; stopped and gone on with."""

import hashlib
import multiprocessing
import shutil
import signal
import warnings
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from cascade.config.pack import PackConfig
from cascade.data.pack import MANIFEST, QUARANTINE, PackManifest
from cascade.errors import UserError
from cascade.files import read_json, read_text, write_json
from cascade.launch import cores, end_with_parent
from cascade.packing.duplicates import drop_duplicates
from cascade.packing.finish import Finished, finish, gather, write_quarantine
from cascade.packing.part import Job, pack_part, read_result
from cascade.packing.plan import Planned, PlanWriter, read_plan
from cascade.packing.sources import Planner
from cascade.progress import amount, progress_bar, say

WORK: Final = ".packing"
"""Folder of what is unfinished, in the pack's own."""

_DONE: Final = ".packing-done"  # what it is called before it is removed
_SETTINGS: Final = "settings.json"
_LOOK: Final = 0.5  # seconds between two looks at how far the processes are
_TOLD: Final = 8  # reasons of the summary


def pack(config: PackConfig) -> PackManifest:
    """Pack the sources, or go on with it.

    Raises:
        UserError: something is missing, wrong or in the way, or a process was killed.
    """
    _require_packages()
    class_names, settings = _settings(config)
    output, work = config.output, config.output / WORK
    if (output / MANIFEST).is_file():
        manifest = PackManifest.load(output / MANIFEST)
        if manifest.settings != settings:
            raise UserError(f"{output} holds another pack; choose another folder.")
        if not work.exists():
            shutil.rmtree(output / _DONE, ignore_errors=True)
            say(f"{output} is packed already: {_counted(manifest)}.")
            return manifest
    with _alone(output):
        planned = _begin(config, settings)
        missing = [number for number in range(planned.parts) if not read_result(work, number)]
        _work(Job(work, config, class_names), missing, planned.parts)
        found = gather(work, planned)
        if not (output / MANIFEST).is_file():
            _finish(config, found, planned, settings)
        if config.duplicates is not None:
            drop_duplicates(output, config.duplicates)
        manifest = PackManifest.load(output / MANIFEST)
        work.rename(output / _DONE)  # what is half removed is not gone on with
    shutil.rmtree(output / _DONE, ignore_errors=True)
    _summary(output, manifest, found)
    return manifest


def _finish(
    config: PackConfig, found: Finished, planned: Planned, settings: dict[str, Any]
) -> None:
    output, work = config.output, config.output / WORK
    write_quarantine(output, work, planned.parts)
    if not found.pieces:
        shutil.rmtree(work)
        raise UserError(
            f"Every picture was left out ({_reasons(found.left_out)}); {output / QUARANTINE} says "
            "why."
        )
    finish(output, work, found, config, settings)


def _settings(config: PackConfig) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return the classes' names, and all that the bytes of the pack depend on."""
    settings = config.identity()
    if config.class_names is None:
        return (), settings
    text = read_text(config.class_names, "write the name of a class per line")
    settings["class_names"] = hashlib.sha256(text.encode()).hexdigest()
    return tuple(line.strip() for line in text.splitlines()), settings


def _require_packages() -> None:
    try:
        import fsspec
        import imagehash
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"Packing needs {error.name}; install the extra 'data': pip install "
            "'dreamcascade[data]'."
        ) from None
    del fsspec, imagehash


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Keep another command out of the folder."""
    held = {path.name for path in output.iterdir()} if output.is_dir() else set()
    if held - {WORK, QUARANTINE} and WORK not in held:
        raise UserError(
            f"{output} holds other files and no pack; choose a folder that is new or empty."
        )
    (output / WORK).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output / WORK / "lock", timeout=0):
            yield
    except Timeout:
        raise UserError(
            f"Another command is packing into {output}; wait for it, or choose another folder."
        ) from None


def _begin(config: PackConfig, settings: dict[str, Any]) -> Planned:
    """Return the plan: the one of a command that was stopped, or a new one."""
    work = config.output / WORK
    for partial in (*work.glob(".*.partial"), *config.output.glob(".*.partial")):
        partial.unlink()  # nobody else writes here
    known, planned = work / _SETTINGS, read_plan(work)
    if planned is not None:
        before = read_json(known, f"remove {work} to begin anew")
        other = sorted(name for name in settings if before.get(name) != settings[name])
        if other:
            raise UserError(
                f"{config.output} holds an unfinished pack of other settings "
                f"({', '.join(other)}); give the same ones, or remove {work} to begin anew."
            )
        say(f"Going on with the unfinished pack in {config.output}.")
        return planned
    try:
        plan = PlanWriter(work, config.shard_records, config.shard_size << 20)
        planner = Planner(config, work, plan)
        for source in config.sources:
            planner.add(source)
        write_json(settings, known)
        plan.close()
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    planned = read_plan(work)
    assert planned is not None, "it was just written"
    return planned


class _Stopped(Exception):
    """The command ends: so does a part's work."""


class _Worker:
    """What processes share: how many records are done, and whether to stop."""

    seen: Any = None
    stop: Any = None

    @classmethod
    def start(cls, seen: Any, stop: Any) -> None:
        """Begin a process: Ctrl-C is the command's to answer, and it ends when the command does."""
        cls.seen, cls.stop = seen, stop
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        warnings.filterwarnings("ignore", module="PIL")  # of a picture's damaged notes
        end_with_parent()

    @classmethod
    def tick(cls) -> None:
        """Count a record."""
        if cls.stop.is_set():
            raise _Stopped
        with cls.seen.get_lock():
            cls.seen.value += 1


def _pack_in_process(job: Job, number: int) -> None:
    pack_part(job, number, _Worker.tick)


def _work(job: Job, missing: list[int], parts: int) -> None:
    """Pack the parts that are not done."""
    workers = min(job.config.workers or cores(), len(missing))
    with progress_bar() as bar:
        task = bar.add_task("packing", total=parts, completed=parts - len(missing), details="")
        count = 0

        def tick() -> None:
            nonlocal count
            count += 1
            if count % 100 == 0:
                bar.update(task, details=f"{count:,} records")

        if workers <= 1:
            for number in missing:
                pack_part(job, number, tick)
                bar.advance(task)
            return
        with closing(_in_processes(job, missing, workers)) as steps:
            for done, seen in steps:
                bar.update(task, advance=done, details=f"{seen:,} records")


def _in_processes(
    job: Job, missing: list[int], workers: int
) -> Generator[tuple[int, int], None, None]:
    """Yield how many parts were just done, and how many records were seen since the start."""
    context = multiprocessing.get_context("spawn")
    seen, stop = context.Value("Q", 0), context.Event()
    left, running = iter(missing), set[Future[None]]()
    pool = ProcessPoolExecutor(workers, context, _Worker.start, (seen, stop))
    try:
        while True:
            for number in islice(left, 2 * workers - len(running)):
                running.add(pool.submit(_pack_in_process, job, number))
            if not running:
                return
            done, running = wait(running, _LOOK, FIRST_COMPLETED)
            for one in done:
                one.result()
            yield len(done), seen.value
    except BrokenProcessPool:
        raise UserError(
            "A process of this command was killed, perhaps for want of memory; start the same "
            f"command again: it goes on, also with fewer than --workers {workers}."
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _counted(manifest: PackManifest) -> str:
    records = sum(shard.records for shard in manifest.shards)
    size = sum(shard.size for shard in manifest.shards)
    return f"{records:,} pictures in {len(manifest.shards):,} shards, {amount(size)}"


def _reasons(left_out: Mapping[str, int]) -> str:
    counts = Counter(left_out).most_common()
    more = sum(count for _, count in counts[_TOLD:])
    told = [f"{reason}: {count:,}" for reason, count in counts[:_TOLD]]
    return ", ".join([*told, f"other reasons: {more:,}"] if more else told)


def _summary(output: Path, manifest: PackManifest, found: Finished) -> None:
    held_out = sum(shard.records for shard in manifest.of_split("validation"))
    for_validation = f", {held_out:,} of them for validation" if held_out else ""
    say(f"{output}: {_counted(manifest)}{for_validation}.")
    if manifest.left_out:
        count = sum(manifest.left_out.values())
        told = _reasons(manifest.left_out)
        say(f"Left out: {count:,} ({told}); {output / QUARANTINE} names each.")
    if found.unused:
        named = ", ".join(f"{count:,} {name}" for name, count in found.unused.most_common(_TOLD))
        say(f"Not taken over, as what they mean is not known: files of the kinds {named}.")
    say(f"Look at it: cascade data info {output}")
