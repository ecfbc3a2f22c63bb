"""Built plans, kept under the hash of everything they follow from.

    FOLDER/<key>/plan             what the builder wrote
    FOLDER/<key>/manifest.json    what it follows from, its hash, and what the build said
    FOLDER/.<key>.lock            empty; held by whoever builds it, gone when the plan is there

The key is never a hash of the plan: two builds of the same input differ in their bytes. A plan that
is stale, truncated, foreign or made for another version or GPU is refused with the reason. When a
plan is built, others go that no bundle and no fine-tune beside them refers to, and that have not
been used for long or take too much room; the manifest's time is that of the last use.
"""

import datetime
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout
from pydantic import ConfigDict

from cascade.config.base import Frozen
from cascade.errors import UserError
from cascade.files import read_json, write_bytes
from cascade_export.engines.tensorrt.inspect_plan import LayerCount, PlannedMemory
from cascade_export.engines.tensorrt.options import PlanOptions
from cascade_export.engines.tensorrt.targets import FLAVORS, Gpu, Kind
from cascade_export.graph.numerics import Precision, Quantization

SCHEMA = 1
_PLAN, _MANIFEST = "plan", "manifest.json"
_DAY: Final = 86400.0


class Fingerprint(Frozen):
    """Everything that a plan depends on; another value of any field is another plan.

    Attributes:
        weights: sha256 of the weights; None where they are sent to the plan before it runs.
        profile: smallest, usual and largest size of each dynamic dimension.
        version: of the builder, in full.
        flags: the builder's, by name.
        gpu: which the plan was tuned on; None for plans that are built ahead of time.
    """

    graph: str
    weights: str | None
    precision: Precision
    quantisation: Quantization
    profile: dict[str, tuple[int, int, int]]
    kind: Kind
    version: str
    targets: tuple[int, ...]
    flags: tuple[str, ...]
    gpu: Gpu | None = None
    exporter: dict[str, str]
    schema_version: int = SCHEMA

    @property
    def key(self) -> str:
        """Return sha256 over the canonical JSON."""
        values = self.model_dump(mode="json")
        if self.gpu is None:  # as the keys of plans for many GPUs have always been
            del values["gpu"]
        text = json.dumps(values, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


class BuildFacts(Frozen):
    """Figures and messages of a build."""

    layers: tuple[LayerCount, ...]
    memory: PlannedMemory
    log: tuple[str, ...]
    seconds: float

    model_config = ConfigDict(frozen=True, extra="ignore")  # earlier builds said more


class Manifest(Frozen):
    """`manifest.json` beside a plan."""

    fingerprint: Fingerprint
    plan_sha256: str
    plan_bytes: int
    facts: BuildFacts
    host: str
    date: str


@dataclass(frozen=True)
class BuiltPlan:
    """A plan as the builder returned it."""

    data: bytes
    facts: BuildFacts


@dataclass(frozen=True)
class StoredPlan:
    """A plan in the cache."""

    folder: Path
    manifest: Manifest

    @property
    def key(self) -> str:
        """Return the name of its folder."""
        return self.folder.name

    def read(self) -> bytes:
        """Return the plan, proven to be the one that was written."""
        path = self.folder / _PLAN
        if not path.is_file():
            raise UserError(f"{self.folder} has no plan; {_AGAIN}.")
        data = path.read_bytes()
        expected = self.manifest.plan_bytes
        if len(data) != expected:
            raise UserError(f"{path} has {len(data)} bytes instead of {expected}; {_AGAIN}.")
        if hashlib.sha256(data).hexdigest() != self.manifest.plan_sha256:
            raise UserError(f"{path} is not the plan its manifest tells of; {_AGAIN}.")
        return data

    def check_runs(self, version: str, target: int | None, gpu: Gpu | None = None) -> None:
        """Refuse a plan that cannot run here, or was tuned elsewhere.

        Args:
            target: this GPU's compute capability; None where there is no GPU.
            gpu: this GPU, for plans that are tuned.
        """
        made = self.manifest.fingerprint
        if made.version != version:
            raise UserError(
                f"The plan {self.folder} was built by {made.kind} {made.version} and {version} is "
                "installed; install that version or export again."
            )
        if target not in made.targets:
            built = ", ".join(f"sm{each}" for each in made.targets)
            here = "this machine has no GPU" if target is None else f"this GPU is sm{target}"
            raise UserError(f"The plan {self.folder} is for {built} and {here}; export for it.")
        if not FLAVORS[made.kind].ahead_of_time and made.gpu != gpu:
            raise UserError(
                f"The plan {self.folder} was tuned on {made.gpu or 'a GPU it does not name'} and "
                f"this is {gpu}; export again here."
            )


_AGAIN = "delete that folder and export again"


class PlanCache:
    """A folder of plans that several processes may use at once.

    Args:
        wait: seconds for which another's build is waited for.
    """

    def __init__(
        self, folder: Path, options: PlanOptions | None = None, wait: float = 3600.0
    ) -> None:
        self.folder = folder
        self._options = options or PlanOptions()
        self._wait = wait

    def obtain(self, fingerprint: Fingerprint, build: Callable[[], BuiltPlan]) -> StoredPlan:
        """Return the plan of a fingerprint, built now if it is not there.

        Processes that ask for the same plan wait for the first of them; a process that is killed
        while it builds leaves nothing that is taken for a plan.
        """
        if not (self.folder / fingerprint.key).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked(fingerprint.key, self._wait):
                if not (self.folder / fingerprint.key).exists():
                    self._store(fingerprint, build())
            self._remove_unused()
        return self.named(fingerprint.key)

    def named(self, key: str) -> StoredPlan:
        """Return a plan by its key, and note that it is used."""
        folder = self.folder / key
        if not folder.is_dir():
            raise UserError(f"There is no plan {folder}; export again.")
        stored = StoredPlan(folder, _manifest(folder))
        if stored.manifest.fingerprint.key != key:
            raise UserError(f"{folder} holds the plan of something else; {_AGAIN}.")
        with suppress(OSError):  # a folder that may only be read
            os.utime(folder / _MANIFEST)
        return stored

    @contextmanager
    def _locked(self, key: str, wait: float) -> Iterator[None]:
        """Hold a plan's lock, whose file goes where all went well.

        Raises:
            UserError: another process holds it for longer.
        """
        path = self.folder / f".{key}.lock"
        lock = FileLock(path)
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            raise UserError(
                f"Another process has been building {self.folder / key} for {wait:.0f} s; wait "
                "until it is done, or end it, and start again."
            ) from None
        try:
            yield
            # Whoever waits for it finds that it has no name any more, and asks anew.
            with suppress(OSError):
                path.unlink()
        finally:
            lock.release()

    def _remove_unused(self) -> None:
        """Remove plans that nothing refers to, unused for long or, longest first, too large."""
        plans = sorted(self.folder.glob(f"[0-9a-f]*/{_MANIFEST}"), key=_last_use)
        sizes = {path: sum(file.stat().st_size for file in path.parent.glob("*")) for path in plans}
        total = sum(sizes.values())
        for path in plans:
            unused = time.time() - _last_use(path)
            # Less than a day: an export that goes on may be about to refer to it.
            if unused < _DAY or _refers(self.folder.parent, path.parent):
                continue
            if unused > _DAY * self._options.plan_days or total > self._options.plan_gib * 2**30:
                with suppress(UserError), self._locked(path.parent.name, 0):  # someone has it
                    shutil.rmtree(path.parent, ignore_errors=True)
                    total -= sizes[path]

    def _store(self, fingerprint: Fingerprint, built: BuiltPlan) -> None:
        """Write both files aside and rename their folder; the lock is held."""
        manifest = Manifest(
            fingerprint=fingerprint,
            plan_sha256=hashlib.sha256(built.data).hexdigest(),
            plan_bytes=len(built.data),
            facts=built.facts,
            host=f"{platform.system()} {platform.machine()}",
            date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )
        partial = self.folder / f".{fingerprint.key}.partial"
        if partial.exists():  # of a process that was killed
            shutil.rmtree(partial)
        try:
            write_bytes(built.data, partial / _PLAN)
            write_bytes((manifest.model_dump_json(indent=1) + "\n").encode(), partial / _MANIFEST)
            partial.rename(self.folder / fingerprint.key)
        finally:  # it is gone, or the disk is full
            shutil.rmtree(partial, ignore_errors=True)


def _manifest(folder: Path) -> Manifest:
    return Manifest.parse(read_json(folder / _MANIFEST, _AGAIN), str(folder / _MANIFEST))


def _last_use(manifest: Path) -> float:
    return manifest.stat().st_mtime if manifest.exists() else 0.0


def _refers(bundle: Path, plan: Path) -> bool:
    """Return whether a bundle names a plan, or a fine-tune the weights in it.

    A plan that is not whole counts too: who uses it is told.
    """
    try:
        weights = _manifest(plan).fingerprint.weights
    except UserError:
        return True
    by_key = any(plan.name in _text(record) for record in bundle.glob("*.json"))
    tunes = bundle.glob("subjects/*/*.json") if weights else ()
    return by_key or any(str(weights) in _text(record) for record in tunes)


def _text(record: Path) -> str:
    return record.read_text(encoding="utf-8", errors="replace")
