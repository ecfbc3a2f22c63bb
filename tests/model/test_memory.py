"""What the memory plan counts is what PyTorch's allocator gives out."""

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from cascade.config.optimizer import OptimizerConfig
from cascade.config.train import Recomputation
from cascade.config.unet import UNetConfig
from cascade.model.memory import optimizer_bytes, sampling_bytes, training_bytes
from cascade.model.precision import convolves_bf16
from cascade.model.recompute import set_recomputation
from cascade.model.unet import UNet
from cascade.training.optim import make_optimizer

TOKENS, SIZE, ROWS = 7, 32, 2
Inputs = Callable[..., dict[str, Tensor]]
Allocated = Callable[[Callable[[], object]], int]


@pytest.fixture(params=["deepfloyd", "efficient"])
def wide(request: pytest.FixtureRequest, configs: dict[str, UNetConfig]) -> UNetConfig:
    """A network whose activations outweigh the vectors beside them."""
    return configs[request.param].model_copy(update={"channels": (64, 128)})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sampling_takes_what_was_counted(
    wide: UNetConfig, precision: str, inputs: Inputs, allocated: Allocated
) -> None:
    network, given = UNet(wide).eval(), inputs(wide, ROWS, SIZE, SIZE, TOKENS)

    def run() -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return network(**given)  # type: ignore[no-any-return]

    counted = sampling_bytes(wide, ROWS, SIZE, TOKENS, precision, unrolled=not convolves_bf16())
    # A CPU's attention allocates tiles for itself, 0.4 MB for each thread at these sizes.
    assert counted <= allocated(run) < counted + torch.get_num_threads() * 2**19


@pytest.mark.parametrize("recomputation", get_args(Recomputation))
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_training_takes_what_was_counted(
    wide: UNetConfig,
    precision: str,
    recomputation: Recomputation,
    inputs: Inputs,
    allocated: Allocated,
) -> None:
    network = UNet(wide).train()
    set_recomputation(network, recomputation)
    given = inputs(wide, ROWS, SIZE, SIZE, TOKENS)

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    for parameter in network.parameters():
        parameter.register_post_accumulate_grad_hook(drop)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out = network(**given)
        out.float().square().mean().backward()

    options = {"unrolled": not convolves_bf16(), "recomputation": recomputation}
    counted = training_bytes(wide, ROWS, SIZE, TOKENS, precision, **options)
    # The backward pass of one convolution or attention may hold another image inside, of the some
    # ten that a recomputed block keeps at least.
    assert counted <= allocated(run) < 1.1 * counted


@pytest.mark.slow
def test_recomputing_takes_less(configs: dict[str, UNetConfig]) -> None:
    kept, selective, full = (
        training_bytes(configs["base"], 2, 32, 7, "fp32", unrolled=False, recomputation=value)
        for value in get_args(Recomputation)
    )
    assert full < selective < 0.8 * kept


def test_unrolled_windows_count_in_bf16_alone(configs: dict[str, UNetConfig]) -> None:
    counted = {
        (precision, unrolled): sampling_bytes(
            configs["base"], 2, 32, 7, precision, unrolled=unrolled
        )
        for precision in ("fp32", "bf16")
        for unrolled in (False, True)
    }
    assert counted["fp32", True] == counted["fp32", False]
    assert counted["bf16", True] > counted["bf16", False]


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adafactor"])
def test_optimizers_keep_what_was_counted(name: str) -> None:
    if name == "adamw8bit":
        pytest.importorskip("torchao")
    layers = nn.Sequential(nn.Conv2d(32, 64, 3), nn.Linear(64, 128), nn.LayerNorm(128))
    settings = OptimizerConfig.model_validate({"name": name})
    optimizer = make_optimizer(settings, layers.parameters())
    for parameter in layers.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = sum(
        _bytes(value)
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, Tensor) and value.numel() > 1
    )
    shapes = [parameter.shape for parameter in layers.parameters()]
    assert optimizer_bytes(shapes, name) == held  # type: ignore[arg-type]


def _bytes(value: Tensor) -> int:
    """Of a tensor, or of the tensors that a quantised one is made of."""
    if not hasattr(value, "__tensor_flatten__"):
        return value.nbytes
    names, _ = value.__tensor_flatten__()
    return sum(_bytes(getattr(value, name)) for name in names)
