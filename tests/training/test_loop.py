"""One step of the loop against its formula, and the ways to run it that change nothing."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from cascade.config.stage import StageConfig
from cascade.config.train import ObjectiveConfig, TrainConfig
from cascade.data.batch import Batch
from cascade.data.stream import Samples
from cascade.diffusion.denoiser import Conditioning
from cascade.diffusion.noise import Noise
from cascade.diffusion.objective import RowLosses
from cascade.errors import UserError
from cascade.model.precision import _tell
from cascade.stage import Stage
from cascade.text.prompts import PromptTable
from cascade.training import learner
from cascade.training.averages import Averages
from cascade.training.checkpoint import Checkpoints
from cascade.training.distributed import ALONE, Processes
from cascade.training.losses import Losses
from cascade.training.objective import make_objective
from cascade.training.optim import make_optimizer
from cascade.training.report import read_log
from cascade.training.state import TrainState
from cascade.training.validation import Look

Run = Callable[..., Stage]


def _weights(stage: Stage) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in stage.network.parameters()])


def test_a_step_is_adamws_on_the_clipped_gradient_of_the_mean_row_loss(
    tmp_path: Path,
    run: Run,
    samples: Samples,
    table: PromptTable,
    stage_config: StageConfig,
    train_config: TrainConfig,
) -> None:
    trained = run(tmp_path, steps=1)

    stage = Stage.build(stage_config, seed=0)
    batch = samples.rows(range(4))
    losses = []
    for row in range(4):
        # Imagen appendix A by hand: z_t = alpha x + sigma eps, v = alpha eps - sigma x.
        stream = np.random.default_rng(batch.seeds[row])
        u = torch.tensor(stream.random(), dtype=torch.float64)
        x0 = batch.images[row]
        eps = torch.from_numpy(stream.standard_normal((3, 8, 8), dtype=np.float32))
        alpha, sigma = (u * torch.pi / 2).cos().float(), (u * torch.pi / 2).sin().float()
        text = table.rows(batch.prompts[row : row + 1])
        z = (alpha * x0 + sigma * eps)[None]
        v = stage.network(z, 1000 * u[None].float(), text.embedding, text.mask)[0]
        losses.append((v - (alpha * eps - sigma * x0)).square().mean())
    loss = torch.stack(losses).mean()
    loss.backward()
    optimizer = train_config.optimizer
    norm = nn.utils.clip_grad_norm_(stage.network.parameters(), optimizer.max_grad_norm)
    make_optimizer(optimizer, stage.network.parameters()).step()

    status = read_log(tmp_path / "log.jsonl")[0]
    # Single precision through a few layers; the VE form of the loss multiplies by 1/sigma.
    assert status["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert status["loss/mse"] == pytest.approx(loss.item(), rel=1e-4)
    assert status["grad_norm"] == pytest.approx(norm.item(), rel=1e-3)
    assert (status["step"], status["images"]) == (1, 4)
    torch.testing.assert_close(_weights(trained), _weights(stage), rtol=0, atol=1e-5)


@dataclass(frozen=True)
class Even:
    """The same rows, whose pictures are of one value from a position on."""

    samples: Samples
    value: float
    position: int = 0

    def rows(self, positions: Sequence[int]) -> Batch:
        batch = self.samples.rows(positions)
        if self.position > max(positions):
            return batch
        return replace(batch, images=torch.full_like(batch.images, self.value))


def test_training_lowers_the_loss(tmp_path: Path, run: Run, samples: Samples) -> None:
    changes = {"steps": 60, "log_every": 20, "checkpoint_every": 60}
    run(tmp_path, rows=Even(samples, 0.5), optimizer={"learning_rate": 5e-3}, **changes)
    losses = [line["loss"] for line in read_log(tmp_path / "log.jsonl")]
    assert losses[-1] < 0.7 * losses[0]


def test_the_rate_in_the_log_follows_the_schedule(tmp_path: Path, run: Run) -> None:
    optimizer = {"learning_rate": 1e-3, "schedule": "linear", "warmup_steps": 2}
    run(tmp_path, steps=4, optimizer=optimizer)
    rates = [line["learning_rate"] for line in read_log(tmp_path / "log.jsonl")]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])


def test_a_status_is_the_mean_of_the_steps_since_the_one_before(
    tmp_path: Path, run: Run, whole: Any
) -> None:
    run(tmp_path, log_every=3)
    each = [line["loss"] for line in whole.log]
    threes = [line["loss"] for line in read_log(tmp_path / "log.jsonl")]
    assert threes == pytest.approx([sum(each[:3]) / 3, sum(each[3:]) / 3], rel=1e-6)


@pytest.mark.parametrize("stratified", [False, True])
def test_accumulated_parts_are_the_whole_batch(tmp_path: Path, run: Run, stratified: bool) -> None:
    whole = run(tmp_path / "whole", stratified=stratified)
    parts = run(tmp_path / "parts", stratified=stratified, gradient_accumulation_steps=4)
    # The same sums in another order, six steps of rate 1e-2: far below one step's 1e-2.
    torch.testing.assert_close(_weights(parts), _weights(whole), rtol=0, atol=2e-5)
    curves = [read_log(tmp_path / name / "log.jsonl") for name in ("whole", "parts")]
    for ours, theirs in zip(*curves, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["images"] == theirs["images"]


def test_the_gradient_of_accumulated_parts_is_the_batch_s(
    table: PromptTable, samples: Samples, stage_config: StageConfig
) -> None:
    gradients = []
    for parts in (1, 2, 4):
        stage = Stage.build(stage_config, seed=0)
        losses = Losses()
        for part in range(parts):
            size = 4 // parts
            batch = samples.rows(range(part * size, (part + 1) * size))
            text = table.rows(batch.prompts)
            cond = Conditioning(text.embedding, text.mask)
            objective = make_objective(stage, ObjectiveConfig())
            rows = objective(stage.denoiser, batch.images, cond, Noise(batch.seeds))
            (losses.add(batch, rows) / parts).backward()
        grads = [parameter.grad for parameter in stage.network.parameters()]
        gradients.append(torch.cat([grad.flatten() for grad in grads if grad is not None]))
    assert gradients[0].norm() > 0
    for gradient in gradients[1:]:
        # Single precision, the same numbers summed in another order.
        assert (gradient - gradients[0]).norm() < 1e-5 * gradients[0].norm()


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_gradient_checkpointing_changes_no_bit(
    tmp_path: Path, run: Run, same: Callable[..., bool], whole: Any, kind: str
) -> None:
    recomputed = run(tmp_path, gradient_checkpointing=kind)
    assert {block.recomputation for block in recomputed.network.blocks} == {kind}
    assert same(whole.stage, recomputed)


def test_bf16_trains_float32_weights_close_to_float32(tmp_path: Path, run: Run, whole: Any) -> None:
    half = run(tmp_path, precision="bf16")
    assert {value.dtype for value in half.network.state_dict().values()} == {torch.float32}
    assert not torch.equal(_weights(half), _weights(whole.stage))  # it was used at all
    logs = (whole.log, read_log(tmp_path / "log.jsonl"))
    losses = [[line["loss"] for line in log] for log in logs]
    # bfloat16 has 8 bits: 2^-9 per operation, some thirty of them in a row.
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


@pytest.mark.parametrize(("precision", "said"), [("fp32", False), ("bf16", True)])
def test_a_run_in_emulated_bf16_is_told(
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    precision: str,
    said: bool,
) -> None:
    monkeypatch.setattr("cascade.model.precision.computes_bf16", lambda device: False)
    _tell.cache_clear()
    run(tmp_path, precision=precision, steps=1)
    assert ("emulates it" in caplog.text) == said


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {},
        {"gradient_checkpointing": "selective"},
        {"gradient_checkpointing": "full"},
        {"cuda_graphs": True, "gradient_accumulation_steps": 2},
    ],
    ids=["plain", "selective", "full", "graphs"],
)
def test_compiled_blocks_end_with_the_same_weights(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, how: dict[str, object]
) -> None:
    # The graph is traced as always but run by PyTorch: generating C++ for it takes minutes.
    traced: list[torch.fx.GraphModule] = []

    def backend(
        graph: torch.fx.GraphModule, inputs: Sequence[torch.Tensor], mode: str | None = None
    ) -> Callable[..., object]:
        assert mode == ("reduce-overhead" if "cuda_graphs" in how else None)
        traced.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain = run(tmp_path / "plain", steps=2)
    assert not traced
    for count in (1, 2, 3):  # as the stages of a cascade are, one after another in one process
        compiled = run(tmp_path / f"compiled-{count}", steps=2, compile=True, **how)
        # No break in the graphs, no second trace in the second step.
        assert len(traced) == count * len(compiled.network.blocks)
        # The same operations, perhaps in another order.
        torch.testing.assert_close(_weights(compiled), _weights(plain), rtol=0, atol=2e-5)


def test_autocast_keeps_no_weights_over_the_backward_pass(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    score = learner.row_losses

    def noted(*given: Any) -> RowLosses:
        scored = score(*given)
        assert torch.is_autocast_enabled("cpu")
        scored.terms["mse"].register_hook(
            lambda gradient: seen.append(torch.is_autocast_enabled("cpu"))
        )
        return scored

    monkeypatch.setattr(learner, "row_losses", noted)
    run(tmp_path, steps=1, precision="bf16")
    assert seen == [False]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cuda_graphs": True}, "set compile too"),
        (
            {"cuda_graphs": True, "compile": True, "parallel": {"strategy": "fsdp"}},
            "strategy fsdp gathers them anew; take strategy ddp",
        ),
    ],
)
def test_graphs_are_refused_where_they_do_not_hold(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        TrainConfig.model_validate({"steps": 1, "batch_size": 1, **settings})


@pytest.mark.gpu
def test_replayed_blocks_end_with_the_same_weights(tmp_path: Path, run: Run) -> None:
    cuda = Processes(0, 1, torch.device("cuda"))
    drawn: list[torch.Tensor] = []

    def validate(stage: Stage, step: int) -> Look:
        network, text = stage.network, torch.zeros(1, 3, 16, device="cuda")
        x, mask = torch.ones(1, 3, 8, 8, device="cuda"), torch.ones(1, 3, device="cuda").bool()
        with torch.no_grad():
            for t in (900.0, 100.0):
                x = network(x, torch.tensor([t], device="cuda"), text, mask)
        drawn.append(x.clone())
        return Look()

    how = {"processes": cuda, "validate": validate, "validate_every": 2, "compile": True}
    how |= {"gradient_accumulation_steps": 2}
    plain = run(tmp_path / "plain", **how)
    replayed = run(tmp_path / "replayed", cuda_graphs=True, **how)
    # Both run the same compiled blocks; where kernels add with atomics the last bits differ.
    torch.testing.assert_close(_weights(replayed), _weights(plain), rtol=0, atol=2e-5)
    torch.testing.assert_close(drawn[3:], drawn[:3], rtol=0, atol=1e-4)


def test_a_learned_variance_adds_the_bound(tmp_path: Path, run: Run, learned: StageConfig) -> None:
    run(tmp_path / "with", learned, steps=1)
    run(tmp_path / "without", learned, steps=1, objective={"variance": "freeze"})
    first, second = (read_log(tmp_path / name / "log.jsonl")[0] for name in ("with", "without"))
    assert first["loss/vb"] > 0
    assert first["loss/mse"] == pytest.approx(second["loss"], rel=1e-5)
    assert first["loss"] == pytest.approx(second["loss"] + first["loss/vb"], rel=1e-5)
    assert "loss/vb" not in second


def test_the_average_is_what_is_published(tmp_path: Path, run: Run) -> None:
    plain = run(tmp_path / "plain", steps=1)
    averaged = run(tmp_path / "ema", steps=1, ema_decay=0.9)
    start = _weights(Stage.build(plain.config, seed=0))
    # d = (1 + 0) / (10 + 0) after the first update.
    expected = 0.1 * start + 0.9 * _weights(plain)
    torch.testing.assert_close(_weights(averaged), expected, rtol=0, atol=1e-6)


def test_pictures_drawn_on_the_way_change_nothing(
    tmp_path: Path, run: Run, same: Callable[..., bool], whole: Any
) -> None:
    steps: list[int] = []

    def validate(stage: Stage, step: int) -> Look:
        steps.append(step)
        torch.rand(3)  # whoever draws from the global generator must not disturb the run
        return Look()

    looked = run(tmp_path, validate=validate, validate_every=4)
    assert steps == [4, 6]  # and at the end
    assert same(whole.stage, looked)
    run(tmp_path, validate=validate)  # stopped behind its last step, before it drew
    assert steps == [4, 6, 6]


def test_a_look_s_figures_are_told_once_however_often_a_run_goes_on(
    tmp_path: Path, run: Run, killed_at: Callable[..., None]
) -> None:
    def validate(stage: Stage, step: int) -> Look:
        return Look(figures={"val_loss": 0.5})

    def steps() -> list[float]:
        return [line["step"] for line in read_log(tmp_path / "log.jsonl") if "val_loss" in line]

    looked = {"validate": validate, "validate_every": 1, "checkpoint_every": 3}
    killed_at(20, tmp_path, **looked)
    assert steps() == [1, 2, 3, 4, 5]
    run(tmp_path, **looked)
    assert steps() == [1, 2, 3, 4, 5, 6]
    whole = (tmp_path / "log.jsonl").read_bytes()
    run(tmp_path, **looked)  # it has done its last step, and looks again
    assert (tmp_path / "log.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    "every", [{"log_every": 1, "checkpoint_every": 1}, {"log_every": 50, "checkpoint_every": 2}]
)
def test_a_gradient_that_is_no_number_ends_the_run_and_leaves_the_good_state(
    tmp_path: Path,
    run: Run,
    samples: Samples,
    same: Callable[..., bool],
    train_config: TrainConfig,
    whole: Any,
    every: dict[str, int],
) -> None:
    with pytest.raises(UserError, match=r"not finite at step .* lower the learning rate"):
        run(tmp_path, rows=Even(samples, torch.nan, 10), **every)  # in the third step
    kept = Stage.build(whole.stage.config, seed=7)
    state = TrainState(
        kept.network,
        make_optimizer(train_config.optimizer, kept.network.parameters()),
        Averages(kept.network, train_config),
    )
    with Checkpoints(tmp_path / "checkpoints", kept.config, train_config, ALONE) as checkpoints:
        assert checkpoints.load(state).step == 2
    assert bool(_weights(kept).isfinite().all())
    assert same(run(tmp_path, **every), whole.stage)


def test_a_batch_that_does_not_divide_is_refused_before_any_work(tmp_path: Path, run: Run) -> None:
    processes = Processes(1, 4, torch.device("cpu"))
    with pytest.raises(UserError, match="batch of 6 does not divide into 4 processes"):
        run(tmp_path, processes=processes, batch_size=6, gradient_accumulation_steps=2)
    assert list(tmp_path.iterdir()) == []
