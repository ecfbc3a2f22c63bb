import pytest
import torch
from torch import Tensor, nn

from cascade.config.stage import ThresholdConfig
from cascade.diffusion.denoiser import Conditioning, Denoiser, Prediction
from cascade.diffusion.guidance import guided
from cascade.diffusion.noise import Noise
from cascade.diffusion.samplers import initial
from cascade.diffusion.schedule import make_schedule
from cascade.errors import UserError
from cascade_kernels.sampler_step import clip


class TextSensitive(nn.Module):
    """A network whose answer depends on x and, in every pixel, on the mean of the real tokens."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.mix = nn.Conv2d(3, channels, 3, padding=1)
        self.read = nn.Linear(4, channels)
        self.rows: list[int] = []

    def forward(
        self, x: Tensor, t: Tensor, text: Tensor, text_mask: Tensor, *_: Tensor | None
    ) -> Tensor:
        self.rows.append(len(x))
        mask = text_mask[..., None].float()
        pooled = (text * mask).sum(1) / mask.sum(1)
        return self.mix(x).tanh() + self.read(pooled)[:, :, None, None]


def case(channels: int = 3) -> tuple[TextSensitive, Tensor, Tensor, Conditioning, Conditioning]:
    torch.manual_seed(0)
    cond = Conditioning(torch.randn(2, 5, 4), torch.ones(2, 5, dtype=torch.bool))
    null = Conditioning(torch.zeros(2, 1, 4), torch.ones(2, 1, dtype=torch.bool))
    x = 3 * torch.randn(2, 3, 6, 6)
    return TextSensitive(channels), x, torch.full((2,), 3.0), cond, null


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@torch.no_grad()
def test_mixing_x0_equals_mixing_what_the_network_predicts(prediction: Prediction) -> None:
    network, x, sigma, cond, null = case()
    denoiser = Denoiser(network, make_schedule("linear"), prediction)
    guided_x0 = guided(denoiser, cond, null, scale=4.0)(x, sigma).x0

    def mixed(x: Tensor, t: Tensor, *_: Tensor | None) -> Tensor:
        a = network(x, t, cond.text, cond.text_mask)
        b = network(x, t, null.text, null.text_mask)
        return b + 4.0 * (a - b)

    expected = Denoiser(mixed, make_schedule("linear"), prediction)(x, sigma, cond).x0
    # float32 rounding of numbers up to about 40.
    torch.testing.assert_close(guided_x0, expected, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_both_branches_go_through_the_network_at_once() -> None:
    network, x, sigma, cond, null = case()
    denoiser = Denoiser(network, make_schedule("linear"))
    guided(denoiser, cond, null, scale=2.0)(x, sigma)
    plain = guided(denoiser, cond, null, scale=1.0)(x, sigma)
    assert network.rows == [4, 2]
    assert torch.equal(plain.x0, denoiser(x, sigma, cond).x0)


@torch.no_grad()
def test_the_variance_is_the_conditional_branchs() -> None:
    network, x, sigma, cond, null = case(channels=6)
    denoiser = Denoiser(network, make_schedule("linear"), learned_variance=True)
    variance = guided(denoiser, cond, null, scale=3.0)(x, sigma).variance
    # Convolutions of 4 and of 2 rows may sum in another order.
    torch.testing.assert_close(variance, denoiser(x, sigma, cond).variance)


@torch.no_grad()
def test_thresholding_comes_after_guidance() -> None:
    network, x, sigma, cond, null = case()
    denoiser = Denoiser(network, make_schedule("linear"))
    free = guided(denoiser, cond, null, 5.0)(x, sigma).x0
    clipped = guided(denoiser, cond, null, 5.0, ThresholdConfig(kind="static"))(x, sigma).x0
    assert free.abs().max() > 1
    assert torch.equal(clipped, free.clamp(-1, 1))


def test_guidance_without_enough_null_conditions_is_refused() -> None:
    network, _, _, cond, null = case()
    denoiser = Denoiser(network, make_schedule("linear"))
    for wrong in (None, Conditioning(null.text[:1], null.text_mask[:1])):
        with pytest.raises(ValueError, match="needs 2 null"):
            guided(denoiser, cond, wrong, scale=2.0)


@pytest.mark.parametrize("cap", [None, 1.5, 1.0])
@pytest.mark.parametrize("percentile", [0.5, 0.95, 0.995, 1.0])
def test_dynamic_threshold_is_the_papers(cap: float | None, percentile: float) -> None:
    # Three images: one inside [-1, 1], one a little and one far outside.
    x0 = torch.randn(3, 3, 8, 8) * torch.tensor([0.1, 1.0, 30.0]).view(3, 1, 1, 1)
    s = torch.quantile(x0.abs().flatten(1), percentile, dim=1).clamp(1, cap).view(3, 1, 1, 1)
    threshold = ThresholdConfig(kind="dynamic", percentile=percentile, cap=cap)
    result = clip(x0, threshold)
    # The interpolation between two order statistics rounds differently.
    torch.testing.assert_close(result, x0.clamp(-s, s) / s, rtol=1e-6, atol=1e-6)
    assert torch.equal(result[0], x0[0])
    assert result.abs().max() <= 1
    assert torch.equal(clip(x0[1:2], threshold), result[1:2])


def test_a_picture_larger_than_torch_quantile_allows() -> None:
    x0 = torch.linspace(-2, 2, 2**24 + 2).view(1, 1, 2, -1)
    assert clip(x0, ThresholdConfig(kind="dynamic", percentile=0.5)).abs().max() == 1


def test_other_thresholds() -> None:
    x0 = torch.randn(2, 3, 4, 4) * 2
    assert clip(x0, ThresholdConfig(kind="none")) is x0
    assert torch.equal(clip(x0, ThresholdConfig(kind="static")), x0.clamp(-1, 1))
    with pytest.raises(UserError, match="percentile"):
        ThresholdConfig(kind="dynamic", percentile=99.5)
    with pytest.raises(UserError, match="cap"):
        ThresholdConfig(kind="dynamic", percentile=0.95, cap=0.5)


def test_sampling_starts_from_a_unit_normal_latent() -> None:
    x = initial(Noise([3]), (3, 4, 4), 2e4)
    latent = x / (1 + 2e4**2) ** 0.5
    torch.testing.assert_close(latent, Noise([3]).normal(3, 4, 4))
