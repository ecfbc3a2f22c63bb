"""Initial weights come by rows, and are those of the whole network."""

import pytest
import torch
from torch import nn

from cascade.config.stage import StageConfig
from cascade.model.initial import initialize_layer
from cascade.stage import Stage
from cascade.training.weights import FreshWeights


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
