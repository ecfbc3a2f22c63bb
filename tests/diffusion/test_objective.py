import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cascade.config.stage import LowResConfig
from cascade.diffusion.denoiser import Conditioning, Denoiser, Prediction
from cascade.diffusion.noise import LowResolution, Noise
from cascade.diffusion.objective import BaseObjective, SuperResObjective, variational_bound
from cascade.diffusion.schedule import DiscreteSchedule, make_schedule

SQUARED_COSINE = DiscreteSchedule.squared_cosine()


class Chosen(Noise):
    """Noise whose uniform draws are given."""

    def __init__(self, uniforms: Sequence[float], seed: int = 0) -> None:
        super().__init__([seed + i for i in range(len(uniforms))])
        self.uniforms = torch.tensor(uniforms, dtype=torch.float64)

    def uniform(self) -> Tensor:
        return self.uniforms


class Net(nn.Module):
    """A convolution of everything it is given, so that every input matters."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, channels, 3, padding=1)
        self.low_res: Tensor | None = None
        self.aug: Tensor | None = None

    def forward(self, x: Tensor, t: Tensor, text: Tensor, mask: Tensor, *given: Tensor) -> Tensor:
        low_res, aug = given or (None, None)
        self.low_res, self.aug = low_res, aug
        return self.conv(torch.cat([x, x if low_res is None else low_res], dim=1))


def conditioning(rows: int, low_res: Tensor | None = None) -> Conditioning:
    return Conditioning(
        torch.zeros(rows, 1, 4), torch.ones(rows, 1, dtype=torch.bool), low_res=low_res
    )


def pictures(rows: int, size: int = 8) -> Tensor:
    """8-bit pictures, black and white pixels included."""
    levels = torch.randint(0, 256, (rows, 3, size, size))
    levels[:, :, 0, 0], levels[:, :, 0, 1] = 0, 255
    return levels / 127.5 - 1


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@settings(max_examples=20)
@given(u=st.floats(0.03, 0.9999), seed=st.integers(0, 1000))
def test_the_plain_loss_is_the_mean_squared_error_of_the_prediction(
    prediction: Prediction, u: float, seed: int
) -> None:
    torch.manual_seed(seed)
    net, images = Net(), pictures(2)
    denoiser = Denoiser(net, SQUARED_COSINE, prediction)
    loss = BaseObjective()(denoiser, images, conditioning(2), Chosen([u, u], seed)).terms["mse"]
    sigma = SQUARED_COSINE.sigma(SQUARED_COSINE.draw(torch.tensor(u))).item()
    alpha = 1 / math.sqrt(1 + sigma**2)
    eps = Chosen([u, u], seed).normal(3, 8, 8)
    out = net(alpha * (images + sigma * eps), *[torch.zeros(2)] * 3)
    target = {"eps": eps, "v": alpha * eps - alpha * sigma * images, "x0": images}[prediction]
    expected = (out - target).square().flatten(1).mean(1)
    # x0 + sigma eps rounds to 6e-8 of the larger part; sigma >= 0.05 here.
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_min_snr_weights_the_error_of_x0(prediction: Prediction) -> None:
    torch.manual_seed(0)
    timesteps = torch.tensor([100, 300, 500, 700, 900])
    uniforms = ((timesteps + 0.5) / 1000).tolist()
    net, images = Net(), pictures(5)
    denoiser = Denoiser(net, SQUARED_COSINE, prediction)
    objective = BaseObjective("min_snr", gamma=5.0)
    terms, drawn = objective(denoiser, images, conditioning(5), Chosen(uniforms))
    assert torch.equal(drawn, timesteps.double())
    loss = terms["mse"]
    sigma = SQUARED_COSINE.sigmas[timesteps]
    x = images + sigma.float().view(-1, 1, 1, 1) * Chosen(uniforms).normal(3, 8, 8)
    x0 = denoiser(x, sigma, conditioning(5)).x0
    weight = (sigma**-2).clamp(max=5.0).float()
    assert 0 < (weight == 5).sum() < 5  # both sides of the limit are tried
    expected = weight * (x0 - images).square().flatten(1).mean(1)
    torch.testing.assert_close(loss, expected)


def test_the_highest_noise_level_loses_no_precision() -> None:
    """sigma = 2e4: ||x0_hat - x0||^2 is 1e9, the loss of a good network 1e-6."""
    images, noise = pictures(2), Chosen([0.9999, 0.9999])
    offset = nn.Parameter(torch.tensor(1e-3))
    eps = Chosen([0.9999, 0.9999]).normal(3, 8, 8)

    def network(x: Tensor, t: Tensor, *_: Tensor | None) -> Tensor:
        assert t.tolist() == [999, 999]
        return eps + offset

    denoiser = Denoiser(network, SQUARED_COSINE)
    loss = BaseObjective()(denoiser, images, conditioning(2), noise).terms["mse"]
    loss.sum().backward()
    # The error of eps, 1e-3, is a float32 difference of numbers near 1: 6e-8 / 1e-3 of it, twice.
    torch.testing.assert_close(loss, torch.full((2,), 1e-6), rtol=1e-3, atol=0)
    assert offset.grad.item() == pytest.approx(4e-3, rel=1e-3)


def slow_kl(t: int, x0: Tensor, x0_hat: Tensor, fraction: Tensor) -> Tensor:
    """L_{t-1} as the papers write it, t > 0, of float64 images; bits per dimension."""
    betas, bar = SQUARED_COSINE.betas, SQUARED_COSINE.alphas_bar
    small = betas[t] * (1 - bar[t - 1]) / (1 - bar[t])
    variance = torch.exp(fraction * betas[t].log() + (1 - fraction) * small.log())
    slope = bar[t - 1].sqrt() * betas[t] / (1 - bar[t])  # Ho et al., eq. (7); z_t's part cancels
    p = torch.distributions.Normal(slope * x0_hat, variance.sqrt())
    q = torch.distributions.Normal(slope * x0, small.sqrt())
    return torch.distributions.kl_divergence(q, p).mean() / math.log(2)


def slow_bound(t: int, x0: Tensor, x0_hat: Tensor, fraction: Tensor) -> float:
    """The bound as the papers write it, in z and in float64, for one image."""
    betas, bar = SQUARED_COSINE.betas, SQUARED_COSINE.alphas_bar
    x0, x0_hat, fraction = x0.double(), x0_hat.double(), fraction.double()
    k = max(t, 1)  # the paper's code replaces beta~_0 = 0 by beta~_1
    small = betas[k] * (1 - bar[k - 1]) / (1 - bar[k])
    variance = torch.exp(fraction * betas[t].log() + (1 - fraction) * small.log())
    if t > 0:
        return slow_kl(t, x0, x0_hat, fraction).item()
    bits = []
    for value, mean, var in zip(
        x0.flatten().tolist(), x0_hat.flatten().tolist(), variance.flatten().tolist(), strict=True
    ):

        def cdf(at: float, mean: float = mean, var: float = var) -> float:
            return 0.5 * (1 + math.erf((at - mean) / math.sqrt(2 * var)))

        upper = 1.0 if value == 1 else cdf(value + 1 / 255)
        lower = 0.0 if value == -1 else cdf(value - 1 / 255)
        bits.append(-math.log2(max(upper - lower, 1e-12)))
    return sum(bits) / len(bits)


@pytest.mark.parametrize("timestep", [0, 1, 2, 50, 500, 900, 998, 999])
def test_the_bound_is_the_papers(timestep: int) -> None:
    torch.manual_seed(timestep)
    x0 = pictures(2, 4)
    # At t = 0 a trained network is within a few grey levels; elsewhere as wrong as it likes.
    x0_hat = x0 + (0.01 if timestep == 0 else 0.5) * torch.randn_like(x0)
    fraction = torch.rand_like(x0) * 1.4 - 0.2  # networks leave [0, 1]
    steps = torch.tensor([timestep, timestep])
    bound = variational_bound(SQUARED_COSINE, steps, x0, x0_hat, fraction)
    expected = [slow_bound(timestep, *row) for row in zip(x0, x0_hat, fraction, strict=True)]
    # float32: terms of order 1 cancel to what is left; at t = 0 an 8-bit bin is a difference of
    # two probabilities.
    assert bound.tolist() == pytest.approx(expected, rel=2e-4, abs=1e-7)


@pytest.mark.parametrize("timestep", [1, 2, 50, 500, 900, 998, 999])
def test_the_bound_s_gradient_is_the_papers(timestep: int) -> None:
    torch.manual_seed(timestep)
    x0 = pictures(1, 4)
    x0_hat = x0 + 0.5 * torch.randn_like(x0)
    fraction = (torch.rand_like(x0) * 1.4 - 0.2).requires_grad_()
    steps = torch.tensor([timestep])
    variational_bound(SQUARED_COSINE, steps, x0, x0_hat, fraction).sum().backward()
    exact = fraction.detach().double().requires_grad_()
    slow_kl(timestep, x0.double(), x0_hat.double(), exact).backward()
    # log(ratio) / 2 times 1 - (1 + d^2) / ratio^f, float32 numbers near 1 that cancel: the two
    # variances of a step are alike to 1e-9 at the last.
    bar = SQUARED_COSINE.alphas_bar
    ratio = (1 - bar[timestep]) / (1 - bar[timestep - 1])  # beta over beta~
    unit = ratio.log().item() / 2 / (x0.numel() * math.log(2))
    torch.testing.assert_close(fraction.grad.double(), exact.grad, rtol=2e-4, atol=4 * 6e-8 * unit)


def test_the_hybrid_loss_adds_the_bound_and_trains_only_the_variance_with_it() -> None:
    torch.manual_seed(0)
    net, images = Net(6), pictures(3)
    denoiser = Denoiser(net, SQUARED_COSINE, "eps", learned_variance=True)
    uniforms = [0.0, 0.5, 0.95]
    terms = BaseObjective(vb_weight=1.0)(denoiser, images, conditioning(3), Chosen(uniforms)).terms
    assert set(terms) == {"mse", "vb"}
    half = BaseObjective(vb_weight=0.5)(denoiser, images, conditioning(3), Chosen(uniforms))
    torch.testing.assert_close(half.terms["vb"], terms["vb"] / 2)

    sigma = SQUARED_COSINE.sigmas[[0, 500, 950]]
    x = images + sigma.float().view(-1, 1, 1, 1) * Chosen(uniforms).normal(3, 8, 8)
    denoised = denoiser(x, sigma, conditioning(3))
    expected = [
        slow_bound(t, images[i], denoised.x0[i].detach(), denoised.variance[i].detach())
        for i, t in enumerate([0, 500, 950])
    ]
    # As above; the image of the untrained network at t = 950 is 1e1 off, and errors with it.
    assert terms["vb"].tolist() == pytest.approx(expected, rel=1e-3)

    terms["vb"].sum().backward()
    gradient = net.conv.weight.grad
    assert gradient[:3].eq(0).all()
    assert gradient[3:].abs().sum() > 0


def test_the_bound_is_refused_where_it_has_no_meaning() -> None:
    objective = BaseObjective(vb_weight=1.0)
    for denoiser in (
        Denoiser(Net(6), make_schedule("cosine"), learned_variance=True),
        Denoiser(Net(3), SQUARED_COSINE),
    ):
        with pytest.raises(ValueError, match="bound"):
            objective(denoiser, pictures(1), conditioning(1), Noise([0]))


def test_without_a_weight_the_variance_head_is_left_alone() -> None:
    net = Net(6)
    denoiser = Denoiser(net, make_schedule("cosine"), learned_variance=True)
    terms = BaseObjective()(denoiser, pictures(2), conditioning(2), Noise([0, 1])).terms
    assert set(terms) == {"mse"}
    terms["mse"].sum().backward()
    assert net.conv.weight.grad[3:].eq(0).all()


def test_a_rows_loss_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    denoiser, images = Denoiser(Net(), make_schedule("cosine")), pictures(3)
    batch = BaseObjective()(denoiser, images, conditioning(3), Noise([4, 5, 6])).terms["mse"]
    alone = BaseObjective()(denoiser, images[1:2], conditioning(1), Noise([5])).terms["mse"]
    assert batch.shape == (3,)
    torch.testing.assert_close(batch[1:2], alone)  # the order of sums in the convolution


def test_super_resolution_shows_the_network_the_noised_small_image() -> None:
    torch.manual_seed(0)
    net, images, small = Net(), pictures(2), pictures(2, 2)
    augment = LowResolution(LowResConfig(size=4, upsample="nearest"))
    schedule = augment.schedule
    objective = SuperResObjective(BaseObjective(), augment, (0.2, 0.4))
    rows = objective(Denoiser(net, schedule), images, conditioning(2, small), Noise([1, 2]))

    replay = Noise([1, 2])  # level, low-resolution noise, timestep, eps
    level = 0.2 + 0.2 * replay.uniform()
    low_res, aug = augment(small, 8, level, replay)
    assert torch.equal(net.low_res, low_res)
    assert torch.equal(net.aug, aug)
    assert ((aug >= 200) & (aug < 400)).all()
    cond = replace(conditioning(2, low_res), aug=aug)
    base = BaseObjective()(Denoiser(net, schedule), images, cond, replay)
    assert torch.equal(rows.terms["mse"], base.terms["mse"])
    assert torch.equal(rows.timestep, base.timestep)


def test_a_fixed_level_leaves_the_other_draws_as_they_were() -> None:
    net, images, small = Net(), pictures(1), pictures(1, 2)
    augment = LowResolution(LowResConfig(size=4, schedule="linear"))
    schedule = augment.schedule
    for level in ((0.3, 0.3), (0.0, 1.0)):
        objective = SuperResObjective(BaseObjective(), augment, level)
        noise = Noise([3])
        objective(Denoiser(net, schedule), images, conditioning(1, small), noise)
        if level == (0.3, 0.3):
            assert net.aug.tolist() == [300]
            after = noise.uniform()
    assert torch.equal(noise.uniform(), after)


def test_super_resolution_needs_pairs_and_a_range() -> None:
    augment = LowResolution(LowResConfig(size=4, schedule="linear"))
    objective = SuperResObjective(BaseObjective(), augment)
    with pytest.raises(ValueError, match="pairs"):
        objective(Denoiser(Net(), SQUARED_COSINE), pictures(1), conditioning(1), Noise([0]))
    with pytest.raises(ValueError, match="range"):
        SuperResObjective(BaseObjective(), augment, (0.5, 0.1))
