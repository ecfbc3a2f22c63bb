"""A plan's arithmetic, against figures worked out by hand."""

import json
from pathlib import Path

import pytest

from cascade.config.folders import CONFIGS
from cascade.config.machine import GPUS, MachineConfig
from cascade.config.stage import StageConfig
from cascade.config.train import PretrainConfig, TrainConfig
from cascade.errors import UserError
from cascade.stage import meta_network
from cascade.training.fitting import require_fit
from cascade.training.flops import training_flops
from cascade.training.plan import Exchange, Plan
from cascade.training.plan_table import facts


@pytest.mark.parametrize(
    ("ranks", "beside", "link", "network"),
    [
        (1, 1, 0, 0),
        (8, 8, 7 / 8, 0),  # a machine's links alone
        (16, 8, 15 / 16, 1 / 16),  # half of it comes over the network, an eighth by each GPU
        (4, 1, 0, 3 / 4),  # one GPU a machine: all but its own
        (64, 8, 63 / 64, 7 / 64),
    ],
)
def test_an_exchange_by_hand(ranks: int, beside: int, link: float, network: float) -> None:
    exchange = Exchange(size=1.0, ranks=ranks, beside=beside)
    assert (exchange.link, exchange.network) == pytest.approx((link, network))
    twice = Exchange(1.0, ranks, beside, times=2)
    assert (twice.link, twice.network) == pytest.approx((2 * link, 2 * network))


def make(stage: StageConfig, gpus: int, strategy: str = "ddp", **changes: object) -> Plan:
    values = {"steps": 10, "batch_size": 64, "parallel": {"strategy": strategy}} | changes
    return Plan(stage, TrainConfig.model_validate(values), MachineConfig(gpus=gpus), activations=0)


def received(plan: Plan) -> tuple[float, float]:
    parts = facts(plan)["gpu_received_bytes"]
    return parts["links"], parts["network"]


RUNS = [
    path
    for path in sorted(CONFIGS.glob("*.toml"))
    if path.stem.startswith("imagen-") or path.stem.endswith("-500m")
]


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
@pytest.mark.parametrize("counted", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_large_runs_fit_the_machines_that_they_name(path: Path, counted: bool) -> None:
    run = PretrainConfig.read(path)
    if counted:
        require_fit(Plan.make(run.stage, run.train, run.machine))
        return
    plan = Plan(run.stage, run.train, run.machine, activations=0)
    assert plan.rows * plan.machine.gpus == run.train.batch_size
    assert plan.fits


def test_traffic_of_each_strategy_by_hand(stage_config: StageConfig) -> None:
    network = meta_network(stage_config)
    values = sum(parameter.numel() for parameter in network.parameters())
    blocks = sum(value.numel() for block in network.blocks for value in block.parameters())
    around = values - blocks
    assert received(make(stage_config, 1)) == (0, 0)
    assert received(make(stage_config, 8)) == pytest.approx((2 * 4 * values * 7 / 8, 0))
    # Gradients of copies are exchanged once a step, however many passes it has.
    passes = {"gradient_accumulation_steps": 2}
    assert received(make(stage_config, 8, **passes)) == received(make(stage_config, 8))
    # Blocks twice in bf16, what lies around them once in float32, gradients once; each pass anew.
    shared = (2 * 2 * blocks + 4 * around + 4 * values) * 7 / 8
    bf16 = {"precision": "bf16"}
    assert received(make(stage_config, 8, "fsdp", **bf16)) == pytest.approx((shared, 0))
    two = received(make(stage_config, 8, "fsdp", **bf16, **passes))
    assert two == pytest.approx((2 * shared, 0))
    kept = make(
        stage_config, 8, **bf16, parallel={"strategy": "fsdp", "reshard_after_forward": False}
    )
    assert received(kept) == pytest.approx((shared - 2 * blocks * 7 / 8, 0))
    # Two machines that are copies of each other: shares of the gradients cross the network.
    copies = received(make(stage_config, 16, "hsdp", **bf16))
    assert copies == pytest.approx((shared, 2 * 4 * values / 8 / 2))


def test_operations_and_time_by_hand(stage_config: StageConfig) -> None:
    row = training_flops(stage_config)
    plan = make(stage_config, 4, gradient_accumulation_steps=2, precision="bf16", ema_decay=0.9)
    assert (plan.rows, plan.operations) == (8, 16 * row)
    assert plan.compute_seconds == pytest.approx(16 * row / (0.35 * GPUS["h200"].bf16))
    assert plan.step_seconds == pytest.approx(
        max(plan.compute_seconds, plan.exchange_seconds) + plan.update_seconds
    )
    assert plan.update_seconds == pytest.approx(13 * plan.footprint.weights / 4.8e12)
    assert plan.seconds == pytest.approx(10 * plan.step_seconds)
    assert plan.images_per_second == pytest.approx(64 / plan.step_seconds)


def test_a_checkpoint_is_written_aside_from_a_copy_of_what_each_process_holds(
    stage_config: StageConfig,
) -> None:
    copies, shares = make(stage_config, 8), make(stage_config, 8, "fsdp")
    assert copies.checkpoint == 3 * copies.footprint.weights == shares.checkpoint
    assert copies.write_seconds == pytest.approx(copies.checkpoint / 5e9)
    # What all processes hold is parted among them.
    assert copies.pause_seconds == pytest.approx(copies.checkpoint / 8 / GPUS["h200"].host)
    assert copies.host == shares.host == copies.checkpoint
    waits = make(stage_config, 8, checkpoint_async=False)
    assert (waits.pause_seconds, waits.host) == (waits.write_seconds, 0)


def test_weights_on_the_host_come_and_go(stage_config: StageConfig) -> None:
    away = make(stage_config, 2, parallel={"strategy": "fsdp", "offload": True})
    here = make(stage_config, 2, "fsdp")
    moved = 3 * here.footprint.weights / GPUS["h200"].host
    assert away.exchange_seconds == pytest.approx(here.exchange_seconds + moved)
    assert away.update_seconds > here.update_seconds
    assert (away.footprint.device, away.pause_seconds) == (0, 0)


def test_a_run_s_own_utilization_is_taken_from_its_log(
    stage_config: StageConfig, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    run = TrainConfig(steps=1, batch_size=2)
    lines = [{"step": 1, "mfu": share} for share in (0.1, 0.5, 0.4)] + [{"step": 4}]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = Plan.make(stage_config, run, MachineConfig(gpus=2, log=log))
    assert plan.machine.utilization == 0.4
    assert plan.activations > 0
    log.write_text("")
    with pytest.raises(UserError, match="has no line with mfu"):
        Plan.make(stage_config, run, MachineConfig(gpus=2, log=log))


def test_processes_that_do_not_divide_the_batch_are_refused(stage_config: StageConfig) -> None:
    with pytest.raises(UserError, match="does not divide into 3 processes"):
        Plan.make(stage_config, TrainConfig(steps=1, batch_size=64), MachineConfig(gpus=3))
