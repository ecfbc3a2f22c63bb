"""Averages of the weights along a run, held like the weights: whole, shared, or on the host."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from cascade.config.averages import warmed_up_decay
from cascade.config.train import TrainConfig
from cascade.training.parallel import forget_gathered, local

Decay = Callable[[int], float]
"""Decay of an average after so many earlier updates."""


class Averages:
    """Keeps `average <- d average + (1 - d) weights` of a network's parameters, once or more.

    Attributes:
        kept: the averages by label, parameters by name.
    """

    def __init__(self, network: nn.Module, run: TrainConfig) -> None:
        self._network = network
        self._weights = dict(network.named_parameters())
        self._decays = decays(run)
        on_host = run.parallel.offload_averages
        self.kept: dict[str, dict[str, Tensor]] = {
            label: {name: _copied(value, on_host) for name, value in self._weights.items()}
            for label in self._decays
        }

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Move towards the weights after `updates` earlier updates."""
        weights = [local(value) for value in self._weights.values()]
        for label, decay in self._decays.items():
            averages = [local(value) for value in self.kept[label].values()]
            there = averages[0].device
            held = weights if there == weights[0].device else [one.to(there) for one in weights]
            torch._foreach_lerp_(averages, held, 1.0 - decay(updates))

    @contextmanager
    def published(self) -> Iterator[None]:
        """Let the network have the average to publish, the first one, for the length of a block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def publish(self) -> None:
        """Give the network the average to publish, for good."""
        for average, weight in self._published():
            weight.copy_(average)
        forget_gathered(self._network)

    @torch.no_grad()
    def _swap(self) -> None:
        for average, weight in self._published():
            before = weight.clone()
            weight.copy_(average)
            average.copy_(before)
        forget_gathered(self._network)

    def _published(self) -> Iterator[tuple[Tensor, Tensor]]:
        first: Mapping[str, Tensor] = next(iter(self.kept.values()), {})
        for name, average in first.items():
            yield local(average), local(self._weights[name].detach())


def decays(run: TrainConfig) -> dict[str, Decay]:
    """Return the decay of each average that a run keeps, the one to publish first."""
    found: list[Decay] = []
    if run.ema_decay is not None:
        found.append(_exponential(run.ema_decay))
    for average in run.averages:
        if average.half_life is not None:
            found.append(_exponential(0.5 ** (run.batch_size / average.half_life)))
        elif average.std is not None:
            found.append(_power_function(average.std))
    return dict(zip(run.average_labels, found, strict=True))


def exponent(std: float) -> float:
    """Return gamma of the power-function average whose relative width is `std`.

    Solves std^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) for the root that is a real number
    above -1 (Karras et al. 2024, section 3.1).
    """
    squared = std**-2
    roots = np.roots([1.0, 7.0, 16.0 - squared, 12.0 - squared])
    return float(max(roots.real))


def _exponential(most: float) -> Decay:
    """Grow to `most`, so that the first weights, which know nothing, are soon forgotten."""
    return lambda updates: min(most, warmed_up_decay(updates))


def _power_function(std: float) -> Decay:
    """(1 - 1/n)^(gamma + 1) at the n-th update (Karras et al. 2024, section 3.1)."""
    power = exponent(std) + 1
    return lambda updates: float((updates / (updates + 1)) ** power)


def _copied(parameter: Tensor, on_host: bool) -> Tensor:
    value = parameter.detach()
    if not on_host or local(value).device.type == "cpu":
        return value.clone()
    host = local(value).to("cpu", copy=True)
    if not isinstance(value, DTensor):
        return host
    mesh = _host_mesh(value.device_mesh)
    return DTensor.from_local(
        host, mesh, value.placements, run_check=False, shape=value.shape, stride=value.stride()
    )


@cache
def _host_mesh(mesh: DeviceMesh) -> DeviceMesh:
    return init_device_mesh("cpu", tuple(mesh.shape), mesh_dim_names=mesh.mesh_dim_names)
