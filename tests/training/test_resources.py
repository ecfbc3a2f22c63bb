"""What surely does not fit a machine's memory is not begun."""

import pytest
import torch

from cascade.config.optimizer import OptimizerConfig
from cascade.config.parallel import ParallelConfig
from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.errors import UserError
from cascade.launch import Launch
from cascade.model.memory import optimizer_bytes
from cascade.stage import meta_network
from cascade.training import resources
from cascade.training.distributed import Processes
from cascade.training.footprint import held
from cascade.training.resources import require_room


@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adafactor"])
def test_weights_gradients_moments_and_average_are_counted(
    monkeypatch: pytest.MonkeyPatch,
    stage_config: StageConfig,
    name: str,
    ema_decay: float | None,
) -> None:
    optimizer = OptimizerConfig.model_validate({"name": name})
    run = TrainConfig(steps=1, batch_size=1, optimizer=optimizer, ema_decay=ema_decay)
    shapes = [parameter.shape for parameter in meta_network(stage_config).parameters()]
    copies = 2 if ema_decay is None else 3
    needed = copies * 4 * sum(shape.numel() for shape in shapes)
    needed += optimizer_bytes(shapes, optimizer.name)
    monkeypatch.setattr(resources, "device_memory", lambda device: needed)
    require_room([(stage_config, run)])
    monkeypatch.setattr(resources, "device_memory", lambda device: needed - 1)
    with pytest.raises(UserError, match=f"'base8' takes .* to be trained .*{name}.* in all"):
        require_room([(stage_config, run)])


def test_processes_of_a_machine_share_its_memory(
    monkeypatch: pytest.MonkeyPatch, stage_config: StageConfig
) -> None:
    launch = Launch(rank=0, world_size=4, local_rank=0, local_world_size=2)
    monkeypatch.setattr(Launch, "read", lambda: launch)
    processes = Processes(0, 4, torch.device("cpu"), 2)
    for strategy in ("ddp", "fsdp"):
        parallel = ParallelConfig.model_validate({"strategy": strategy})
        run = TrainConfig(steps=1, batch_size=4, parallel=parallel)
        needed = 2 * held(stage_config, run, processes).device
        monkeypatch.setattr(resources, "device_memory", lambda device, most=needed: most)
        require_room([(stage_config, run)])
        monkeypatch.setattr(resources, "device_memory", lambda device, most=needed: most - 1)
        with pytest.raises(UserError, match="share it among more processes"):
            require_room([(stage_config, run)])
