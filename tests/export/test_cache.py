"""A plan is found by everything it follows from, built once, and refused when it is not whole."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from cascade.errors import UserError
from cascade_export.engines.tensorrt.inspect_plan import PlannedMemory
from cascade_export.engines.tensorrt.options import PlanOptions
from cascade_export.engines.tensorrt.plan_cache import (
    BuildFacts,
    BuiltPlan,
    Fingerprint,
    PlanCache,
    StoredPlan,
)
from cascade_export.engines.tensorrt.targets import Gpu

GPU = Gpu(model="NVIDIA A100-SXM4-40GB", driver="550.54.15", cuda="12.8")
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
    "gpu": GPU,
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


@pytest.mark.parametrize("name", Gpu.model_fields)
def test_every_field_of_the_gpu_changes_the_key_of_a_tuned_plan_and_refuses_it(
    tmp_path: Path, name: str
) -> None:
    tuned = PRINT.model_copy(update={"kind": "tensorrt", "weights": None, "gpu": GPU})
    other = GPU.model_copy(update={name: "another"})
    assert tuned.model_copy(update={"gpu": other}).key != tuned.key
    stored = PlanCache(tmp_path).obtain(tuned, _built)
    stored.check_runs("1.7.1.116", 89, GPU)
    with pytest.raises(UserError) as caught:
        stored.check_runs("1.7.1.116", 89, other)
    assert str(caught.value) == (
        f"The plan {stored.folder} was tuned on {GPU} and this is {other}; export again here."
    )


def test_a_tuned_plan_of_no_known_gpu_is_refused_and_one_built_ahead_runs_on_any(
    tmp_path: Path,
) -> None:
    tuned = PRINT.model_copy(update={"kind": "tensorrt"})
    with pytest.raises(UserError, match="tuned on a GPU it does not name"):
        PlanCache(tmp_path).obtain(tuned, _built).check_runs("1.7.1.116", 89, GPU)
    PlanCache(tmp_path).obtain(PRINT, _built).check_runs("1.7.1.116", 89, GPU)


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


DAY = 86400.0


def _plans(folder: Path, days: dict[str, float]) -> list[StoredPlan]:
    """Plans by their weights, last used so many days ago."""
    cache = PlanCache(folder)
    made = [cache.obtain(PRINT.model_copy(update={"weights": one}), _built) for one in days]
    for stored, unused in zip(made, days.values(), strict=True):
        then = time.time() - unused * DAY
        os.utime(stored.folder / "manifest.json", (then, then))
    return made


def _build_another(folder: Path, options: PlanOptions | None = None) -> StoredPlan:
    return PlanCache(folder, options).obtain(PRINT, _built)


def test_plans_that_are_long_unused_go_when_another_is_built(tmp_path: Path) -> None:
    folder = tmp_path / "bundle" / "engines"
    days = PlanOptions().plan_days
    young, used, named, tuned, old = _plans(
        folder, {"young": days - 0.5} | dict.fromkeys(["a", "b", "weights", "d"], days + 1)
    )
    PlanCache(folder).named(used.key)
    (tmp_path / "bundle/bundle.json").write_text(json.dumps({"stages": {"base": named.key}}))
    (tmp_path / "bundle/subjects/dog").mkdir(parents=True)
    (tmp_path / "bundle/subjects/dog/about.json").write_text(json.dumps({"sha256": "weights"}))
    new = _build_another(folder)
    assert {path.name for path in folder.iterdir()} == {
        one.key for one in (young, used, named, tuned, new)
    }
    assert not old.folder.exists()


def test_plans_that_take_too_much_room_go_the_longest_unused_first(tmp_path: Path) -> None:
    longest, longer, today = _plans(tmp_path, {"a": 9, "b": 8, "c": 0.5})
    for stored in (longest, longer, today):
        os.truncate(stored.folder / "plan", 2**29 - 2**20)  # sparse, a little below half a GiB
    _build_another(tmp_path, PlanOptions(plan_gib=2))
    assert longest.folder.exists()  # there is room
    (tmp_path / PRINT.key).rename(tmp_path / "set aside")
    _build_another(tmp_path, PlanOptions(plan_gib=1))
    assert [one.folder.exists() for one in (longest, longer, today)] == [False, True, True]


def test_what_is_in_use_today_or_locked_or_not_whole_stays(tmp_path: Path) -> None:
    today, locked, harmed = _plans(tmp_path, {"a": 0.9, "b": 99, "c": 99})
    os.truncate(today.folder / "plan", 2**31)
    (harmed.folder / "manifest.json").write_text("{")
    os.utime(harmed.folder / "manifest.json", (0, 0))
    with FileLock(tmp_path / f".{locked.key}.lock"):
        _build_another(tmp_path, PlanOptions(plan_gib=1, plan_days=1))
    assert all(one.folder.exists() for one in (today, locked, harmed))


def test_locks_go_with_the_build_and_are_not_waited_for_without_end(tmp_path: Path) -> None:
    cache = PlanCache(tmp_path, wait=0.01)
    with FileLock(tmp_path / f".{PRINT.key}.lock"), pytest.raises(UserError) as caught:
        cache.obtain(PRINT, _never)
    assert str(caught.value) == (
        f"Another process has been building {tmp_path / PRINT.key} for 0 s; wait until it is done, "
        "or end it, and start again."
    )
    _plans(tmp_path, {"old": 99})
    cache.obtain(PRINT, _built)
    assert [path.name for path in tmp_path.iterdir()] == [PRINT.key]


def test_a_plan_in_a_folder_that_may_only_be_read_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = PlanCache(tmp_path)
    cache.obtain(PRINT, _built)

    def refused(*arguments: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", refused)
    assert cache.named(PRINT.key).read() == b"a plan"
