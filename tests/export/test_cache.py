"""A plan is found by everything it follows from, built once, and refused when it is not whole."""

import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cascade.errors import UserError
from cascade_export.engines.tensorrt.inspect_plan import PlannedMemory
from cascade_export.engines.tensorrt.plan_cache import (
    BuildFacts,
    BuiltPlan,
    Fingerprint,
    PlanCache,
    StoredPlan,
)

PRINT = Fingerprint(
    graph="g" * 64,
    weights="w" * 64,
    precision="fp16",
    quantisation="none",
    profile={"batch": (1, 2, 8)},
    kind="tensorrt-rtx",
    version="1.7.1.116",
    targets=(89, 120),
    flags=("REQUIRE_USER_ALLOCATION",),
    exporter={"torch": "2.13.0", "onnx": "1.23.2"},
)
CHANGES: dict[str, Any] = {
    "graph": "h" * 64,
    "weights": None,
    "precision": "bf16",
    "quantisation": "int8",
    "profile": {"batch": (1, 2, 16)},
    "kind": "tensorrt",
    "version": "1.7.1.117",
    "targets": (89,),
    "flags": (),
    "exporter": {"torch": "2.13.0", "onnx": "1.23.3"},
    "schema_version": 2,
}
FACTS = BuildFacts(
    layers=(),
    memory=PlannedMemory(weights=10),
    log=("Total Weights Memory: 10 bytes",),
    seconds=0.1,
)


def _built(data: bytes = b"a plan") -> BuiltPlan:
    return BuiltPlan(data, FACTS)


def _never() -> BuiltPlan:
    raise AssertionError("it was built again")


def test_every_field_changes_the_key() -> None:
    assert CHANGES.keys() == Fingerprint.model_fields.keys()
    keys = {PRINT.model_copy(update={name: value}).key for name, value in CHANGES.items()}
    assert len(keys | {PRINT.key}) == len(CHANGES) + 1
    assert Fingerprint.model_validate_json(PRINT.model_dump_json()).key == PRINT.key


def test_the_key_does_not_depend_on_the_order_of_names() -> None:
    turned = dict(reversed(PRINT.exporter.items()))
    assert PRINT.model_copy(update={"exporter": turned}).key == PRINT.key


def test_a_plan_is_built_once_and_read_back(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path / "engines")
    stored = cache.obtain(PRINT, _built)
    assert stored.read() == b"a plan"
    again = cache.obtain(PRINT, _never)
    assert again == stored == cache.named(PRINT.key)
    assert (again.manifest.facts, again.manifest.fingerprint) == (FACTS, PRINT)
    other = PRINT.model_copy(update={"weights": "x" * 64})
    assert cache.obtain(other, lambda: _built(b"another")).read() == b"another"


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)

    def fail() -> BuiltPlan:
        raise UserError("no such operation")

    with pytest.raises(UserError, match="no such operation"):
        cache.obtain(PRINT, fail)
    assert not list(tmp_path.glob("[!.]*"))
    (tmp_path / f".{PRINT.key}.partial").mkdir()  # of a process that was killed
    assert cache.obtain(PRINT, _built).read() == b"a plan"
    assert not list(tmp_path.glob("*.partial"))


def _truncate(stored: StoredPlan) -> None:
    (stored.folder / "plan").write_bytes(b"a pl")


def _alter(stored: StoredPlan) -> None:
    (stored.folder / "plan").write_bytes(b"b plan")


def _remove(stored: StoredPlan) -> None:
    (stored.folder / "plan").unlink()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (_truncate, r"has 4 bytes instead of 6; delete that folder"),
        (_alter, r"is not the plan its manifest tells of; delete that folder"),
        (_remove, r"has no plan; delete that folder"),
    ],
)
def test_a_harmed_plan_is_refused(
    tmp_path: Path, harm: Callable[[StoredPlan], None], reason: str
) -> None:
    cache = PlanCache(tmp_path)
    harm(cache.obtain(PRINT, _built))
    with pytest.raises(UserError, match=reason):
        cache.obtain(PRINT, _never).read()


def test_a_harmed_manifest_is_refused(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path)
    path = cache.obtain(PRINT, _built).folder / "manifest.json"
    held = json.loads(path.read_text())
    path.write_text(path.read_text()[:100])
    with pytest.raises(UserError, match=r"manifest\.json is not whole JSON .*; delete that folder"):
        cache.named(PRINT.key)
    path.write_text(json.dumps(held | {"signature": "?"}))
    with pytest.raises(UserError, match="signature"):
        cache.named(PRINT.key)
    held["fingerprint"]["weights"] = "x" * 64  # a folder copied over another's
    path.write_text(json.dumps(held))
    with pytest.raises(UserError, match=r"holds the plan of something else"):
        cache.named(PRINT.key)
    path.unlink()
    with pytest.raises(UserError, match=r"manifest\.json is missing; delete"):
        cache.named(PRINT.key)
    with pytest.raises(UserError, match=r"There is no plan"):
        cache.named("0" * 64)


def test_a_plan_for_another_version_or_gpu_is_refused(tmp_path: Path) -> None:
    stored = PlanCache(tmp_path).obtain(PRINT, _built)
    stored.check_runs("1.7.1.116", 120)
    with pytest.raises(UserError, match=r"built by tensorrt-rtx 1\.7\.1\.116 and 1\.8 is inst"):
        stored.check_runs("1.8", 120)
    with pytest.raises(UserError, match=r"is for sm89, sm120 and this GPU is sm90; export for it"):
        stored.check_runs("1.7.1.116", 90)
    with pytest.raises(UserError, match=r"is for sm89, sm120 and this machine has no GPU"):
        stored.check_runs("1.7.1.116", None)


def _obtain_slowly(folder: Path, begin: Any) -> None:
    def build() -> BuiltPlan:
        with (folder / "builds").open("a") as file:
            file.write("x")
        time.sleep(0.5)  # long enough for the other to arrive
        return _built()

    begin.wait()
    assert PlanCache(folder).obtain(PRINT, build).read() == b"a plan"


@pytest.mark.dist
def test_two_processes_build_a_plan_once(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    begin = spawn.Barrier(2)
    both = [spawn.Process(target=_obtain_slowly, args=(tmp_path, begin)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "builds").read_text() == "x"
