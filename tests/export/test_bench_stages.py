"""`cascade bench stages`: what is timed, what is refused, and how it is told."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from cascade.config.stage import StageConfig, TextConfig
from cascade.errors import UserError
from cascade.sampling import prompt_table
from cascade.stage import Stage
from cascade.text.t5 import TextEmbedding
from cascade_export.bench.peer import DiffusersNetwork
from cascade_export.bench.stages import BenchSettings, StageBench, bench_stages, time_first_picture
from cascade_export.bench.tables import bench_tables, write_bench
from cascade_export.bundle.bundle import Bundle
from cascade_export.graph.probe import tensor_cases

QUICK = BenchSettings(
    batches=(1, 2), against=("eager",), rounds=2, repeats=2, steps=1, first_picture=False
)


def test_every_stage_batch_and_provider_has_its_row(bundle: Bundle, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    result = bench_stages(bundle, QUICK, lambda *told: seen.append(told))
    rows = [(one.stage, one.batch, one.provider) for one in result.latencies]
    assert rows == [
        (stage, batch, provider)
        for stage in ("base16", "sr32")
        for batch in (1, 2)
        for provider in ("engine", "eager")
    ]
    for one in result.latencies:
        assert 0 < one.p50 <= one.p95
        assert one.throughput == pytest.approx(1000 * one.batch / one.p50)
        assert one.calls == 4
    assert seen == [("calls of the stages", done, 4) for done in range(1, 5)]
    path = write_bench(result, tmp_path)
    assert StageBench.model_validate_json(path.read_bytes()) == result
    assert path.with_suffix(".md").read_text(encoding="utf-8") == bench_tables(result)


def test_the_tables_compare_with_eager() -> None:
    row = {"stage": "base16", "batch": 1, "p95": 20.0, "throughput": 1.0, "calls": 4}
    values = {
        "cascade": "tiny",
        "engine": "onnxruntime",
        "precision": "fp32",
        "environment": {"machine": "a test", "torch": "2.13"},
        "load_average": [0.5, 1.0],
        "settings": {},
        "latencies": [
            row | {"provider": "engine", "p50": 5.0},
            row | {"provider": "eager", "p50": 12.0},
        ],
        "first_pictures": [{"provider": "engine", "seconds": 1.0, "peak_mebibytes": 300.0}],
    }
    told = bench_tables(StageBench.model_validate_json(json.dumps(values)))
    assert "| base16 | 1 | **onnxruntime** | 5.0 | 20.0 | 1.00 | 2.40 |" in told
    assert "| **onnxruntime** | 1.0 | 300 |" in told
    assert "a test (torch 2.13)" in told
    assert "load average 0.5 before and 1.0 after" in told


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("provider", ["engine", "eager"])
def test_the_first_picture_comes_from_a_fresh_process(bundle: Bundle, provider: str) -> None:
    first = time_first_picture(bundle.folder, provider, QUICK)
    assert first.provider == provider
    assert first.seconds > 0
    assert 50 < first.peak_mebibytes < 20_000  # PyTorch alone takes more than the first


@pytest.mark.parametrize(
    ("batches", "against", "told"),
    [
        ("1,x", "eager", "--batch 1,x is no list of numbers"),
        ("0", "eager", "--batch 0"),
        ("1", "eager,fast", "--against eager,fast"),
    ],
)
def test_malformed_lists_are_refused(batches: str, against: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        BenchSettings.of_lists(batches, against, 2, None, "cpu")


def test_lists_are_read() -> None:
    settings = BenchSettings.of_lists("1, 4", "diffusers,eager", 3, 7, "cpu")
    assert settings.batches == (1, 4)
    assert settings.against == ("eager", "diffusers")
    assert BenchSettings.of_lists("1", "", 2, None, "cpu").against == ()


def test_diffusers_is_refused_where_it_has_no_such_network(bundle: Bundle) -> None:
    settings = BenchSettings(against=("diffusers",), first_picture=False)
    with pytest.raises(UserError, match="diffusers cannot express"):
        bench_stages(bundle, settings)


@pytest.mark.parametrize("name", ["if-i-m", "if-ii-m"])
def test_diffusers_network_answers_as_ours(name: str, repository: Path, tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    config = StageConfig.read(repository / "configs" / f"{name}.toml")
    levels = len(config.unet.channels)
    small = {
        "channels": (32,) * (levels - 1) + (64,),
        "blocks": (1,) * levels,
        "head_channels": 16,
        "text_width": 32,
        "context_width": 64,
        "time_width": 64,
        "pool_heads": 4,
    }
    unet = config.unet.model_copy(update=small)
    low_res = config.low_res and config.low_res.model_copy(update={"size": 8})
    size = 32 if low_res else 16
    config = config.model_copy(update={"unet": unet, "size": size, "low_res": low_res})
    stage = Stage.build(config)
    with torch.no_grad():
        for parameter in stage.network.parameters():
            if not parameter.any():
                parameter.normal_(0.0, 0.05)
    stage.save(tmp_path)
    theirs = DiffusersNetwork(config, tmp_path / "model.safetensors", "fp32", torch.device("cpu"))
    table = prompt_table(RandomText(), ["a"], config)
    stage.network.eval()
    # Not at smaller sides: there a group of the coarsest norm has two values, whose difference
    # magnifies every rounding.
    for case in tensor_cases(config, table, ["a"], dynamic=False):
        ours = case.answer(stage.network)
        # Both are fp32 sums of the same products in another order.
        torch.testing.assert_close(case.answer(theirs), ours, rtol=1e-4, atol=1e-4)


class RandomText:
    """A text encoder that knows no words."""

    width = 32

    def embed(self, prompts: Sequence[str], text: TextConfig) -> TextEmbedding:
        shape = (len(prompts), text.max_length)
        generator = torch.Generator().manual_seed(len(prompts[0]))
        embedding = torch.randn(*shape, self.width, generator=generator)
        return TextEmbedding(embedding, torch.ones(shape, dtype=torch.bool))
