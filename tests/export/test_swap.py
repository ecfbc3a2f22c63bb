"""One engine, many fine-tunes: A -> B -> A restores A to the bit; a wrong file changes nothing."""

import shutil
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cascade.config.engine import EngineOptions
from cascade.errors import UserError
from cascade.stage import Stage
from cascade_export.bundle.bundle import Bundle
from cascade_export.engines.opening import open_engine, open_engines
from cascade_export.engines.swap_check import check_swap
from cascade_export.engines.version import StageFiles


@pytest.fixture(params=["torch", "onnxruntime", "openvino"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind that runs on a CPU and is installed."""
    chosen: str = request.param
    pytest.importorskip(chosen)
    return chosen


@pytest.fixture
def call(base: StageFiles) -> dict[str, Tensor]:
    """A call's arguments."""
    generator = torch.Generator().manual_seed(0)
    size = base.config.size
    return {
        "x": torch.randn(2, 3, size, size, generator=generator),
        "t": torch.tensor([100.0, 700.0]),
        "text": torch.randn(2, 4, base.config.unet.text_width, generator=generator),
        "text_mask": torch.ones(2, 4, dtype=torch.bool),
    }


def test_there_and_back(
    base: StageFiles, tuned: StageFiles, call: dict[str, Tensor], kind: str
) -> None:
    engine = open_engine(kind, base)
    first, before = engine(**call), engine.info
    engine.swap(tuned.weights)
    second = engine(**call)
    assert torch.equal(second, open_engine(kind, tuned)(**call))
    # A fine-tune's answers are another picture's, not another rounding's.
    assert (second - first).norm() / first.norm() > 0.01
    assert engine.info.weights == tuned.weights_sha256 != before.weights
    assert engine.info != before
    engine.swap(base.weights)
    assert torch.equal(engine(**call), first)
    assert engine.info == before


def test_a_stage_is_known_by_the_weights_of_now(
    base: StageFiles, tuned: StageFiles, kind: str
) -> None:
    engine = open_engine(kind, base)
    stage = Stage(base.config, engine)
    before = stage.fingerprint()
    with stage.pinned() as held:
        engine.swap(tuned.weights)
        assert stage.fingerprint() == Stage(base.config, open_engine(kind, tuned)).fingerprint()
        assert held.fingerprint() == before != stage.fingerprint()


def test_a_waiting_stage_swaps_too(
    bundle: Bundle, base: StageFiles, tuned: StageFiles, call: dict[str, Tensor]
) -> None:
    limit = max(files.weights.stat().st_size for files in bundle.files())
    waiting = open_engines("onnxruntime", [base], max_memory=limit)[0]
    waiting.swap(tuned.weights)
    expected = open_engine("onnxruntime", tuned)(**call)
    assert torch.equal(waiting(**call), expected)
    waiting.swap(base.weights)
    assert torch.equal(waiting(**call), open_engine("onnxruntime", base)(**call))


def spoil(path: Path, how: str) -> None:
    """Write a file that does not fit, one way or another."""
    tensors = load_file(path)
    name = "conv_in.weight"
    if how == "missing":
        del tensors[name]
    elif how == "extra":
        tensors["conv_in.lora"] = torch.zeros(2)
    elif how == "shape":
        tensors[name] = tensors[name][:1].contiguous()
    elif how == "type":
        tensors[name] = tensors[name].half()
    save_file(tensors, path)
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("missing", "conv_in.weight"),
        ("extra", "conv_in.lora"),
        ("shape", "conv_in.weight"),
        ("type", "conv_in.weight"),
        ("truncated", "damaged"),
        ("absent", "missing"),
    ],
)
def test_wrong_weights_are_refused_and_the_old_ones_serve_on(
    base: StageFiles,
    tuned: StageFiles,
    call: dict[str, Tensor],
    tmp_path: Path,
    kind: str,
    how: str,
    named: str,
) -> None:
    path = tmp_path / "wrong.safetensors"
    if how != "absent":
        shutil.copy(tuned.weights, path)
        spoil(path, how)
    engine = open_engine(kind, base)
    first, before = engine(**call), engine.info
    with pytest.raises(UserError, match=named):
        engine.swap(path)
    assert torch.equal(engine(**call), first)
    assert engine.info == before


def test_calls_of_other_threads_see_one_fine_tune_or_the_other(
    base: StageFiles, tuned: StageFiles, call: dict[str, Tensor]
) -> None:
    # Idle threads of four callers would otherwise spin on the cores that the others need.
    options = EngineOptions(threads=1, spinning=False)
    engine = open_engine("onnxruntime", base, options=options)
    answers = {
        base.weights_sha256: engine(**call),
        tuned.weights_sha256: open_engine("onnxruntime", tuned)(**call),
    }
    wrong: list[Tensor] = []
    done = threading.Event()

    def work() -> None:
        while not done.is_set():
            answer = engine(**call)
            if not any(torch.equal(answer, known) for known in answers.values()):
                wrong.append(answer)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        for files in (tuned, base):
            engine.swap(files.weights)
            assert torch.equal(engine(**call), answers[files.weights_sha256])
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong


def test_weights_that_were_not_taken_are_noticed(base: StageFiles, tuned: StageFiles) -> None:
    check_swap(open_engine("onnxruntime", tuned), open_engine("torch", tuned), tuned)
    stale = open_engine("onnxruntime", base)
    with pytest.raises(UserError, match="did not take them"):
        check_swap(stale, open_engine("torch", tuned), tuned)
