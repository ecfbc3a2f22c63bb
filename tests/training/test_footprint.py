"""What a process is said to hold is what PyTorch's own sharding leaves it."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.model.example import example_inputs
from cascade.model.memory import training_bytes
from cascade.model.precision import convolves_bf16
from cascade.stage import meta_network
from cascade.training.distributed import ALONE, Processes
from cascade.training.footprint import checkpoint_bytes, held, shards_of
from cascade.training.parallel import spread_stage
from cascade.training.weights import FreshWeights

CPU = torch.device("cpu")
WORLDS = (1, 2, 3, 4, 8, 64)


def config(strategy: str = "ddp", **changes: object) -> TrainConfig:
    parallel = {"strategy": strategy, "offload_averages": changes.pop("offload_averages", False)}
    parallel |= {"offload": changes.pop("offload", False)}
    return TrainConfig.model_validate(
        {"steps": 1, "batch_size": 64, "parallel": parallel} | changes
    )


def first(world: int) -> Processes:
    return Processes(0, world, CPU, min(world, 8))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "hsdp"])
def test_parts_are_those_of_the_first_process_s_chunks(
    stage_config: StageConfig, strategy: str, world: int
) -> None:
    run = config(strategy, ema_decay=0.9, averages=[{"std": 0.1}])
    shared = 1 if strategy == "ddp" else min(world, 8) if strategy == "hsdp" else world
    assert shards_of(run, first(world)) == shared
    weights = sum(
        parameter.chunk(shared)[0].nbytes for parameter in meta_network(stage_config).parameters()
    )
    found = held(stage_config, run, first(world), activations=5)
    parts = (found.weights, found.gradients, found.moments, found.averages)
    assert parts == (weights, weights, 2 * weights, 2 * weights)
    assert (found.device, found.host) == (6 * weights + 5, 0)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("offload_averages", [False, True])
def test_what_is_sent_to_the_host_is_held_once(
    stage_config: StageConfig, offload: bool, offload_averages: bool
) -> None:
    def found(**places: bool) -> tuple[int, int]:
        held_there = held(stage_config, config("fsdp", ema_decay=0.9, **places), first(4))
        return held_there.device, held_there.host

    whole, _ = found()
    device, host = found(offload=offload, offload_averages=offload_averages)
    assert device + host == whole
    assert device == (0 if offload else whole * 4 // 5 if offload_averages else whole)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "hsdp"])
@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
def test_more_processes_never_hold_more_each(
    stage_config: StageConfig, strategy: str, name: str
) -> None:
    run = config(strategy, optimizer={"name": name}, ema_decay=0.9)
    sizes = [held(stage_config, run, first(world)).device for world in WORLDS]
    assert sizes == sorted(sizes, reverse=True)
    whole = checkpoint_bytes(stage_config, run)
    assert whole == held(stage_config, run, ALONE).device * 4 // 5 or name == "adamw8bit"


@pytest.fixture
def two() -> Iterator[Processes]:
    """The first of two processes; what the other one would send is never waited for."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield Processes(0, 2, CPU, 2)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("recomputation", "reshard", "precision"),
    [
        ("none", True, "fp32"),
        pytest.param("full", False, "fp32", marks=pytest.mark.slow),
        pytest.param("none", False, "fp32", marks=pytest.mark.slow),
        pytest.param("selective", True, "fp32", marks=pytest.mark.slow),
        pytest.param("full", True, "bf16", marks=pytest.mark.slow),
    ],
)
def test_gathered_blocks_take_what_was_counted(
    two: Processes,
    stage_config: StageConfig,
    recomputation: str,
    reshard: bool,
    precision: str,
    allocated: Callable[[Callable[[], object]], int],
) -> None:
    wide = {"channels": (64, 128), "blocks": (2, 2), "norm_groups": 8}
    stage = stage_config.model_copy(update={"unet": stage_config.unet.model_copy(update=wide)})
    run = config("fsdp", gradient_checkpointing=recomputation, precision=precision)
    parallel = run.parallel.model_copy(update={"reshard_after_forward": reshard})
    run = run.model_copy(update={"parallel": parallel})
    network: nn.Module = spread_stage(stage, FreshWeights(stage, 0), run, two).network
    inputs = example_inputs(stage.unet, 4, 32, 7)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = network(**inputs).float().square().mean()
        loss.backward()

    counted = training_bytes(
        stage.unet,
        4,
        32,
        7,
        run.precision,
        unrolled=not convolves_bf16(),
        recomputation=run.gradient_checkpointing,
        gathered=True,
        reshard=reshard,
    )
    # The backward pass of a convolution or attention may hold another image inside.
    assert 0.95 * counted < allocated(step) < 1.1 * counted
