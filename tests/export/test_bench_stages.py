"""`cascade bench stages`: what is timed, what is refused, and the first picture."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade.config.engine import EngineOptions
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.results import Result
from cascade_bench import stages
from cascade_bench.harness import cases_of
from cascade_bench.networks import Made, Weights
from cascade_bench.settings import StageBenchConfig
from cascade_bench.stages import AGAINST, bench_stages, first_picture
from cascade_bench.tables import tables
from cascade_export.bundle.bundle import Bundle
from cascade_export.engines.onnxruntime import OnnxRuntimeEngine
from cascade_export.engines.version import StageFiles
from cascade_export.engines.weights_engine import Answer

Command = Callable[..., Any]

QUICK = StageBenchConfig(
    batches=(1, 2), against="eager", rounds=2, repeats=1, steps=1, first_picture=False
)


def test_every_stage_batch_and_provider_is_timed(bundle: Bundle, tmp_path: Path) -> None:
    result, whole, first = bench_stages(bundle, QUICK, tmp_path)
    assert whole
    assert first == []
    cases = cases_of(result)
    assert [case.case for case in cases] == ["base16 1", "base16 2", "sr32 1", "sr32 2"]
    for case in cases:
        assert [row.provider for row in case.rows] == ["engine", "eager"]
        assert all(row.status == "ok" for row in case.rows), case.rows
    told = [table.markdown() for table in tables(result)]
    assert [text.partition(",")[0] for text in told] == ["| base16", "| sr32"]
    (path,) = tmp_path.glob("stages*.json")
    assert Result.load(path) == result


def test_the_engine_s_settings_reach_every_session(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[EngineOptions] = []
    real = OnnxRuntimeEngine.load

    def spy(files: StageFiles, device: torch.device, options: EngineOptions) -> Answer:
        seen.append(options)
        return real(files, device, options)

    monkeypatch.setattr(OnnxRuntimeEngine, "load", staticmethod(spy))
    options = EngineOptions(threads=1, spinning=False)
    config = QUICK.model_copy(update={"engines": options, "batches": (1,)})
    bench_stages(bundle, config, tmp_path)
    assert seen
    assert set(seen) == {options}
    wrong = config.model_copy(update={"engines": EngineOptions(compiled=True)})
    with pytest.raises(UserError, match="no option 'compiled'"):
        bench_stages(bundle, wrong, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_command_takes_threads_as_sampling_does(command: Command, bundle: Bundle) -> None:
    shown = command("bench", "stages", bundle.folder, "--threads", 0, "--no-spinning")
    assert shown.status == 2
    assert "--threads" in shown.err


def test_what_answers_otherwise_gets_no_time(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def double(config: StageConfig, weights: Weights) -> Made:
        network = AGAINST["eager"](config, weights).network
        return Made(lambda *given: 2 * network(*given))  # type: ignore[arg-type]

    monkeypatch.setitem(AGAINST, "double", double)
    config = QUICK.model_copy(update={"against": "double,diffusers", "batches": (1,)})
    result, _, _ = bench_stages(bundle, config, tmp_path)
    for case in cases_of(result):
        statuses = {row.provider: row.status for row in case.rows}
        assert statuses == {"engine": "ok", "double": "wrong", "diffusers": "cannot"}
        row = case.find("forward", "diffusers")
        assert row is not None
        assert "diffusers cannot express" in row.reason


def test_first_pictures_stand_in_the_record(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"seconds": 1.5, "peak": 300.0, "device": None}
    monkeypatch.setattr(stages, "first_picture", lambda *_: found)
    config = QUICK.model_copy(update={"first_picture": True, "batches": (1,)})
    result, _, (table,) = bench_stages(bundle, config, tmp_path)
    assert result.figures["first pictures"] == {"engine": found, "eager": found}
    assert "| engine | 1.5 | 300 |" in table.markdown()
    (path,) = tmp_path.glob("stages*.json")
    assert json.loads(path.read_text())["figures"]["first pictures"]["eager"] == found


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("provider", ["engine", "eager"])
def test_the_first_picture_comes_from_a_fresh_process(bundle: Bundle, provider: str) -> None:
    quick = QUICK.model_copy(update={"engines": EngineOptions(threads=1)})
    first = first_picture(bundle.folder, provider, quick)
    assert first["seconds"] is not None
    assert first["seconds"] > 0
    assert first["peak"] is not None
    assert 50 < first["peak"] < 20_000  # PyTorch alone takes more than the first


@pytest.mark.parametrize("against", ["eager,fast", ",", "Eager"])
def test_malformed_lists_are_refused(bundle: Bundle, against: str, tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"against": against})
    with pytest.raises(UserError, match=f"--against {against} is no list of eager, compiled"):
        bench_stages(bundle, config, tmp_path)
    assert not list(tmp_path.iterdir())
