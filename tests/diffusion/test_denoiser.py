import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cascade.diffusion.denoiser import Conditioning, Denoiser, Prediction
from cascade.diffusion.schedule import ScheduleName, make_schedule


def conditioning(rows: int, length: int = 3, low_res: bool = False) -> Conditioning:
    return Conditioning(
        torch.randn(rows, length, 4),
        torch.ones(rows, length, dtype=torch.bool),
        torch.randn(rows, 3, 4, 4) if low_res else None,
        torch.rand(rows) if low_res else None,
    )


class Answer:
    """A network that returns a fixed tensor and keeps what it was given."""

    def __init__(self, answer: Tensor) -> None:
        self.answer = answer
        self.x: Tensor
        self.t: Tensor

    def __call__(self, x: Tensor, t: Tensor, *_: Tensor | None) -> Tensor:
        self.x, self.t = x, t
        return self.answer


@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@settings(max_examples=25)
@given(timestep=st.integers(0, 999), seed=st.integers(0, 2**31))
def test_a_perfect_answer_gives_the_image_back(
    prediction: Prediction, timestep: int, seed: int
) -> None:
    schedule = make_schedule("squared_cosine")
    rng = torch.Generator().manual_seed(seed)
    x0, eps = torch.randn(2, 2, 3, 4, 4, generator=rng, dtype=torch.float64)
    sigma = schedule.sigma(torch.full((2,), timestep, dtype=torch.float64))
    alpha = (1 + sigma[0] ** 2) ** -0.5
    sigma_vp = alpha * sigma[0]
    answer = {"eps": eps, "v": alpha * eps - sigma_vp * x0, "x0": x0}[prediction]
    network = Answer(answer)
    denoised = Denoiser(network, schedule, prediction)(x0 + sigma[0] * eps, sigma, conditioning(2))
    # float64 rounding of x, at most sigma = 2e4 times 1e-16.
    torch.testing.assert_close(denoised.x0, x0, rtol=0, atol=1e-10)
    torch.testing.assert_close(network.x, alpha * x0 + sigma_vp * eps)
    assert network.t.tolist() == [timestep, timestep]
    assert denoised.variance is None


@pytest.mark.parametrize("name", ["cosine", "squared_cosine", "linear"])
def test_the_network_is_told_the_time_of_every_row(name: ScheduleName) -> None:
    schedule = make_schedule(name)
    timesteps = torch.tensor([3.0, 500.0, 998.0])
    network = Answer(torch.zeros(3, 3, 2, 2))
    Denoiser(network, schedule)(torch.zeros(3, 3, 2, 2), schedule.sigma(timesteps), conditioning(3))
    torch.testing.assert_close(network.t, timesteps)


def test_the_upper_channels_are_the_variance() -> None:
    out = torch.cat([torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), -0.5)], dim=1)
    denoiser = Denoiser(Answer(out), make_schedule("linear"), "x0", learned_variance=True)
    denoised = denoiser(torch.ones(1, 3, 2, 2), torch.ones(1), conditioning(1))
    assert denoised.x0.eq(0).all()
    assert denoised.variance.eq(0.25).all()


def test_conversions_stay_in_float32_when_the_network_is_bfloat16() -> None:
    eps = torch.randn(2, 3, 4, 4).bfloat16()
    x = 100 * torch.randn(2, 3, 4, 4)
    sigma = torch.full((2,), 100.0)
    with torch.autocast("cpu", torch.bfloat16):
        denoised = Denoiser(Answer(eps), make_schedule("linear"))(x, sigma, conditioning(2))
    assert denoised.x0.dtype == torch.float32
    assert torch.equal(denoised.x0, x - 100 * eps.float())


def test_a_wrong_number_of_channels_is_refused() -> None:
    denoiser = Denoiser(Answer(torch.zeros(1, 6, 2, 2)), make_schedule("linear"))
    with pytest.raises(ValueError, match="6 channels, not 3"):
        denoiser(torch.zeros(1, 3, 2, 2), torch.ones(1), conditioning(1))
    with pytest.raises(ValueError, match="epsilon"):
        Denoiser(Answer(torch.zeros(1)), make_schedule("linear"), "epsilon")  # type: ignore[arg-type]


def test_a_module_network_is_part_of_the_denoiser() -> None:
    network = nn.Conv2d(3, 3, 1)
    denoiser = Denoiser(network, make_schedule("linear"))
    assert [id(p) for p in denoiser.parameters()] == [id(p) for p in network.parameters()]


def test_conditions_stack_with_masked_padding() -> None:
    long, short = conditioning(2, 5, low_res=True), conditioning(1, 1, low_res=True)
    both = Conditioning.cat([long, short])
    assert len(both) == 3
    assert both.text.shape == (3, 5, 4)
    assert both.text_mask.sum(dim=1).tolist() == [5, 5, 1]
    assert torch.equal(both.text[2, :1], short.text[0])
    assert both.text[2, 1:].eq(0).all()
    assert both.low_res.shape == (3, 3, 4, 4)
    assert torch.equal(both.aug, torch.cat([long.aug, short.aug]))


def test_conditions_of_different_stages_do_not_stack() -> None:
    with pytest.raises(ValueError, match="low-resolution"):
        Conditioning.cat([conditioning(1, low_res=True), conditioning(1)])
    with pytest.raises(ValueError, match="nothing"):
        Conditioning.cat([])
