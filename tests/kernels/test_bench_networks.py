"""`cascade bench train` and `sample`: equal answers first, then numbers that belong to them."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn

from cascade.config.train import TrainConfig
from cascade.config.unet import UNetConfig
from cascade.data.batch import crop_sides
from cascade.errors import UserError
from cascade.training.flops import training_flops
from cascade.training.learner import Learner
from cascade.training.state import Progress
from cascade_bench import networks, sample
from cascade_bench.harness import cases_of
from cascade_bench.kernels.shapes import stage_of
from cascade_bench.networks import Inputs, Made, Weights, narrowed, random_weights
from cascade_bench.ours import ours
from cascade_bench.providers import PROVIDERS
from cascade_bench.sample import bench_sample, write_cascade
from cascade_bench.settings import SampleBenchConfig, TrainBenchConfig
from cascade_bench.train import bench_train

TINY = {"width": 32, "side": 16, "rounds": 2, "repeats": 1, "batch": 1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "precision"), [("if-i-m", "fp32"), ("if-ii-m", "bf16")], ids=str
)
def test_a_network_is_checked_timed_and_weighed(
    network: str, precision: str, tmp_path: Path
) -> None:
    pytest.importorskip("diffusers")
    config = TrainBenchConfig.model_validate(
        TINY | {"networks": (network,), "against": "eager,diffusers", "precision": precision}
    )
    result, whole = bench_train(config, tmp_path)
    assert whole
    (case,) = cases_of(result)
    assert (case.ours, case.baseline) == ("eager", "diffusers")
    assert [(row.mode, row.provider) for row in case.rows] == [
        (mode, provider) for mode in ("forward", "step") for provider in ("eager", "diffusers")
    ]
    for row in case.rows:
        assert row.status == "ok", row.reason
        assert row.peak
        assert row.timing is not None
        assert len(row.timing.cold) == 2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("imagen_pytorch") is None, reason="imagen-pytorch is not installed")
@pytest.mark.parametrize("network", ["if-i-m", "if-ii-m"])
def test_imagen_pytorch_is_trained_by_its_trainer(network: str, tmp_path: Path) -> None:
    config = TrainBenchConfig.model_validate(
        TINY | {"networks": (network,), "against": "eager,imagen-pytorch"}
    )
    (case,) = cases_of(bench_train(config, tmp_path)[0])
    for mode in ("forward", "step"):
        ours, theirs = (case.find(mode, name) for name in ("eager", "imagen-pytorch"))
        assert ours is not None
        assert theirs is not None
        assert theirs.status == "ok", theirs.reason
        assert theirs.flops != ours.flops
        # Another network is no alternative.
        assert case.best(mode) is None


@pytest.mark.parametrize("compiled", [None, pytest.param("default", marks=pytest.mark.slow)])
def test_the_step_is_the_training_loop_s(
    compiled: Literal["default"] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    made_of: list[TrainConfig] = []
    done: list[Progress] = []
    step, init = Learner.step, Learner.__init__

    def noted(self: Learner, *given: Any) -> None:
        made_of.append(given[3])
        init(self, *given)

    def stepped(self: Learner, batches: Any, at: Progress) -> bool:
        done.append(at)
        return step(self, batches, at)

    monkeypatch.setattr(Learner, "__init__", noted)
    monkeypatch.setattr(Learner, "step", stepped)
    monkeypatch.setitem(PROVIDERS, "here", partial(ours, compiled=compiled))  # type: ignore[arg-type]
    config = {"networks": ("mini-base64",), "against": "here", "width": None, "modes": ("step",)}
    (case,) = cases_of(bench_train(TrainBenchConfig.model_validate(TINY | config), tmp_path)[0])
    (run,) = made_of
    assert run.compile == (compiled is not None)
    assert [at.step for at in done] == list(range(len(done)))
    (row,) = case.rows
    assert (row.mode, case.images) == ("step", 1)
    assert row.flops == training_flops(narrowed(stage_of("mini-base64"), None, 16))


def test_narrowed_to_a_side_a_stage_is_trained_on_whole_pictures_of_it() -> None:
    assert crop_sides(stage_of("imagen-sr1024")) == (256, 64)
    assert crop_sides(narrowed(stage_of("imagen-sr1024"), 32, 64)) == (64, 16)


@pytest.mark.parametrize("name", ["if-i-m", "if-ii-m"])
def test_diffusers_network_answers_as_ours(name: str) -> None:
    pytest.importorskip("diffusers")
    config = narrowed(stage_of(name), 32, 16 if name == "if-i-m" else 32)
    blocks = {"blocks": (1,) * len(config.unet.channels), "text_width": 32}
    unet = UNetConfig.parse(config.unet.model_dump() | blocks, "here")
    config = config.model_copy(update={"unet": unet})
    weights = random_weights(unet)
    inputs = Inputs.draw(config, 2, torch.device("cpu"))
    with torch.no_grad():
        ours, theirs = (
            inputs.call(PROVIDERS[provider](config, weights).network.eval())
            for provider in ("eager", "diffusers")
        )
    # Both are fp32 sums of the same products in another order.
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-4)


def test_nothing_is_timed_whose_answers_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a new provider is one function and one entry."""

    def spoilt(config: networks.StageConfig, weights: Weights) -> Made:
        made = PROVIDERS["eager"](config, weights)
        weight = made.network.get_parameter("conv_out.weight")
        made.network.conv_out.weight = nn.Parameter(1.01 * weight.detach())
        return made

    monkeypatch.setitem(PROVIDERS, "spoilt", spoilt)  # type: ignore[arg-type]
    config = TrainBenchConfig.model_validate(
        TINY | {"networks": ("mini-base64",), "against": "eager,spoilt", "width": None}
    )
    (case,) = cases_of(bench_train(config, tmp_path)[0])
    assert {row.provider: row.status for row in case.rows} == {"eager": "ok", "spoilt": "wrong"}
    assert all("times the error allowed" in row.reason for row in case.rows if row.reason)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"networks": ("if-v",)}, "no configuration 'if-v'; there are .*mini-base64"),
        ({"against": "eager,fast"}, "--against eager,fast is no list of eager, compiled"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        bench_train(TrainBenchConfig.model_validate(TINY | change), tmp_path)
    assert not list(tmp_path.iterdir())


def test_whole_pictures_are_compared_before_they_are_timed(
    tiny_cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grey(asked: sample.Asked) -> sample.Draw:
        draw = sample.eager(asked)
        return lambda: {name: 0 * drawn for name, drawn in draw().items()}

    monkeypatch.setitem(sample.PROVIDERS, "grey", grey)  # type: ignore[arg-type]
    config = SampleBenchConfig(steps=2, rounds=2, against="eager,grey,engine")
    (case,) = cases_of(bench_sample(tiny_cascade, None, config, tmp_path)[0])
    assert case.case == "tiny"
    statuses = {row.provider: row.status for row in case.rows}
    assert statuses == {"eager": "ok", "grey": "wrong", "engine": "cannot"}


@pytest.mark.slow
def test_diffusers_draws_the_same_picture_of_a_cascade_of_its_shape(tmp_path: Path) -> None:
    pytest.importorskip("diffusers")
    write_cascade(tmp_path / "cascade", smaller=4)
    config = SampleBenchConfig(steps=2, rounds=2, against="eager,diffusers")
    (case,) = cases_of(bench_sample(tmp_path / "cascade", None, config, tmp_path)[0])
    for row in case.rows:
        assert row.status == "ok", row.reason
