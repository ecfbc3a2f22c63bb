"""A picture is drawn with the weights of its beginning, whatever is swapped meanwhile."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cascade.config.engine import EngineOptions
from cascade.config.sample import SampleOptions
from cascade.diffusion.noise import Noise
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade.stage import Stage
from cascade_export.bundle.bundle import Bundle
from cascade_export.engines.base import Engine
from cascade_export.engines.opening import open_engine, open_engines
from cascade_export.engines.pins import Pins
from cascade_export.engines.version import StageFiles

QUIET = EngineOptions(threads=1, spinning=False)
OPTIONS = SampleOptions(steps=6, batch_size=2)


@pytest.fixture
def call(base: StageFiles) -> dict[str, Tensor]:
    """A call's arguments."""
    generator = torch.Generator().manual_seed(0)
    size, width = base.config.size, base.config.unet.text_width
    return {
        "x": torch.randn(1, 3, size, size, generator=generator),
        "t": torch.tensor([300.0]),
        "text": torch.randn(1, 4, width, generator=generator),
        "text_mask": torch.ones(1, 4, dtype=torch.bool),
    }


def engine_of(stage: Stage) -> Engine:
    engine = stage.denoiser.network
    assert isinstance(engine, Engine)
    return engine


def in_another_thread(work: Callable[[], object]) -> None:
    """Do something in another thread, and wait for it."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("kind", ["onnxruntime", "torch"])
@pytest.mark.parametrize("roomy", [True, False])
@pytest.mark.parametrize("at", ["base16", pytest.param("sr32", marks=pytest.mark.slow)])
def test_a_swap_in_the_middle_of_a_picture_is_the_next_picture_s(
    bundle: Bundle, base: StageFiles, tuned: StageFiles, kind: str, roomy: bool, at: str
) -> None:
    # With room for one stage every call in the other one's place opens its weights again.
    limit = None if roomy else max(files.weights.stat().st_size for files in bundle.files())
    cascade = bundle.cascade(engine=kind, max_memory=limit)
    before = cascade.sample("a dog", [1, 2], options=OPTIONS)
    expected = bundle.cascade("sec-dog", engine=kind).sample("a dog", [1, 2], options=OPTIONS)
    engine = engine_of(cascade.stages[0])

    def swap(name: str, step: int, of: int) -> None:
        if (name, step, of) == (at, 3, 6):
            in_another_thread(lambda: engine.swap(tuned.weights))

    during = cascade.sample("a dog", [1, 2], on_step=swap, options=OPTIONS)
    assert engine.info.weights == tuned.weights_sha256
    after = cascade.sample("a dog", [1, 2], options=OPTIONS)
    for name, images in before.stages.items():
        assert torch.equal(during.stages[name], images), name
    assert torch.equal(after.stages["base16"], expected.stages["base16"])
    assert not torch.equal(after.stages["base16"], before.stages["base16"])


def test_batches_behind_a_swap_have_the_new_weights(bundle: Bundle, tuned: StageFiles) -> None:
    cascade, tuned_cascade = bundle.cascade(), bundle.cascade("sec-dog")
    first = cascade.sample("a dog", [1], options=OPTIONS).stages["base16"]
    second = tuned_cascade.sample("a dog", [2], options=OPTIONS).stages["base16"]
    engine = engine_of(cascade.stages[0])

    def swap(name: str, step: int, of: int) -> None:
        if (name, step) == ("base16", 3):
            engine.swap(tuned.weights)

    drawn = cascade.sample("a dog", [1, 2], steps=6, batch_size=1, on_step=swap)
    assert torch.equal(drawn.stages["base16"], torch.cat([first, second]))


def test_one_stage_drawn_alone_is_pinned_too(bundle: Bundle, tuned: StageFiles) -> None:
    cascade = bundle.cascade()
    stage, table = cascade.stages[0], cascade.prompts(["a dog"])
    engine = engine_of(stage)

    def drawn(on_step: Callable[[int, Tensor, object], None] | None = None) -> Tensor:
        return stage.sample(table.rows(["a dog"]), table.rows([None]), Noise([5]), on_step=on_step)

    before = drawn()

    def swap(index: int, x: Tensor, denoised: object) -> None:
        if index == 1:
            engine.swap(tuned.weights)

    assert torch.equal(drawn(swap), before)
    assert not torch.equal(drawn(), before)


def test_a_pinned_stage_keeps_all_but_the_network(bundle: Bundle, eager: Cascade) -> None:
    cascade = bundle.cascade()
    stage = cascade.stages[0]
    with stage.pinned() as pinned, pinned.pinned() as again:
        assert again is pinned
        assert pinned.denoiser.network is not stage.denoiser.network
        assert pinned.fingerprint() == stage.fingerprint()
        assert (pinned.config, pinned.size, pinned.device) == (
            stage.config,
            stage.size,
            stage.device,
        )
    with eager.stages[0].pinned() as module:
        assert module is eager.stages[0]


def test_pins_of_the_same_weights_are_one_network(
    base: StageFiles, tuned: StageFiles, call: dict[str, Tensor]
) -> None:
    engine = open_engine("onnxruntime", base, options=QUIET)
    with engine.pinned() as first, engine.pinned() as second:
        assert first is second
        expected = first(**call)
        engine.swap(tuned.weights)
        with engine.pinned() as other:
            assert other is not first
            assert not torch.equal(other(**call), expected)
            engine.swap(base.weights)
            with engine.pinned() as third:
                assert third is first
        with pytest.raises(RuntimeError, match="closed"):
            other(**call)  # nobody holds it
    with engine.pinned() as fourth:
        assert fourth is first
        engine.close()
        assert torch.equal(fourth(**call), expected)
    with pytest.raises(RuntimeError, match="closed"):
        fourth(**call)
    with pytest.raises(RuntimeError, match="closed"), engine.pinned():
        pass


def test_under_a_limit_pinned_weights_leave_and_come_back(
    bundle: Bundle, base: StageFiles, tuned: StageFiles, call: dict[str, Tensor]
) -> None:
    limit = max(files.weights.stat().st_size for files in bundle.files())
    (engine,) = open_engines("onnxruntime", [base], options=QUIET, max_memory=limit)
    plain = open_engine("onnxruntime", base, options=QUIET)(**call)
    other = open_engine("onnxruntime", tuned, options=QUIET)(**call)
    with engine.pinned() as held:
        engine.swap(tuned.weights)
        for _ in range(2):
            assert torch.equal(engine(**call), other)
            assert torch.equal(held(**call), plain)
    with pytest.raises(RuntimeError, match="closed"):
        held(**call)
    assert torch.equal(engine(**call), other)


def test_weights_that_come_back_are_proven(
    bundle: Bundle,
    base: StageFiles,
    tuned: StageFiles,
    call: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    limit = max(files.weights.stat().st_size for files in bundle.files())
    first, second = open_engines("onnxruntime", [base, base], options=QUIET, max_memory=limit)
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(tuned.weights.read_bytes())
    first.swap(mine)
    first(**call)
    second(**call)
    mine.write_bytes(base.weights.read_bytes())
    with pytest.raises(UserError, match=r"mine\.safetensors was changed or deleted"):
        first(**call)
    mine.unlink()
    with pytest.raises(UserError, match=r"mine\.safetensors was changed or deleted"):
        first(**call)
    first.swap(tuned.weights)  # the same weights from elsewhere
    assert torch.equal(first(**call), open_engine("onnxruntime", tuned, options=QUIET)(**call))


@pytest.mark.parametrize("roomy", [True, False])
def test_swaps_of_two_threads_leave_files_and_weights_of_one(
    bundle: Bundle, base: StageFiles, tuned: StageFiles, call: dict[str, Tensor], roomy: bool
) -> None:
    limit = None if roomy else max(files.weights.stat().st_size for files in bundle.files())
    (engine,) = open_engines("torch", [base], max_memory=limit)
    answers = {files.weights_sha256: open_engine("torch", files)(**call) for files in (base, tuned)}
    start = threading.Barrier(2)

    def swap(*order: StageFiles) -> None:
        for files in order:
            start.wait(60)
            engine.swap(files.weights)

    threads = [
        threading.Thread(target=swap, args=order)
        for order in ((base, tuned, base), (tuned, base, tuned))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert torch.equal(engine(**call), answers[engine.info.weights])


class Counted:
    """Counts how often it is freed."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.freed = 0

    def free(self) -> None:
        self.freed += 1


def test_what_nobody_holds_is_freed_once() -> None:
    first, second = Counted("a"), Counted("b")
    pins = Pins("counted", first)
    with pins.pinned() as one:
        with pins.pinned() as two:
            assert one is two is first
            pins.replace(second)
            assert first.freed == 0
        assert first.freed == 0
        assert pins.again("a") is first
        assert second.freed == 1
    assert first.freed == 0  # it serves
    assert pins.again("b") is None
    pins.replace(None)
    pins.replace(None)
    assert (first.freed, second.freed) == (1, 1)
