"""Whole steps of an IF-I-M-shaped U-Net, with the kernels and without, both compiled.

Weights are random; every parameter is drawn, since a network of zeros draws less power and runs
faster than any trained one.

Shapes: `B` batch, `C H W` image, `L` text tokens, `D` text width.
"""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.device import described, state
from bench.shapes import CONFIGS
from bench.timing import (
    EventStopwatch,
    Run,
    Stopwatch,
    WallStopwatch,
    measure,
    side_stream,
    stopwatch,
)
from cascade.config.stage import StageConfig
from cascade.config.unet import UNetConfig
from cascade.files import write_bytes
from cascade.model.backend import set_backend
from cascade.model.unet import UNet
from cascade_kernels.sampler_coefficients import Prediction, Threshold, Update
from cascade_kernels.sampler_step import sampler_step
from gpu.pieces import Context, FailedError, IncompleteError, Piece

Backend = Literal["triton", "reference"]
Step = Callable[[nn.Module, Backend], Run]
BACKENDS: tuple[Backend, Backend] = ("triton", "reference")
TRAINING_BATCH, SAMPLING_BATCH = 32, 8
_TINY = UNetConfig(
    channels=(16,),
    blocks=(1,),
    attention=("joint",),
    head_channels=16,
    text_width=16,
    context_width=16,
    time_width=16,
    pool_heads=2,
    norm_groups=4,
    learned_variance=True,
)
_MINUTES = 5  # to compile a step twice and to time it; it cannot go on where it stopped


_ROUNDS, _REPEATS = 5, 4
_DRIFT = 0.02


@dataclass(frozen=True)
class Inputs:
    """A batch for the network.

    Attributes:
        x: B 3 H W.
        t: B, timesteps.
        text: B L D.
        mask: B L, True at real tokens.
    """

    x: Tensor
    t: Tensor
    text: Tensor
    mask: Tensor


def network_pieces(context: Context) -> list[Piece]:
    """A training step and a sampling step."""
    return [Piece("training step", _training), Piece("sampling step", _sampling)]


def _training(context: Context) -> str:
    """Forward, loss, backward and the optimizer, in bfloat16 under autocast."""
    inputs = _inputs(TRAINING_BATCH, context)
    target = torch.randn_like(inputs.x)

    def step(network: nn.Module, _: Backend) -> Run:
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6, fused=not context.dry_run)

        def run() -> None:
            with _autocast(context):
                out = network(inputs.x, inputs.t, inputs.text, inputs.mask)
            F.mse_loss(out[:, :3].float(), target).backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    return _compared("training step", step, inputs, context)


def _sampling(context: Context) -> str:
    """The network on the pictures with and without text, and the ancestral sampler's update."""
    inputs = _inputs(2 * SAMPLING_BATCH, context)
    x = inputs.x.chunk(2)[0].contiguous()
    noise = torch.randn_like(x)
    update = Update(keep=0.8, pull=0.2, log_variance=(-4.0, -2.0))

    def step(network: nn.Module, backend: Backend) -> Run:
        network.eval()

        def run() -> Tensor:
            with torch.no_grad():
                with _autocast(context):
                    out = network(torch.cat([x, x]), inputs.t, inputs.text, inputs.mask)
                prediction = Prediction(from_x=1.25, from_out=-0.75, guidance=7.0)
                threshold = Threshold("dynamic", 0.95, cap=1.5)
                return sampler_step(
                    x, out, prediction, threshold, update, noise=noise, backend=backend
                )[0]

        return run

    return _compared("sampling step", step, inputs, context)


def _compared(name: str, step: Step, inputs: Inputs, context: Context) -> str:
    """Time a step on both backends in turn; write all samples and return the ratio."""
    if not context.dry_run and context.left < _MINUTES:
        raise IncompleteError(f"it needs {_MINUTES} minutes; give it more --minutes")
    before = state(context.device)
    watches: dict[str, Stopwatch] = {}
    with side_stream(context.device):
        _check(inputs, context)
        for backend in BACKENDS:
            network = _network(context, backend)
            if not context.dry_run:
                network.compile(fullgraph=True)
            watches[backend] = _watch(step(network, backend), name, context)
        rounds, repeats = (2, 1) if context.dry_run else (_ROUNDS, _REPEATS)
        timings, drift = measure(watches, "reference", rounds, repeats)
    ratio = timings["reference"].median / timings["triton"].median
    record = {
        "step": name,
        "dry_run": context.dry_run,
        "batch": len(inputs.x),
        "ratio": ratio,
        "drift": drift,
        "state": [before, state(context.device)],
        "timings": {key: timing.model_dump() for key, timing in timings.items()},
        "environment": described(context.device, context.commit),
    }
    path = context.output / f"network-{name.replace(' ', '-')}.json"
    write_bytes((json.dumps(record, indent=1) + "\n").encode(), path)
    if drift >= _DRIFT and not context.dry_run:
        raise FailedError(f"invalid: the device drifted by {drift:.1%}")
    times = ", ".join(f"{key} {timing.median / 1000:.2f} ms" for key, timing in timings.items())
    return f"{times}: {ratio:.2f}x"


def _check(inputs: Inputs, context: Context) -> None:
    """The kernels' error to float64 is at most twice that of the reference, over two rows."""
    few = Inputs(inputs.x[:2], inputs.t[:2], inputs.text[:2], inputs.mask[:2])
    network = _network(context, "reference").eval()
    with torch.no_grad():
        exact = copy.deepcopy(network).double()(
            few.x.double(), few.t.double(), few.text.double(), few.mask
        )
        errors = {}
        for backend in BACKENDS:
            set_backend(network, backend)
            with _autocast(context):
                out = network(few.x, few.t, few.text, few.mask)
            errors[backend] = float((out.double() - exact).norm() / exact.norm())
    limit = 2 * errors["reference"] + 4 * torch.finfo(torch.float32).eps
    if not errors["triton"] <= limit:
        raise FailedError(f"the kernels' error is {errors['triton']:.3g}, above {limit:.3g}")


def _watch(run: Run, name: str, context: Context) -> Stopwatch:
    """Graphs where the step is captured whole: an optimizer's state is not, and would be copied."""
    if context.dry_run:
        return WallStopwatch(run)
    if name == "sampling step":
        return stopwatch(run, context.device)
    for _ in range(3):
        run()
    return EventStopwatch(run, flush=lambda: None)


def _network(context: Context, backend: Backend) -> UNet:
    torch.manual_seed(0)
    network = UNet(_config(context))
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))
    set_backend(network, backend)
    return network.to(context.device)


def _config(context: Context) -> UNetConfig:
    return _TINY if context.dry_run else StageConfig.read(CONFIGS / "if-i-m.toml").unet


def _inputs(batch: int, context: Context) -> Inputs:
    """N(0, 1) pictures and text; 10 to 40 tokens of each row are real."""
    config, device = _config(context), context.device
    rows, side, tokens = (2, 4, 4) if context.dry_run else (batch, 64, 77)
    lengths = torch.randint(min(10, tokens), min(40, tokens) + 1, (rows, 1), device=device)
    return Inputs(
        x=torch.randn(rows, 3, side, side, device=device),
        t=1000 * torch.rand(rows, device=device),
        text=torch.randn(rows, tokens, config.text_width, device=device),
        mask=torch.arange(tokens, device=device) < lengths,
    )


def _autocast(context: Context) -> torch.autocast:
    # The interpreter computes bfloat16 wrongly.
    return torch.autocast(context.device.type, torch.bfloat16, enabled=not context.dry_run)
