import math

import pytest
import torch
from torch.nn import functional as F

from cascade.config.stage import LowResConfig
from cascade.diffusion.noise import (
    LowResolution,
    Noise,
    Stratified,
    derive_seed,
    level_from_variance,
)
from cascade.diffusion.schedule import make_schedule


def test_derived_seeds_are_fixed_and_distinct() -> None:
    # A golden value: a change of it would change every picture that anybody has drawn.
    assert derive_seed(0, "base", 3) == 1810676053180770254
    seeds = {derive_seed(0), derive_seed(1), derive_seed(0, 1), derive_seed(0, "1")}
    seeds |= {derive_seed(0, 1, 2), derive_seed(0, 12), derive_seed(0, "1, 2")}
    assert len(seeds) == 7
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("far", [5 + 2**32, 5 + 2**33 + 2**60, 5 + 2**63])
def test_every_bit_of_a_seed_counts(far: int) -> None:
    assert not torch.equal(Noise([5]).normal(4), Noise([far]).normal(4))
    assert not torch.equal(Noise([5]).uniform(), Noise([far]).uniform())


def test_an_image_draws_the_same_alone_and_in_a_batch() -> None:
    batch, alone = Noise([5, 6, 7]), Noise([6])
    for _ in range(2):
        assert torch.equal(batch.normal(3, 9, 9)[1], alone.normal(3, 9, 9)[0])
        assert torch.equal(batch.uniform()[1], alone.uniform()[0])
    assert not torch.equal(batch.normal(4)[0], batch.normal(4)[2])


def test_draws_have_their_distributions() -> None:
    noise = Noise(range(2000))
    normal, uniform = noise.normal(3, 4, 4), noise.uniform()
    assert normal.shape == (2000, 3, 4, 4)
    assert normal.dtype == torch.float32
    assert uniform.dtype == torch.float64
    assert uniform.min() >= 0
    assert uniform.max() < 1
    # Five standard errors of 96,000 and 2,000 draws.
    assert abs(normal.mean()) < 5 / math.sqrt(96000)
    assert abs(normal.std() - 1) < 5 / math.sqrt(2 * 96000)
    assert abs(uniform.mean() - 0.5) < 5 / math.sqrt(12 * 2000)


@pytest.mark.parametrize("noise_at", ["low", "high"])
@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_low_resolution_images_are_noised_by_the_papers_formula(noise_at: str, name: str) -> None:
    config = LowResConfig.parse(
        {"size": 4, "schedule": name, "noise_at": noise_at, "align_corners": True}, "the test"
    )
    augment = LowResolution(config)
    schedule = augment.schedule
    images = torch.rand(2, 3, 4, 5) * 2 - 1
    level = torch.tensor([0.25, 0.6], dtype=torch.float64)
    latent, aug = augment(images, (8, 10), level, Noise([1, 2]))
    sigma = schedule.sigma(aug)
    alpha = (1 / (1 + sigma**2).sqrt()).float().view(2, 1, 1, 1)
    sigma_vp = alpha * sigma.float().view(2, 1, 1, 1)

    def enlarge(x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(x, (8, 10), mode="bilinear", align_corners=True)

    if noise_at == "low":
        expected = enlarge(alpha * images + sigma_vp * Noise([1, 2]).normal(3, 4, 5))
    else:
        expected = alpha * enlarge(images) + sigma_vp * Noise([1, 2]).normal(3, 8, 10)
    torch.testing.assert_close(latent, expected)  # the same operations in another order
    assert aug.dtype == torch.float32
    torch.testing.assert_close(aug, 1000 * level.float())


def test_up_sampling_is_the_checkpoints() -> None:
    images = torch.rand(1, 3, 4, 4)
    quiet = torch.zeros(1, dtype=torch.float64)
    nearest, bilinear, corners = (
        LowResolution(config)(images, 8, quiet, Noise([0]))[0]
        for config in (
            LowResConfig(size=4, upsample="nearest"),
            LowResConfig(size=4),
            LowResConfig(size=4, align_corners=True),
        )
    )
    # The cosine schedule's lowest sigma is e^-10 = 4.5e-5; five of it.
    torch.testing.assert_close(nearest, images.repeat_interleave(2, 2).repeat_interleave(2, 3),
                               rtol=0, atol=2.3e-4)  # fmt: skip
    assert not torch.allclose(nearest, bilinear, atol=1e-2)
    assert not torch.allclose(corners, bilinear, atol=1e-2)


@pytest.mark.parametrize("variance", [1e-3, 1e-2, 0.5])
@pytest.mark.parametrize("name", ["cosine", "squared_cosine", "linear"])
def test_a_variance_becomes_the_level_that_has_it(variance: float, name: str) -> None:
    schedule = make_schedule(name)  # type: ignore[arg-type]
    level = torch.tensor([level_from_variance(schedule, variance)], dtype=torch.float64)
    assert 0 <= level <= 1
    snr = schedule.sigma(schedule.draw(level)) ** -2
    # Discrete schedules have the nearest of 1000 levels; they are sparse near variance 1e-3.
    tolerance = 1e-9 if name == "cosine" else 0.2
    assert (1 / (1 + snr)).item() == pytest.approx(variance, rel=tolerance)


def test_variances_beyond_the_schedule() -> None:
    linear = make_schedule("linear")
    level = torch.tensor(level_from_variance(linear, 1e-5), dtype=torch.float64)
    assert linear.draw(level) == 0  # beta_0 = 1e-4 is the least there is
    with pytest.raises(ValueError, match="variance"):
        level_from_variance(linear, 1.0)


@pytest.mark.parametrize("count", [1, 2, 4, 7, 32])
def test_stratified_draws_fill_every_stratum_once(count: int) -> None:
    noise = Stratified(Noise(range(count)), torch.arange(count), count)
    for _ in range(3):
        drawn = noise.uniform()
        assert sorted((drawn * count).floor().int().tolist()) == list(range(count))


def test_two_stratified_draws_of_a_row_are_spread_over_the_square() -> None:
    count = 64
    noise = Stratified(Noise(range(count)), torch.arange(count), count)
    first, second = noise.uniform(), noise.uniform()
    cells = {(int(a * 8), int(b * 8)) for a, b in zip(first, second, strict=True)}
    # A draw of chance leaves a third of the cells empty: (1 - 1/64)^64 = 0.36.
    assert len(cells) > 0.75 * count


def test_a_row_stratified_alone_is_that_of_its_batch() -> None:
    strata = torch.arange(8)
    together = Stratified(Noise(range(8)), strata, 8)
    alone = Stratified(Noise([5]), strata[5:6], 8)
    for _ in range(2):
        assert torch.equal(together.uniform()[5:6], alone.uniform())
    assert torch.equal(together.normal(3)[5:6], alone.normal(3))
