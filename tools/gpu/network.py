"""Whole steps of U-Nets, with the kernels and without, compiled and eager.

Weights are random; every parameter is drawn, since a network of zeros draws less power and runs
faster than any trained one.

Shapes: `B` batch, `C H W` image, `L` text tokens, `D` text width.
"""

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.device import described, state
from bench.shapes import stage_of
from bench.timing import (
    EventStopwatch,
    Run,
    Stopwatch,
    WallStopwatch,
    measure,
    side_stream,
    stopwatch,
)
from cascade.config.stage import ThresholdConfig
from cascade.config.unet import UNetConfig
from cascade.files import write_bytes
from cascade.model.backend import set_backend
from cascade.model.unet import UNet
from cascade_kernels.sampler_coefficients import Prediction, Update
from cascade_kernels.sampler_step import sampler_step
from gpu.pieces import Context, FailedError, IncompleteError, Piece

Backend = Literal["triton", "reference"]
Step = Callable[[nn.Module, Backend], Run]
BACKENDS: tuple[Backend, Backend] = ("triton", "reference")
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
_ROUNDS, _REPEATS = 5, 4
_DRIFT = 0.02


@dataclass(frozen=True)
class Subject:
    """A network and how it is run.

    Attributes:
        name: of its configuration.
        unet: its shape.
        side: of its pictures, pixels.
        tokens: padded length of its text.
        training: pictures in a training step.
        sampling: pictures in a sampling step; the network sees each with and without text.
        minutes: to compile a step twice and to time it; it cannot go on where it stopped.
    """

    name: str
    unet: UNetConfig
    side: int
    tokens: int
    training: int
    sampling: int
    minutes: float


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
    """A training step and a sampling step of every network."""
    kinds = {"training": _training, "sampling": _sampling}
    return [
        Piece(f"{subject.name} {kind} step", partial(step, subject))
        for subject in _subjects(context)
        for kind, step in kinds.items()
    ]


def _subjects(context: Context) -> list[Subject]:
    """Our own small base, which takes little time to compile, and IF-I-M."""
    if context.dry_run:
        return [Subject("tiny", _TINY, 4, 4, training=2, sampling=1, minutes=0)]
    wanted = (("mini-base64", 512, 64, 1.5), ("if-i-m", 32, 8, 5))
    found = []
    for name, training, sampling, minutes in wanted:
        if context.shapes and not any(part in name for part in context.shapes):
            continue
        config = stage_of(name)
        tokens = config.text.max_length
        found.append(Subject(name, config.unet, config.size, tokens, training, sampling, minutes))
    return found


def _training(subject: Subject, context: Context) -> str:
    """Forward, loss, backward and the optimizer, in bfloat16 under autocast."""
    inputs = _inputs(subject, subject.training, context)
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

    return _compared("training step", step, subject, inputs, context)


def _sampling(subject: Subject, context: Context) -> str:
    """The network on the pictures with and without text, and a sampler's update."""
    inputs = _inputs(subject, 2 * subject.sampling, context)
    x = inputs.x.chunk(2)[0].contiguous()
    noise = torch.randn_like(x)
    learned = subject.unet.learned_variance
    update = Update(keep=0.8, pull=0.2, log_variance=(-4.0, -2.0)) if learned else Update(0.8, 0.2)

    def step(network: nn.Module, backend: Backend) -> Run:
        network.eval()

        def run() -> Tensor:
            with torch.no_grad():
                with _autocast(context):
                    out = network(torch.cat([x, x]), inputs.t, inputs.text, inputs.mask)
                prediction = Prediction(from_x=1.25, from_out=-0.75, guidance=7.0)
                threshold = ThresholdConfig(kind="dynamic", percentile=0.95, cap=1.5)
                return sampler_step(
                    x, out, prediction, threshold, update, noise=noise, backend=backend
                )[0]

        return run

    return _compared("sampling step", step, subject, inputs, context)


def _compared(name: str, step: Step, subject: Subject, inputs: Inputs, context: Context) -> str:
    """Time a step on both backends in turn; write all samples and return the ratios."""
    if context.left < subject.minutes:
        raise IncompleteError(f"it needs {subject.minutes} minutes; give it more --minutes")
    before = state(context.device)
    with side_stream(context.device):
        _check(subject, inputs, context)
        watches = _watches(name, step, subject, context)
        rounds, repeats = (2, 1) if context.dry_run else (_ROUNDS, _REPEATS)
        timings, drift = measure(watches, "reference", rounds, repeats)
    medians = {key: timing.median for key, timing in timings.items()}
    ratios = {
        key: medians[key.replace("triton", "reference")] / median
        for key, median in medians.items()
        if "triton" in key
    }
    record = {
        "network": subject.name,
        "step": name,
        "dry_run": context.dry_run,
        "batch": len(inputs.x),
        "ratios": ratios,
        "drift": drift,
        "state": [before, state(context.device)],
        "timings": {key: timing.model_dump() for key, timing in timings.items()},
        "environment": described(context.device, context.commit),
    }
    path = context.output / f"network-{subject.name}-{name.replace(' ', '-')}.json"
    write_bytes((json.dumps(record, indent=1) + "\n").encode(), path)
    if drift >= _DRIFT and not context.dry_run:
        raise FailedError(f"invalid: the device drifted by {drift:.1%}")
    times = ", ".join(f"{key} {median / 1000:.2f} ms" for key, median in medians.items())
    return f"{times}: {', '.join(f'{key} {ratio:.2f}x' for key, ratio in ratios.items())}"


def _watches(name: str, step: Step, subject: Subject, context: Context) -> dict[str, Stopwatch]:
    """Both backends compiled, which a dry run leaves out, and both eager."""
    watches: dict[str, Stopwatch] = {}
    for compiled in (False,) if context.dry_run else (True, False):
        for backend in BACKENDS:
            network = _network(subject, context, backend)
            if compiled:
                network.compile(fullgraph=True)
            key = f"{backend}, compiled" if compiled else backend
            watches[key] = _watch(step(network, backend), name, context, compiled=compiled)
    return watches


def _check(subject: Subject, inputs: Inputs, context: Context) -> None:
    """The kernels' error to float64 is at most twice that of the reference, over two rows."""
    few = Inputs(inputs.x[:2], inputs.t[:2], inputs.text[:2], inputs.mask[:2])
    network = _network(subject, context, "reference").eval()
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


def _watch(run: Run, name: str, context: Context, *, compiled: bool) -> Stopwatch:
    """Graphs where a compiled step is captured whole.

    An optimizer's state is not and would be copied, and what an eager step costs is its launches.
    """
    if context.dry_run:
        return WallStopwatch(run)
    if compiled and name == "sampling step":
        return stopwatch(run, context.device)
    for _ in range(3):
        run()
    return EventStopwatch(run, flush=lambda: None)


def _network(subject: Subject, context: Context, backend: Backend) -> UNet:
    torch.manual_seed(0)
    network = UNet(subject.unet)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()))
    set_backend(network, backend)
    return network.to(context.device)


def _inputs(subject: Subject, rows: int, context: Context) -> Inputs:
    """N(0, 1) pictures and text; 10 to 40 tokens of each row are real, if it has so many."""
    device, side, tokens = context.device, subject.side, subject.tokens
    lengths = torch.randint(min(10, tokens), min(40, tokens) + 1, (rows, 1), device=device)
    return Inputs(
        x=torch.randn(rows, 3, side, side, device=device),
        t=1000 * torch.rand(rows, device=device),
        text=torch.randn(rows, tokens, subject.unet.text_width, device=device),
        mask=torch.arange(tokens, device=device) < lengths,
    )


def _autocast(context: Context) -> torch.autocast:
    # The interpreter computes bfloat16 wrongly.
    return torch.autocast(context.device.type, torch.bfloat16, enabled=not context.dry_run)
