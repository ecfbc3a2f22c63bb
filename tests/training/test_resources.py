"""What surely does not fit a machine's memory is not begun."""

import pytest

from cascade.config.optimizer import OptimizerConfig
from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.errors import UserError
from cascade.model.memory import optimizer_bytes
from cascade.stage import meta_network
from cascade.training import resources
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
