"""Step by step against diffusers' schedulers on the same noise and the same network.

Their tables are float32; they are replaced by ours so that only the formulas are compared.
"""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HeunDiscreteScheduler,
)
from torch import Tensor, nn

from cascade.config.stage import SamplerConfig, ThresholdConfig
from cascade.diffusion.denoiser import Conditioning, Denoiser, Prediction
from cascade.diffusion.guidance import guided
from cascade.diffusion.noise import Noise
from cascade.diffusion.samplers import calls, initial, run
from cascade.diffusion.schedule import DiscreteSchedule, Spacing, sigmas

SEEDS = [11, 12]
SHAPE = (3, 8, 8)
TIMESTEPS = [999, 950, 801, 640, 500, 333, 200, 90, 20, 0]
SCHEDULE = DiscreteSchedule.squared_cosine()
# At t = 999 alpha is 5e-5, so float32 rounding of z (6e-8) is 1e-3 of x0, in theirs and in ours; of
# that alpha(950) = 0.07 enters the next z: 7e-5. Three times as much for another CPU's convolution.
TOLERANCE = 2e-4

# They hand torch tensors to numpy in a way that numpy 2 will stop accepting.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class Net(nn.Module):
    """Random weights around the best answer for unit normal images, so that nothing explodes."""

    def __init__(self, prediction: Prediction, channels: int = 3) -> None:
        super().__init__()
        self.prediction = prediction
        self.conv = nn.Conv2d(3, channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, *_: Tensor | None) -> Tensor:
        alpha = torch.cos(t * (math.pi / 2 / 1008)).view(-1, 1, 1, 1)
        best = {"eps": (1 - alpha**2).sqrt() * x, "v": 0 * x, "x0": alpha * x}[self.prediction]
        out = self.conv(x).tanh()
        return torch.cat([best + alpha * out[:, :3], out[:, 3:]], dim=1)


class TorchNoise(Noise):
    """Noise of the generators that diffusers draws with."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def normal(self, *shape: int) -> Tensor:
        """Draw as diffusers does."""
        return torch.stack([torch.randn(shape, generator=one) for one in self.generators])


def build(prediction: Prediction = "eps", channels: int = 3) -> Net:
    torch.manual_seed(1)
    return Net(prediction, channels)


def trace(
    net: Net, config: SamplerConfig,
    threshold: ThresholdConfig | None = None, timesteps: list[int] = TIMESTEPS,
) -> list[Tensor]:  # fmt: skip
    """Our variance-preserving latents after each step."""
    denoiser = Denoiser(net, SCHEDULE, net.prediction, net.conv.out_channels == 6)
    rows = len(SEEDS)
    cond = Conditioning(torch.zeros(rows, 1, 4), torch.ones(rows, 1, dtype=torch.bool))
    levels = sigmas(SCHEDULE, timesteps)
    noise = TorchNoise(SEEDS)
    latents: list[Tensor] = []

    def keep(i: int, x: Tensor, _: object) -> None:
        latents.append(x / math.sqrt(1 + float(levels[i + 1]) ** 2))

    denoise = guided(denoiser, cond, threshold=threshold)
    x = initial(noise, SHAPE, float(levels[0]))
    run(calls(config, levels), denoise, x, noise, keep)
    return latents


def start() -> tuple[Tensor, list[torch.Generator]]:
    """The same first draw and the streams that follow it."""
    noise = TorchNoise(SEEDS)
    return noise.normal(*SHAPE), noise.generators


def use_our_table(scheduler: Any) -> Any:
    scheduler.alphas_cumprod = SCHEDULE.alphas_bar.clone()
    return scheduler


@torch.no_grad()
def theirs(net: Net, scheduler: Any, **step: Any) -> list[Tensor]:
    latents = []
    z, streams = start()
    for t in scheduler.timesteps:
        out = net(z, t.float().expand(len(z)))
        if "generator" in step:
            step["generator"] = streams
        z = scheduler.step(out, t, z, **step).prev_sample.float()
        latents.append(z)
    return latents


def assert_same(ours: list[Tensor], reference: list[Tensor]) -> None:
    assert len(ours) == len(reference)
    for a, b in zip(ours, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=TOLERANCE, atol=TOLERANCE * b.abs().max().item())


NAMES: dict[Prediction, str] = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
THRESHOLDS = {
    "free": (ThresholdConfig(kind="none"), {"clip_sample": False}),
    "static": (ThresholdConfig(kind="static"), {"clip_sample": True}),
    "dynamic": (
        ThresholdConfig(kind="dynamic", percentile=0.95, cap=1.5),
        {
            "clip_sample": False,
            "thresholding": True,
            "dynamic_thresholding_ratio": 0.95,
            "sample_max_value": 1.5,
        },
    ),
}


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("prediction", NAMES)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_ancestral_is_ddpm(variance: str, prediction: Prediction, threshold: str) -> None:
    net = build(prediction, 6 if variance == "learned" else 3)
    limit, settings = THRESHOLDS[threshold]
    scheduler = DDPMScheduler(
        1000,
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range" if variance == "learned" else variance,
        prediction_type=NAMES[prediction],
        **settings,
    )
    use_our_table(scheduler).set_timesteps(timesteps=TIMESTEPS)
    ours = trace(net, SamplerConfig(variance=variance), limit)
    assert_same(ours, theirs(net, scheduler, generator=None))


@pytest.mark.parametrize("threshold", ["free", "dynamic"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta: float, threshold: str) -> None:
    net = build()
    limit, settings = THRESHOLDS[threshold]
    scheduler = DDIMScheduler(1000, beta_schedule="squaredcos_cap_v2", **settings)
    use_our_table(scheduler).set_timesteps(10)  # "leading": 900, 800, ..., 0
    ours = trace(net, SamplerConfig(name="ddim", eta=eta), limit, scheduler.timesteps.tolist())
    # Theirs re-derives eps from the thresholded x0 only when asked to.
    step = {"eta": eta, "use_clipped_model_output": True, "generator": None}
    assert_same(ours, theirs(net, scheduler, **step))


@pytest.mark.parametrize("threshold", ["free", "dynamic"])
def test_dpmpp_2m(threshold: str) -> None:
    net = build()
    limit, settings = THRESHOLDS[threshold]
    settings = {key: value for key, value in settings.items() if key != "clip_sample"}
    scheduler = DPMSolverMultistepScheduler(1000, beta_schedule="squaredcos_cap_v2", **settings)
    use_our_table(scheduler).set_timesteps(timesteps=TIMESTEPS)
    ours = trace(net, SamplerConfig(name="dpmpp_2m"), limit)
    assert_same(ours, theirs(net, scheduler))


@pytest.mark.parametrize("steps", [2, 20, 333, 999])
@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_spacing(spacing: Spacing, steps: int) -> None:
    """DPM-Solver++ starts its last step before timestep 0, the others there."""
    for kind, end in ((DDPMScheduler, True), (DPMSolverMultistepScheduler, False)):
        scheduler = kind(1000, timestep_spacing=spacing)
        scheduler.set_timesteps(steps)
        assert SCHEDULE.spaced(steps, spacing, end).tolist() == scheduler.timesteps.tolist()


@torch.no_grad()
def test_heun() -> None:
    net = build()
    timesteps = [980, *TIMESTEPS[1:]]  # from sigma = 33: ours is of first order above 100
    scheduler = HeunDiscreteScheduler(1000, beta_schedule="squaredcos_cap_v2")
    use_our_table(scheduler).set_timesteps(timesteps=timesteps)
    levels = sigmas(SCHEDULE, timesteps)
    x = start()[0] * math.sqrt(1 + float(levels[0]) ** 2)
    reference = []
    for t in scheduler.timesteps:
        out = net(scheduler.scale_model_input(x, t), t.expand(len(x)))
        x = scheduler.step(out, t, x).prev_sample
        if scheduler.state_in_first_order:  # a whole step is done
            level = float(levels[len(reference) + 1])
            reference.append(x / math.sqrt(1 + level**2))
    reference.append(x)
    ours = trace(net, SamplerConfig(name="heun"), timesteps=timesteps)
    assert_same(ours, reference)
