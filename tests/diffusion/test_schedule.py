import math

import pytest
import torch
from diffusers import DDPMScheduler

from cascade.diffusion.schedule import (
    CosineSchedule,
    DiscreteSchedule,
    Schedule,
    make_schedule,
    sigmas,
)

DISCRETE = {"squared_cosine": "squaredcos_cap_v2", "linear": "linear"}


def test_cosine_is_the_tangent_of_time() -> None:
    schedule = CosineSchedule()
    t = torch.linspace(1, 999, 500, dtype=torch.float64)
    alpha, sigma_vp = torch.cos(t * math.pi / 2000), torch.sin(t * math.pi / 2000)
    # float64 rounding of three transcendental functions.
    torch.testing.assert_close(schedule.sigma(t), sigma_vp / alpha, rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.timestep(schedule.sigma(t)), t, rtol=1e-12, atol=0)


def test_cosine_clips_the_log_snr_at_20() -> None:
    ends = CosineSchedule().sigma(torch.tensor([0.0, 1000.0]))
    torch.testing.assert_close(-2 * ends.log(), torch.tensor([20.0, -20.0], dtype=torch.float64))


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_tables_are_the_public_ones(name: str) -> None:
    theirs = DDPMScheduler(1000, beta_schedule=DISCRETE[name])
    ours = make_schedule(name)
    assert isinstance(ours, DiscreteSchedule)
    # Theirs is float32: 1 - 0.999 alone has a relative error of 6e-5.
    torch.testing.assert_close(ours.betas.float(), theirs.betas, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(ours.alphas_bar.float(), theirs.alphas_cumprod, rtol=2e-4, atol=0)


@pytest.mark.parametrize("name", DISCRETE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_discrete_steps_come_back_whole(name: str, dtype: torch.dtype) -> None:
    schedule = make_schedule(name)
    steps = torch.arange(1000, dtype=torch.float64)
    assert torch.equal(schedule.sigma(steps), getattr(schedule, "sigmas"))  # noqa: B009
    assert torch.equal(schedule.timestep(schedule.sigma(steps).to(dtype)), steps)


@pytest.mark.parametrize("name", DISCRETE)
def test_discrete_schedule_between_and_beyond_its_entries(name: str) -> None:
    schedule = make_schedule(name)
    t = torch.tensor([0.25, 10.5, 500.75, 998.5], dtype=torch.float64)
    low, high = schedule.sigma(t.floor()), schedule.sigma(t.ceil())
    expected = torch.lerp(low.log(), high.log(), t - t.floor())
    torch.testing.assert_close(schedule.sigma(t).log(), expected)
    torch.testing.assert_close(schedule.timestep(schedule.sigma(t)), t)
    outside = torch.tensor([1e-9, 1e9], dtype=torch.float64)
    assert schedule.timestep(outside).tolist() == [0, 999]
    assert schedule.timestep(outside.view(2, 1)).shape == (2, 1)


def test_draws() -> None:
    u = torch.tensor([0.0, 0.0009, 0.25, 0.99999], dtype=torch.float64)
    assert make_schedule("linear").draw(u).tolist() == [0, 0, 250, 999]
    torch.testing.assert_close(make_schedule("cosine").draw(u), 1000 * u)
    levels = torch.arange(1000) / 1000  # float32: many lie just below k / 1000
    assert torch.equal(make_schedule("linear").draw(levels), torch.arange(1000).double())


def test_spaced_timesteps() -> None:
    assert make_schedule("linear").spaced(4).tolist() == [999, 666, 333, 0]
    assert make_schedule("linear").spaced(1000).diff().unique().tolist() == [-1]
    assert make_schedule("cosine").spaced(4).tolist() == [1000, 750, 500, 250]
    for schedule in (make_schedule("linear"), make_schedule("cosine")):
        with pytest.raises(ValueError, match="step"):
            schedule.spaced(0)
    with pytest.raises(ValueError, match="1001"):
        make_schedule("linear").spaced(1001)


@pytest.mark.parametrize("name", ["cosine", "squared_cosine", "linear"])
@pytest.mark.parametrize("n", [1, 2, 50])
def test_sampling_levels_descend_to_zero(name: str, n: int) -> None:
    schedule: Schedule = make_schedule(name)
    levels = sigmas(schedule, schedule.spaced(n))
    assert levels.shape == (n + 1,)
    assert levels.dtype == torch.float64
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()


@pytest.mark.parametrize(
    "timesteps", [[], [5, 5], [1, 2], [1000, 3], [10, -1], [[3, 2]], [float("nan"), 1]]
)
def test_bad_sampling_timesteps_are_refused(timesteps: list[float]) -> None:
    with pytest.raises(ValueError, match="timesteps"):
        sigmas(make_schedule("linear"), timesteps)


def test_bad_betas_and_names_are_refused() -> None:
    with pytest.raises(ValueError, match="1000 betas"):
        DiscreteSchedule(torch.full((10,), 0.1))
    with pytest.raises(ValueError, match="between 0 and 1"):
        DiscreteSchedule(torch.zeros(1000))
    with pytest.raises(ValueError, match="sigmoid"):
        make_schedule("sigmoid")  # type: ignore[arg-type]
