"""Built plans, kept under the hash of everything they follow from.

    FOLDER/<key>/plan             what the builder wrote
    FOLDER/<key>/manifest.json    what it follows from, its hash, and what the build said
    FOLDER/.<key>.lock            empty; held by whoever builds it

The key is never a hash of the plan: two builds of the same input differ in their bytes. A plan that
is stale, truncated, foreign or made for another version or GPU is refused with the reason.
"""

import datetime
import hashlib
import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from pydantic import ConfigDict

from cascade.config.base import Frozen
from cascade.errors import UserError
from cascade.files import read_json, write_bytes
from cascade_export.engines.tensorrt.inspect_plan import LayerCount, PlannedMemory
from cascade_export.engines.tensorrt.targets import Kind
from cascade_export.graph.numerics import Precision, Quantization

SCHEMA = 1
_PLAN, _MANIFEST = "plan", "manifest.json"


class Fingerprint(Frozen):
    """Everything that a plan depends on; another value of any field is another plan.

    Attributes:
        weights: sha256 of the weights; None where they are sent to the plan before it runs.
        profile: smallest, usual and largest size of each dynamic dimension.
        version: of the builder, in full.
        flags: the builder's, by name.
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
    exporter: dict[str, str]
    schema_version: int = SCHEMA

    @property
    def key(self) -> str:
        """Return sha256 over the canonical JSON."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
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

    def check_runs(self, version: str, target: int | None) -> None:
        """Refuse a plan that cannot run here.

        Args:
            target: this GPU's compute capability; None where there is no GPU.
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


_AGAIN = "delete that folder and export again"


class PlanCache:
    """A folder of plans that several processes may use at once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def obtain(self, fingerprint: Fingerprint, build: Callable[[], BuiltPlan]) -> StoredPlan:
        """Return the plan of a fingerprint, built now if it is not there.

        Processes that ask for the same plan wait for the first of them; a process that is killed
        while it builds leaves nothing that is taken for a plan.
        """
        if not (self.folder / fingerprint.key).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / f".{fingerprint.key}.lock"):
                if not (self.folder / fingerprint.key).exists():
                    self._store(fingerprint, build())
        return self.named(fingerprint.key)

    def named(self, key: str) -> StoredPlan:
        """Return a plan by its key."""
        folder = self.folder / key
        if not folder.is_dir():
            raise UserError(f"There is no plan {folder}; export again.")
        stored = StoredPlan(folder, _manifest(folder))
        if stored.manifest.fingerprint.key != key:
            raise UserError(f"{folder} holds the plan of something else; {_AGAIN}.")
        return stored

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
