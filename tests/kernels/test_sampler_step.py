"""A sampler's step against its formula in fp64, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cascade.config.stage import ThresholdConfig
from cascade_kernels.sampler_step import Prediction, Update, guide, sampler_step

BATCH, CHANNELS, SIDE = 2, 3, 6
FIXED = Update(0.7, 0.4, recall=-0.2, std=0.3)
LEARNED = Update(0.7, 0.4, recall=-0.2, log_variance=(-4.0, -1.0))


def draw(rows: int, channels: int = CHANNELS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, the network's output, a previous clean image and noise, in fp64."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(3, BATCH, CHANNELS, SIDE, SIDE, generator=rng, dtype=torch.float64)
    out = torch.randn(rows, channels, SIDE, SIDE, generator=rng, dtype=torch.float64)
    return 4 * images[0], out, images[1], images[2]


def formula(
    x: Tensor,
    out: Tensor,
    p: Prediction,
    t: ThresholdConfig,
    u: Update,
    previous: Tensor,
    noise: Tensor,
) -> tuple[Tensor, Tensor]:
    """The definition, image by image."""
    nexts, cleans = [], []
    for b in range(BATCH):
        eps = out[b, :3]
        if p.guidance != 1:
            eps = (1 - p.guidance) * out[b + BATCH, :3] + p.guidance * eps
        x0 = p.from_x * x[b] + p.from_out * eps
        if t.kind == "static":
            x0 = x0.clip(-1, 1)
        if t.kind == "dynamic":
            s = min(max(float(torch.quantile(x0.abs(), t.percentile)), 1.0), t.cap or math.inf)
            x0 = x0.clip(-s, s) / s
        std: float | Tensor = u.std
        if u.log_variance is not None:
            f = (out[b, 3:] + 1) / 2
            small, large = (math.exp(value) for value in u.log_variance)
            std = (large**f * small ** (1 - f)).sqrt()
        nexts.append(u.keep * x[b] + u.pull * x0 + u.recall * previous[b] + std * noise[b])
        cleans.append(x0)
    return torch.stack(nexts), torch.stack(cleans)


@pytest.mark.parametrize("update", [FIXED, LEARNED], ids=["fixed", "learned"])
@pytest.mark.parametrize("guidance", [1.0, 0.0, 5.0])
@pytest.mark.parametrize(
    "threshold",
    [
        ThresholdConfig(kind="none"),
        ThresholdConfig(kind="static"),
        ThresholdConfig(kind="dynamic", percentile=0.9),
        ThresholdConfig(kind="dynamic", percentile=0.9, cap=1.5),
    ],
    ids=["none", "static", "dynamic", "capped"],
)
def test_is_its_formula(threshold: ThresholdConfig, guidance: float, update: Update) -> None:
    rows = BATCH if guidance == 1 else 2 * BATCH
    x, out, previous, noise = draw(rows, 6 if update is LEARNED else 3)
    prediction = Prediction(0.9, -1.5, guidance)
    actual = sampler_step(x, out, prediction, threshold, update, previous, noise)
    expected = formula(x, out, prediction, threshold, update, previous, noise)
    # float64 rounding of numbers up to about ten.
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)


def test_what_the_coefficients_leave_out_is_not_read() -> None:
    x, out, previous, noise = draw(BATCH)
    step = (x, out, Prediction(1.0, -2.0), ThresholdConfig(kind="none"), Update(0.5, 0.5))
    alone, _ = sampler_step(*step)
    beside, _ = sampler_step(*step, previous * math.nan, noise * math.nan)
    assert torch.equal(alone, beside)


def test_a_half_precision_network_leaves_the_step_in_float32() -> None:
    x, out, previous, noise = (tensor.float() for tensor in draw(2 * BATCH))
    half = out.bfloat16()
    step = (
        Prediction(1.0, -20.0, 5.0),
        ThresholdConfig(kind="dynamic", percentile=0.9),
        FIXED,
        previous,
        noise,
    )
    actual = sampler_step(x, half, *step)
    assert [result.dtype for result in actual] == [torch.float32] * 2
    assert all(map(torch.equal, actual, sampler_step(x, half.float(), *step)))


def test_the_upper_channels_are_not_guided() -> None:
    _, out, _, _ = draw(2 * BATCH, 6)
    mixed = guide(out, 3, 7.0)
    assert torch.equal(mixed[:, 3:], out[:BATCH, 3:])
    torch.testing.assert_close(mixed[:, :3], 7 * out[:BATCH, :3] - 6 * out[BATCH:, :3])


def test_the_reference_has_gradients() -> None:
    x, out, previous, noise = (tensor.requires_grad_() for tensor in draw(2 * BATCH))
    step = (Prediction(0.9, -1.5, 3.0), ThresholdConfig(kind="none"), FIXED)
    inputs = (x, out, previous, noise)
    assert torch.autograd.gradcheck(
        lambda x, out, *rest: sampler_step(x, out, *step, *rest)[0], inputs
    )


def test_bad_coefficients_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        Update(1.0, 0.0, std=0.1, log_variance=(-2.0, -1.0))


def test_inputs_that_do_not_fit_are_refused() -> None:
    x, out, previous, noise = draw(BATCH)
    prediction, plain = Prediction(1.0, -1.0), ThresholdConfig(kind="none")
    with pytest.raises(ValueError, match="4 rows"):
        sampler_step(x, out, replace(prediction, guidance=2.0), plain, Update(0.5, 0.5))
    with pytest.raises(ValueError, match="2 rows"):
        sampler_step(x, out[..., :-1], prediction, plain, Update(0.5, 0.5))
    with pytest.raises(ValueError, match="no variance"):
        sampler_step(x, out, prediction, plain, LEARNED, previous, noise)
    with pytest.raises(ValueError, match="previous"):
        sampler_step(x, out, prediction, plain, FIXED, None, noise)
    with pytest.raises(ValueError, match="noise"):
        sampler_step(x, out, prediction, plain, FIXED, previous, noise[:1])
    for missing, match in ((None, "previous"), (previous, "noise")):
        with pytest.raises(ValueError, match=match):
            FIXED(x, x, missing)
    with pytest.raises(ValueError, match="no variance"):
        LEARNED(x, x, previous, noise)
