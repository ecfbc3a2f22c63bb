"""Every engine answers as the network does, and says truthfully what it is."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cascade.config.engine import EngineOptions
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade.stage import Stage
from cascade_export.bundle.bundle import Bundle
from cascade_export.bundle.write import export_bundle
from cascade_export.engines import ENGINES, engine_class
from cascade_export.engines.base import EVERY_PRECISION, Engine
from cascade_export.engines.onnxruntime import OnnxRuntimeEngine
from cascade_export.engines.opening import open_engine, open_engines
from cascade_export.engines.version import StageFiles, fixed_length
from cascade_export.engines.weights_engine import Answer, WeightsEngine
from cascade_export.graph.numerics import Numerics, Precision
from cascade_export.settings import ExportOptions

CPU = torch.device("cpu")


@pytest.fixture(params=["torch", "onnxruntime", "openvino"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind that runs on a CPU and is installed."""
    chosen: str = request.param
    pytest.importorskip(chosen)
    return chosen


def inputs(stage: Stage, rows: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """A call's arguments; the rows' texts have different lengths."""
    config, generator = stage.config, torch.Generator().manual_seed(seed)
    image = torch.randn(rows, 3, config.size, config.size, generator=generator)
    mask = torch.arange(length) < 1 + torch.arange(rows)[:, None] % length
    text = torch.randn(rows, length, config.unet.text_width, generator=generator)
    given = {
        "x": image,
        "t": 1000 * torch.rand(rows, generator=generator),
        "text": text * mask[..., None],
        "text_mask": mask,
    }
    if config.low_res is None:
        return given
    return given | {"low_res": image.flip(0), "aug": 500 * torch.rand(rows, generator=generator)}


def rows_of(given: dict[str, Tensor], rows: slice | list[int]) -> dict[str, Tensor]:
    return {name: value[rows] for name, value in given.items()}


@pytest.mark.parametrize(("rows", "length"), [(1, 3), (2, 16), (5, 7)])
def test_answers_are_the_network_s(
    bundle: Bundle, eager: Cascade, kind: str, rows: int, length: int
) -> None:
    for files, stage in zip(bundle.files(), eager.stages, strict=True):
        engine = open_engine(kind, files)
        given = inputs(stage, rows, length)
        with torch.no_grad():
            expected = stage.network(**given)
        # Rounding of fp32 sums in another order; see `cascade_export.parity.limits`.
        difference = (engine(**given) - expected).norm() / expected.norm()
        assert difference <= 1e-5
        assert engine.device == CPU
        assert engine.info.kind == kind


def test_a_row_does_not_depend_on_its_batch(bundle: Bundle, eager: Cascade, kind: str) -> None:
    for files, stage in zip(bundle.files(), eager.stages, strict=True):
        engine = open_engine(kind, files)
        if not engine.info.batch_invariant:
            assert kind == "torch"
            continue
        check_invariance(engine, stage)


@pytest.mark.parametrize(("height", "width"), [(8, 24), (24, 8), (40, 32)])
def test_pictures_of_any_size_are_the_network_s(
    bundle: Bundle, eager: Cascade, kind: str, height: int, width: int
) -> None:
    for files, stage in zip(bundle.files(), eager.stages, strict=True):
        engine = open_engine(kind, files)
        assert engine.side is None
        given = inputs(stage, 2, stage.config.text.max_length)
        generator = torch.Generator().manual_seed(4)
        for name in {"x", "low_res"} & given.keys():
            given[name] = torch.randn(2, 3, height, width, generator=generator)
        with torch.no_grad():
            expected = stage.network(**given)
        answer = engine(**given)
        # As at the stage's own size; see `cascade_export.parity.limits`.
        assert (answer - expected).norm() / expected.norm() <= 1e-5
        if engine.info.batch_invariant:
            alone = [engine(**rows_of(given, slice(i, i + 1))) for i in range(2)]
            assert torch.equal(torch.cat(alone), answer)


def check_invariance(engine: Engine, stage: Stage) -> None:
    """Compare rows in batches of every size, in another order and beside longer texts."""
    # Texts up to the longest: the order in which many tokens are summed shows in the last bits.
    given = inputs(stage, 8, stage.config.text.max_length)
    given["text_mask"] = torch.ones_like(given["text_mask"])
    given["text_mask"][5:, 5:] = False
    given["text"] = torch.randn(given["text"].shape, generator=torch.Generator().manual_seed(1))
    given["text"] *= given["text_mask"][..., None]
    whole = engine(**given)
    assert torch.equal(engine(**given), whole)
    for size in (1, 2, 3, 5, 7):
        parts = [engine(**rows_of(given, slice(i, i + size))) for i in range(0, 8, size)]
        assert torch.equal(torch.cat(parts), whole), size
    order = [3, 1, 4, 0, 5, 2, 7, 6]
    assert torch.equal(engine(**rows_of(given, order)), whole[order])
    short = rows_of(given, slice(5, 8))
    cut = {"text": short["text"][:, :5], "text_mask": short["text_mask"][:, :5]}
    assert torch.equal(engine(**(short | cut)), whole[5:])


def test_threads_and_spinning_change_no_bit(bundle: Bundle, eager: Cascade) -> None:
    files, given = bundle.files()[0], inputs(eager.stages[0], 3, 4)
    plain = open_engine("onnxruntime", files)(**given)
    for options in (EngineOptions(threads=1), EngineOptions(spinning=False)):
        assert torch.equal(open_engine("onnxruntime", files, options=options)(**given), plain)


def test_a_session_has_the_threads_that_it_is_given(bundle: Bundle) -> None:
    files, threads = bundle.files()[0], Path("/proc/self/task")
    if not threads.is_dir():
        pytest.skip("only Linux tells the threads of a process so")

    def started(options: EngineOptions) -> int:
        before = len(list(threads.iterdir()))
        kept.append(open_engine("onnxruntime", files, options=options))
        return len(list(threads.iterdir())) - before

    kept: list[Engine] = []
    started(EngineOptions(threads=1))  # what the package starts once
    assert started(EngineOptions(threads=1)) == 0  # the caller's thread works too
    assert started(EngineOptions(threads=3, spinning=False)) == 2


def test_the_text_graph_runs_by_the_engines_options(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[EngineOptions] = []
    monkeypatch.setattr(
        "cascade_export.engines.text_encoder.open_session", lambda *given: seen.append(given[-1])
    )
    text = bundle.manifest.text.model_copy(update={"form": "graph"})
    graph = Bundle(bundle.folder, bundle.manifest.model_copy(update={"text": text}))
    options = EngineOptions(threads=1, spinning=False)
    graph.cascade(options=options)
    assert seen == [options]


@pytest.mark.slow
def test_the_compiled_engine(
    bundle: Bundle, eager: Cascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Traced and run as PyTorch's own operations: compiling them takes a minute, and is not ours.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    engine = open_engine("torch", bundle.files()[1], options=EngineOptions(compiled=True))
    given = inputs(eager.stages[1], 2, 4)
    with torch.no_grad():
        expected = eager.stages[1].network(**given)
    assert (engine(**given) - expected).norm() / expected.norm() <= 1e-5


@pytest.mark.parametrize(
    ("wrong", "options"),
    [
        ("torch", EngineOptions(threads=2)),
        ("torch", EngineOptions(spinning=False)),
        ("openvino", EngineOptions(spinning=False)),
        ("onnxruntime", EngineOptions(compiled=True)),
        ("tensorrt-rtx", EngineOptions(threads=1)),
    ],
)
def test_options_that_an_engine_has_no_use_for(wrong: str, options: EngineOptions) -> None:
    with pytest.raises(UserError, match=r"give|leave"):
        engine_class(wrong).check_options(options)


def require(kind: str, device: torch.device, precision: Precision = "fp32") -> None:
    engine_class(kind).require(device, Numerics(precision=precision))


def test_devices_and_precisions_that_are_not_there() -> None:
    with pytest.raises(UserError, match="no bf16 on a CPU"):
        require("onnxruntime", CPU, "bf16")
    with pytest.raises(UserError, match="give cpu or cuda"):
        require("onnxruntime", torch.device("mps"))
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(UserError, match="onnxruntime-gpu"):
            require("onnxruntime", torch.device("cuda"))


def test_openvino_s_refusals() -> None:
    pytest.importorskip("openvino")
    with pytest.raises(UserError, match="give cpu"):
        require("openvino", torch.device("cuda"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r"dreamcascade\[openvino\]"):
        require("openvino", CPU)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"dreamcascade\[export\]"):
        require("onnxruntime", CPU)


def test_no_engine_s_package_is_imported_unasked() -> None:
    code = (
        "import sys, cascade_export.bundle.bundle; "
        "assert not {'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_closed_engine_says_so(bundle: Bundle, eager: Cascade, kind: str) -> None:
    engine = open_engine(kind, bundle.files()[0])
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine(**inputs(eager.stages[0], 1, 2))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Names of the stages that were opened, in order."""
    names: list[str] = []
    real = OnnxRuntimeEngine.load

    def spy(files: StageFiles, device: torch.device, options: EngineOptions) -> Answer:
        names.append(files.config.name)
        return real(files, device, options)

    monkeypatch.setattr(OnnxRuntimeEngine, "load", staticmethod(spy))
    return lambda: names


def test_stages_that_wait_leave_the_memory(
    bundle: Bundle, eager: Cascade, opened: Callable[[], list[str]]
) -> None:
    files = bundle.files()
    largest = max(part.weights.stat().st_size for part in files)
    free = open_engines("onnxruntime", files)
    opened().clear()
    tight = open_engines("onnxruntime", files, max_memory=largest)
    assert opened() == []
    for _ in range(2):
        for stage, one, other in zip(eager.stages, free, tight, strict=True):
            given = inputs(stage, 2, 3)
            assert torch.equal(one(**given), other(**given))
            assert one.info == other.info
    assert opened() == ["base16", "sr32", "base16", "sr32"]
    roomy = open_engines("onnxruntime", files, max_memory=2 * largest)
    opened().clear()
    for _ in range(2):
        for stage, engine in zip(eager.stages, roomy, strict=True):
            engine(**inputs(stage, 1, 2))
    assert opened() == ["base16", "sr32"]


def test_a_budget_below_one_stage(bundle: Bundle) -> None:
    with pytest.raises(UserError, match="raise the limit"):
        open_engines("onnxruntime", bundle.files(), max_memory=1000)


def test_texts_are_padded_behind_a_mask() -> None:
    text, mask = torch.ones(2, 3, 4), torch.ones(2, 3, dtype=torch.bool)
    longer, hidden = fixed_length(text, mask, 5)
    assert longer.shape == (2, 5, 4)
    assert torch.equal(longer[:, :3], text)
    assert not longer[:, 3:].any()
    assert hidden.tolist() == [[True, True, True, False, False]] * 2
    assert fixed_length(text, mask, 2)[0] is text


class Zeros(WeightsEngine):
    """A toy: it predicts nothing, of whatever the weights are."""

    kind = "zeros"
    version = "1"
    precisions: ClassVar = {"cpu": EVERY_PRECISION}

    @classmethod
    def load(cls, files: StageFiles, device: torch.device, options: EngineOptions) -> Answer:
        assert load_file(files.weights)
        return lambda feeds: torch.zeros_like(feeds["x"])


@pytest.mark.usefixtures("traced")
def test_a_new_engine_is_a_module_and_an_entry(
    bundle: Bundle, eager: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("zeros")
    monkeypatch.setattr(module, "Zeros", Zeros, raising=False)
    monkeypatch.setitem(sys.modules, "zeros", module)
    monkeypatch.setitem(ENGINES, "zeros", "zeros:Zeros")
    drawn = bundle.cascade("sec-dog", engine="zeros", max_memory=10**7).sample("a dog", [0])
    assert drawn.tensor.shape == (1, 3, 32, 32)
    with pytest.raises(UserError, match="The zeros engine has no option 'threads'"):
        bundle.cascade(engine="zeros", options=EngineOptions(threads=1))
    with pytest.raises(UserError, match="zeros"):  # it is told among those that there are
        bundle.cascade(engine="frob")
    with pytest.raises(UserError, match="The zeros engine does not match eager"):
        export_bundle(eager, tmp_path / "bundle", ExportOptions(engine="zeros"))
