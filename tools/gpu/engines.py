"""What the parts `export` and `tensorrt` share: stages, a check of engines, their latency.

Weights are random; every parameter is drawn. Shapes: `B` rows, `L` text tokens, `D` text width.
"""

import copy
import json
import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from bench.device import described, state
from bench.shapes import CONFIGS
from bench.timing import EventStopwatch, Run, Stopwatch, WallStopwatch, measure, side_stream
from bench.timing import stopwatch as graph_stopwatch
from cascade.config.stage import StageConfig
from cascade.diffusion.denoiser import Network
from cascade.files import write_bytes
from cascade.formats.keys import entries
from cascade.formats.unet import unet_to_diffusers
from cascade.stage import Stage
from cascade_export.engines import EngineKind, EngineOptions, StageFiles, open_engines
from cascade_export.graph import export_stage
from cascade_export.precision import DTYPES, Precision, cast
from cascade_export.weights import digest
from gpu.pieces import Context, FailedError, IncompleteError

ROWS = 2  # one picture with guidance
_MINUTES = 7  # to export, build, compile twice and time; it cannot go on where it stopped
_ROUNDS, _REPEATS = 5, 10
_DRIFT = 0.02

Inputs = Mapping[str, Tensor]


def stage_named(name: str, context: Context, *, small: bool = False) -> Stage:
    """Return a published stage with random weights, or one of its kind that is quick to build."""
    config = StageConfig.read(CONFIGS / f"{name}.toml")
    if small or context.dry_run:
        config = _small(config)
    stage = Stage.build(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stage.network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=1 / math.sqrt(parameter[0].numel()), generator=generator)
    stage.network.eval()
    return stage


def exported(stage: Stage, precision: Precision, context: Context) -> StageFiles:
    """Write a stage's graph and weights below the output folder."""
    folder = context.output / "graphs" / f"{stage.config.name}-{stage.config.size}-{precision}"
    graph = export_stage(stage, folder, precision)
    return StageFiles(
        config=stage.config,
        precision=precision,
        graph=graph,
        weights=graph.weights,
        weights_sha256=digest(graph.weights),
    )


def inputs_for(config: StageConfig, context: Context, rows: int = ROWS) -> Inputs:
    """N(0, 1) pictures and texts of full length, float32 on the device."""
    generator = torch.Generator().manual_seed(1)
    image, length = (rows, 3, config.size, config.size), config.text.max_length
    drawn = {
        "x": torch.randn(image, generator=generator),
        "t": 1000 * torch.rand(rows, generator=generator),
        "text": torch.randn(rows, length, config.unet.text_width, generator=generator),
        "text_mask": torch.ones(rows, length, dtype=torch.bool),
    }
    if config.low_res is not None:
        drawn["low_res"] = torch.randn(image, generator=generator)
        drawn["aug"] = torch.full((rows,), 250.0)
    return {name: value.to(context.device) for name, value in drawn.items()}


def opened(
    kind: EngineKind, files: StageFiles, context: Context, *, compiled: bool = False
) -> Network:
    """Open one stage's engine on the device."""
    options = EngineOptions(compiled=compiled)
    return open_engines(kind, [files], context.device, options)[0]


def checked(engine: Network, stage: Stage, precision: Precision, context: Context) -> str:
    """Hold an engine's error to float64 to twice that of the cast network; returns both.

    Raises:
        FailedError: it is larger.
    """
    inputs = inputs_for(stage.config, context)
    network = stage.network.to(context.device)
    with torch.no_grad():
        double = {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()}
        exact = copy.deepcopy(network).double()(**double)
        plain = cast(network, precision)(**inputs)
        ours = engine(**inputs)

    def error(out: Tensor) -> float:
        return float((out.double() - exact).norm() / exact.norm())

    limit = 2 * error(plain) + 4 * torch.finfo(torch.float32).eps
    found = f"relative error {error(ours):.2g}, PyTorch in {precision} {error(plain):.2g}"
    if not error(ours) <= limit:  # so that NaN fails
        raise FailedError(found)
    return found


def require_time(context: Context) -> None:
    """Begin no latency piece that cannot end.

    Raises:
        IncompleteError: too little time is left.
    """
    if not context.dry_run and context.left < _MINUTES:
        raise IncompleteError(f"it needs {_MINUTES} minutes; give it more --minutes")


def latency(
    name: str, files: StageFiles, stage: Stage, engines: Mapping[str, Network], context: Context
) -> str:
    """Time one call of two rows of engines, PyTorch and diffusers in turn; write all samples.

    PyTorch and diffusers compute in the files' precision with the same weights; both compiled ones
    are replayed as CUDA graphs.

    Raises:
        FailedError: the device drifted, which makes the figures worthless.
    """
    inputs = inputs_for(stage.config, context)
    theirs = _diffusers(stage, files.precision, context)
    eager = {"diffusers eager": _their_call(theirs, inputs, files.precision)}
    networks = {"torch eager": opened("torch", files, context), **engines}
    eager |= {each: partial(network, **inputs) for each, network in networks.items()}
    compiled: dict[str, Run] = {}
    if not context.dry_run:
        network = opened("torch", files, context, compiled=True)
        compiled["torch compiled"] = partial(network, **inputs)
        faster = copy.deepcopy(theirs)
        faster.compile()
        compiled["diffusers compiled"] = _their_call(faster, inputs, files.precision)
    before = state(context.device)
    with torch.no_grad(), side_stream(context.device):
        watches: dict[str, Stopwatch] = {n: _watch(run, context) for n, run in eager.items()}
        watches |= {n: graph_stopwatch(run, context.device) for n, run in compiled.items()}
        rounds, repeats = (2, 1) if context.dry_run else (_ROUNDS, _REPEATS)
        timings, drift = measure(watches, "torch eager", rounds, repeats)
    record = {
        "stage": stage.config.name,
        "precision": files.precision,
        "rows": ROWS,
        "dry_run": context.dry_run,
        "drift": drift,
        "state": [before, state(context.device)],
        "timings": {key: timing.model_dump() for key, timing in timings.items()},
        "environment": described(context.device, context.commit),
    }
    path = context.output / f"{name.replace(' ', '-')}.json"
    write_bytes((json.dumps(record, indent=1) + "\n").encode(), path)
    if drift >= _DRIFT and not context.dry_run:
        raise FailedError(f"invalid: the device drifted by {drift:.1%}")
    return ", ".join(f"{key} {timing.median / 1000:.2f} ms" for key, timing in timings.items())


def _small(config: StageConfig) -> StageConfig:
    """The same kind of stage, small enough to export and build in seconds."""
    levels = 2 + (config.low_res is not None)
    unet = config.unet.model_copy(
        update={
            "channels": (32, 32, 64)[-levels:],
            "blocks": (1,) * levels,
            "attention": config.unet.attention[-levels:],
            "head_channels": 16,
            "text_width": 64,
            "context_width": 64,
            "time_width": 128,
            "pool_heads": 8,
        }
    )
    return config.model_copy(update={"unet": unet, "size": 32, "name": f"{config.name}-small"})


def _diffusers(stage: Stage, precision: Precision, context: Context) -> nn.Module:
    """The network of diffusers with the same shape and weights."""
    from diffusers import UNet2DConditionModel

    settings = unet_to_diffusers(stage.config.unet, stage.config.size)
    network: nn.Module = UNet2DConditionModel.from_config(  # type: ignore[no-untyped-call]
        settings
    )
    ours = stage.network.state_dict()
    theirs: dict[str, Tensor] = {}
    for entry in entries(stage.config.unet):
        theirs |= entry.split(ours[entry.ours])
    network.load_state_dict(theirs)
    return network.eval().to(context.device, DTYPES[precision])


def _their_call(network: nn.Module, inputs: Inputs, precision: Precision) -> Run:
    dtype = DTYPES[precision]
    x, t, text = (inputs[name].to(dtype) for name in ("x", "t", "text"))
    if "low_res" not in inputs:
        return partial(network, x, t, text)
    both = torch.cat([x, inputs["low_res"].to(dtype)], dim=1)
    return partial(network, both, t, text, class_labels=inputs["aug"])


def _watch(run: Run, context: Context) -> Stopwatch:
    """A call as it comes: its launch counts."""
    if context.dry_run:
        return WallStopwatch(run)
    for _ in range(5):
        run()
    return EventStopwatch(run, flush=lambda: None)
