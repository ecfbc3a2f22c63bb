"""Initial weights come by rows, are those of the whole network, and lie as they are used."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from cascade.config.parallel import ParallelConfig
from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.data.stream import Samples
from cascade.model.initial import initialize_layer
from cascade.stage import Stage
from cascade.text.prompts import PromptTable
from cascade.training.distributed import ALONE, Processes
from cascade.training.learner import Learner
from cascade.training.parallel import local, spread_stage
from cascade.training.state import Progress
from cascade.training.weights import FreshWeights

LAST = torch.channels_last


@pytest.fixture
def two() -> Iterator[Processes]:
    """The first of two processes, whose other one is not there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield Processes(0, 2, torch.device("cpu"))
    dist.destroy_process_group()


def test_rows_are_those_of_the_network_and_a_layer_is_drawn_once_and_let_go(
    stage_config: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[nn.Module] = []

    def draw(layer: nn.Module, name: str, seed: int) -> None:
        assert all(value.is_meta for one in drawn for value in one.parameters(recurse=False))
        initialize_layer(layer, name, seed)
        drawn.append(layer)

    monkeypatch.setattr("cascade.training.weights.initialize_layer", draw)
    weights = FreshWeights(stage_config, seed=3)
    built = dict(Stage.build(stage_config, seed=3).network.named_parameters())
    for name, value in built.items():
        half = len(value) // 2
        parts = [weights.rows(name, slice(0, half)), weights.rows(name, slice(half, None))]
        assert torch.equal(torch.cat(parts), value)
    layers = {name.rpartition(".")[0] for name in built}
    assert len(drawn) == len(set(drawn)) == len(layers)
    for name in reversed(built):
        assert torch.equal(weights.rows(name, slice(None)), built[name])


def test_convolutions_and_their_gradients_are_channels_last(
    tmp_path: Path,
    stage_config: StageConfig,
    train_config: TrainConfig,
    samples: Samples,
    table: PromptTable,
) -> None:
    weights = FreshWeights(stage_config, seed=0)
    learner = Learner(stage_config, weights, table, train_config, tmp_path, ALONE)
    gradients: list[Tensor] = []
    kernels = _kernels(learner.stage)
    for kernel in kernels:
        kernel.register_post_accumulate_grad_hook(
            lambda kernel: gradients.append(kernel.grad.detach())
        )
    assert learner.step(iter([samples.rows(range(4))]), Progress(0, 0))
    assert len(gradients) == len(kernels) > 0
    assert all(one.is_contiguous(memory_format=LAST) for one in [*kernels, *gradients])


def test_shared_weights_are_contiguous(
    stage_config: StageConfig, train_config: TrainConfig, two: Processes
) -> None:
    parallel = ParallelConfig(strategy="fsdp")
    run = train_config.model_copy(update={"parallel": parallel})
    stage = spread_stage(stage_config, FreshWeights(stage_config, seed=0), run, two)
    assert all(local(one).is_contiguous() for one in stage.network.parameters())


def _kernels(stage: Stage) -> list[nn.Parameter]:
    """Weights of convolutions wider than a pixel: those of one lie both ways."""
    return [one for one in stage.network.parameters() if one.ndim == 4 and one.shape[-1] > 1]
