"""Samplers against targets whose perfect denoiser is known in closed form.

A batch is one "image" of C coordinates and many points, so that one stream draws them all.
"""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cascade.config.stage import SamplerConfig, ThresholdConfig
from cascade.diffusion.denoiser import Conditioning, Denoise, Denoised, Denoiser
from cascade.diffusion.guidance import guided
from cascade.diffusion.noise import Noise
from cascade.diffusion.samplers import calls, initial, run
from cascade.diffusion.schedule import ScheduleName, make_schedule, sigmas
from cascade_kernels.names import Backend

POINTS = 20_000
SCHEDULES: tuple[ScheduleName, ...] = ("cosine", "squared_cosine", "linear")
MEANS = torch.tensor([[-0.6, -0.4], [0.5, 0.6], [0.7, -0.5]], dtype=torch.float64)
STDS = torch.tensor([0.1, 0.15, 0.2], dtype=torch.float64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def mixture(x: Tensor, sigma: Tensor) -> Denoised:
    """The posterior mean of a mixture of three round Gaussians in the plane; x: 1 2 1 N."""
    points = x[0, :, 0].T[:, None]  # N 1 2
    total = STDS**2 + sigma[0] ** 2
    distance = (points - MEANS).square().sum(-1)
    share = torch.softmax(WEIGHTS.log() - total.log() - distance / (2 * total), dim=1)
    means = MEANS + (STDS**2 / total)[:, None] * (points - MEANS)
    x0 = (share[..., None] * means).sum(1)
    return Denoised(x0.T[None, :, None], None)


Sampling = Callable[..., Tensor]


def by(name: str, **settings: object) -> Sampling:
    """A sampler with its settings: (denoise, x, sigmas, noise, on_step)."""
    config = SamplerConfig.parse({"name": name, **settings}, "the test")
    return lambda d, x, s, n, f=None: run(calls(config, s), d, x, n, f)


SAMPLERS: dict[str, tuple[Sampling, int]] = {
    "ancestral small": (by("ancestral", variance="fixed_small"), 250),
    "ancestral large": (by("ancestral", variance="fixed_large"), 250),
    "ddim": (by("ddim"), 100),
    "ddim eta 1": (by("ddim", eta=1.0), 250),
    "dpmpp_2m": (by("dpmpp_2m"), 50),
    "heun": (by("heun"), 50),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samples_have_the_targets_mean_and_covariance(name: str) -> None:
    sampler, steps = SAMPLERS[name]
    schedule = make_schedule("cosine")
    levels = sigmas(schedule, schedule.spaced(steps))
    noise = Noise([1])
    x = initial(noise, (2, 1, POINTS), float(levels[0])).double()
    samples = sampler(mixture, x, levels, noise)[0, :, 0]
    mean = WEIGHTS @ MEANS
    centred = MEANS - mean
    spread = (WEIGHTS * STDS**2).sum() * torch.eye(2)
    covariance = centred.T @ (WEIGHTS[:, None] * centred) + spread
    # Five standard errors are 5 * 0.65 / sqrt(20,000) = 0.023; the rest is for the finite steps.
    torch.testing.assert_close(samples.mean(1), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(samples.cov(), covariance, rtol=0, atol=0.03)


def test_heun_takes_one_call_where_its_correction_would_do_harm() -> None:
    """x0 jumps once, as untrained or guided networks do: the latent must not follow it far."""
    schedule = make_schedule("cosine")
    levels = sigmas(schedule, schedule.spaced(10))
    x = initial(Noise([0]), (1, 1, 1000), float(levels[0]))
    trace: list[Tensor] = []
    asked: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Denoised:
        asked.append(float(sigma[0]))
        return Denoised(torch.full_like(x, 1.0 if sigma[0] > 1000 else -1.0), None)

    by("heun")(denoise, x, levels, Noise([0]), lambda i, x, _: trace.append(x))
    assert asked[:3] == [levels[0], levels[1], levels[2]]
    assert len(asked) == 2 * 10 - 2
    latent = trace[0] / math.sqrt(1 + float(levels[1]) ** 2)
    assert latent.abs().max() < 5


def gaussian(mean: float, std: float) -> Denoise:
    def denoise(x: Tensor, sigma: Tensor) -> Denoised:
        s2 = float(sigma[0]) ** 2
        return Denoised((s2 * mean + std**2 * x) / (s2 + std**2), None)

    return denoise


ODE: dict[str, tuple[Sampling, int]] = {
    "ddim": (by("ddim"), 1),
    "dpmpp_2m": (by("dpmpp_2m"), 2),
    "heun": (by("heun"), 2),
}


@pytest.mark.parametrize("name", ODE)
def test_the_order_of_convergence(name: str) -> None:
    sample, order = ODE[name]
    mean, std, first, last = 0.3, 0.5, 20.0, 0.05

    def error(steps: int) -> float:
        grid = torch.logspace(math.log10(first), math.log10(last), steps + 1, dtype=torch.float64)
        trace: list[Tensor] = []
        x = torch.full((1, 1, 1, 1), 7.0, dtype=torch.float64)
        levels = torch.cat([grid, torch.zeros(1)])
        sample(gaussian(mean, std), x, levels, Noise([0]), lambda i, x, denoised: trace.append(x))
        # The exact solution of the ODE scales distances to the mean with the total deviation.
        exact = mean + (7.0 - mean) * math.sqrt((std**2 + last**2) / (std**2 + first**2))
        return abs(trace[-2].item() - exact)  # before the step to 0, which is of first order

    measured = [math.log2(error(n) / error(2 * n)) for n in (64, 128)]
    # Higher-order terms still bend the slope by a few percent at these step counts.
    assert measured == pytest.approx([order, order], abs=0.15)


@pytest.mark.parametrize("steps", [10, 15, 20, 30, 50])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_second_order_solver_is_nearer_to_the_image_than_the_first(
    name: ScheduleName, steps: int
) -> None:
    """Down to the image itself, whose last step is of first order."""
    schedule, std = make_schedule(name), 0.25

    def error(name: str, end: bool) -> float:
        levels = sigmas(schedule, schedule.spaced(steps, end=end))
        x = torch.full((1, 1, 1, 1), float(levels[0]), dtype=torch.float64)
        drawn = ODE[name][0](gaussian(0.0, std), x, levels, lambda *_: None)
        return abs(drawn.item() - x.item() * std / math.hypot(std, float(levels[0])))

    assert error("dpmpp_2m", end=False) < error("ddim", end=True)


def test_the_optimal_learned_variance_is_exact_in_few_steps() -> None:
    """For a Gaussian the reverse step is Gaussian: 8 steps suffice if its variance is right."""
    mean, std = 0.3, 0.4
    schedule = make_schedule("squared_cosine")
    levels = sigmas(schedule, [900, 700, 500, 350, 200, 100, 30, 0])
    below = dict(zip(levels.tolist()[:-1], levels.tolist()[1:], strict=True))

    def denoise(x: Tensor, sigma: Tensor) -> Denoised:
        t = float(sigma[0])
        s = below[t]
        x0 = gaussian(mean, std)(x, sigma).x0
        if s == 0:
            return Denoised(x0, torch.zeros_like(x))
        small = s**2 * (t**2 - s**2) / t**2
        large = (t**2 - s**2) * (1 + s**2) / (1 + t**2)
        exact = small + (1 - s**2 / t**2) ** 2 * std**2 * t**2 / (std**2 + t**2)
        fraction = math.log(exact / small) / math.log(large / small)
        assert 0 < fraction < 1
        return Denoised(x0, torch.full_like(x, fraction))

    def deviation(variance: str) -> float:
        noise = Noise([2])
        x = initial(noise, (1, 1, POINTS), float(levels[0])).double()
        return by("ancestral", variance=variance)(denoise, x, levels, noise).std().item()

    # Five standard errors: 5 * 0.4 / sqrt(2 * 20,000) = 0.01.
    assert deviation("learned") == pytest.approx(std, abs=0.01)
    assert deviation("fixed_small") < std - 0.03
    assert deviation("fixed_large") > std + 0.03


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x: Tensor, *_: Tensor | None) -> Tensor:
        return self.conv(x).tanh()


def small_case(seeds: list[int]) -> tuple[Denoise, Tensor, Tensor, Noise]:
    torch.manual_seed(0)
    schedule = make_schedule("linear")
    denoiser = Denoiser(Net(), schedule, "x0", learned_variance=True)
    rows = len(seeds)
    cond = Conditioning(torch.zeros(rows, 1, 4), torch.ones(rows, 1, dtype=torch.bool))
    levels = sigmas(schedule, schedule.spaced(5))
    noise = Noise(seeds)
    return guided(denoiser, cond), initial(noise, (3, 8, 8), float(levels[0])), levels, noise


RUNS: dict[str, Sampling] = {
    "learned": by("ancestral", variance="learned"),
    "ddim": by("ddim", eta=0.7),
    "dpmpp_2m": by("dpmpp_2m"),
    "heun": by("heun"),
}


@pytest.mark.parametrize("name", RUNS)
def test_no_graph_is_recorded_while_sampling(name: str) -> None:
    result = RUNS[name](*small_case([1, 2]))
    assert result.grad_fn is None
    assert not result.requires_grad


@pytest.mark.parametrize("name", RUNS)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    batch = RUNS[name](*small_case([1, 2, 3]))
    alone = RUNS[name](*small_case([2]))
    # Only the order of summation inside the convolution may differ.
    torch.testing.assert_close(batch[1:2], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_step_in_one_operation_is_the_same(backend: Backend, name: str) -> None:
    """The fused step against the update applied to what the same `denoise` returns."""
    device = "cuda" if torch.cuda.is_available() else "cpu"  # there Triton interprets the kernel
    if backend == "triton":
        pytest.importorskip("triton")
    torch.manual_seed(0)
    schedule = make_schedule("cosine")
    denoiser = Denoiser(Net().to(device), schedule, "v", learned_variance=True)
    cond = Conditioning(
        torch.zeros(2, 1, 4, device=device), torch.ones(2, 1, dtype=torch.bool, device=device)
    )
    threshold = ThresholdConfig(kind="dynamic", percentile=0.95, cap=1.5)
    denoise = guided(denoiser, cond, cond, 3.0, threshold, backend=backend)
    # From sigma = 64, where Heun's correction is on from the start.
    levels = sigmas(schedule, [990, 700, 400, 100])
    x = initial(Noise([1, 2]), (3, 8, 8), float(levels[0])).to(device)
    fused = RUNS[name](denoise, x, levels, Noise([3, 4]))
    apart = RUNS[name](lambda x, sigma: denoise(x, sigma), x, levels, Noise([3, 4]))
    # At the first level x0 is the rounding of numbers up to 64 (1e-5 of an image), and the network
    # between the steps may double it.
    torch.testing.assert_close(fused, apart, rtol=0, atol=1e-4)


def test_every_step_is_reported() -> None:
    denoise, x, levels, noise = small_case([1])
    seen: list[int] = []
    last: list[Tensor] = []

    def keep(i: int, x: Tensor, _: Denoised) -> None:
        seen.append(i)
        last.append(x)

    result = by("ddim")(denoise, x, levels, noise, keep)
    assert seen == [0, 1, 2, 3, 4]
    assert last[-1] is result


def test_bad_arguments_are_refused() -> None:
    _, x, levels, noise = small_case([1])
    plain = gaussian(0.0, 1.0)
    with pytest.raises(ValueError, match="no variance"):
        by("ancestral", variance="learned")(plain, x, levels, noise)
    for wrong in (levels[:-1], levels.flip(0), levels[-1:]):
        with pytest.raises(ValueError, match="descend"):
            by("heun")(plain, x, wrong, noise)
