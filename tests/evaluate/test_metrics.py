"""The metrics against closed forms and against hand-made sets."""

import math

import pytest
import torch

from cascade.evaluate import metrics


def test_subject_similarity_is_the_mean_over_all_pairs_whatever_the_lengths() -> None:
    generated = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    real = torch.tensor([[1.0, 0.0], [2.0, 2.0], [-7.0, 0.0]])
    cosines = [1, math.sqrt(0.5), -1, 0, math.sqrt(0.5), 0]
    assert metrics.subject_similarity(generated, real) == pytest.approx(sum(cosines) / 6)


def test_self_similarity_leaves_an_image_out_of_its_own_pairs() -> None:
    features = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert metrics.self_similarity(features) == pytest.approx(2 * math.sqrt(0.5) / 3)


def test_self_similarity_is_one_for_a_collapsed_model_and_zero_for_orthogonal_images() -> None:
    torch.manual_seed(0)
    # float32 features of one image repeated: float64 arithmetic leaves about 1e-16.
    assert metrics.self_similarity(torch.randn(1, 64).repeat(5, 1)) == pytest.approx(1, abs=1e-12)
    assert metrics.self_similarity(torch.eye(6)) == pytest.approx(0)


def test_paired_distances_follow_the_pairing() -> None:
    features = torch.eye(4)
    assert metrics.feature_distance(features, 5 * features) == pytest.approx(0, abs=1e-12)
    assert metrics.feature_distance(features.roll(1, 0), features) == pytest.approx(1)
    half = torch.cat([features[:2], features[2:].flip(0)])
    assert metrics.feature_distance(half, features) == pytest.approx(0.5)


def test_psnr_averages_the_images_decibels() -> None:
    reference = torch.zeros(2, 3, 4, 4)
    images = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 0.02)])
    # peak 2 over an error of 0.2 is 20 dB, over 0.02 it is 40 dB; float32 holds 0.2 to 1e-8.
    assert metrics.psnr(images, reference) == pytest.approx(30, abs=1e-5)
    assert metrics.psnr(reference, reference) == math.inf


def test_frechet_distance_of_a_moved_and_stretched_set_has_a_closed_form() -> None:
    torch.manual_seed(0)
    features = torch.randn(200, 8, dtype=torch.float64)
    shift = torch.linspace(-1, 1, 8, dtype=torch.float64)
    assert metrics.frechet_distance(features, features + shift) == pytest.approx(
        float(shift.square().sum())
    )
    # Covariances S and 9 S commute: the trace term is (3 - 1)^2 tr S, and the mean moves as well.
    trace, mean = features.var(0).sum(), features.mean(0)
    expected = 4 * trace + (2 * mean).square().sum()
    assert metrics.frechet_distance(features, 3 * features) == pytest.approx(float(expected))


@pytest.mark.parametrize("count", [5, 100])
def test_frechet_distance_agrees_with_the_root_of_the_covariances_product(count: int) -> None:
    """Also for fewer images than features, where the covariances are singular."""
    torch.manual_seed(1)
    first = torch.randn(count, 12, dtype=torch.float64) @ torch.randn(12, 12).double()
    second = torch.randn(count + 3, 12, dtype=torch.float64) * 0.7 + 0.3
    s1, s2 = first.T.cov(), second.T.cov()
    root = torch.linalg.eigvals(s1 @ s2).sqrt().real.sum()
    expected = (first.mean(0) - second.mean(0)).square().sum() + s1.trace() + s2.trace() - 2 * root
    # The oracle takes roots of eigenvalues that are zero up to 1e-14: it is good to about 1e-6.
    assert metrics.frechet_distance(first, second) == pytest.approx(float(expected), rel=1e-5)


def test_frechet_distance_of_a_set_to_itself_is_zero() -> None:
    torch.manual_seed(2)
    features = torch.randn(6, 40)
    assert 0 <= metrics.frechet_distance(features, features) < 1e-10


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.subject_similarity(torch.ones(2, 3), torch.ones(2, 4)),
        lambda: metrics.subject_similarity(torch.ones(0, 3), torch.ones(2, 3)),
        lambda: metrics.feature_distance(torch.ones(1, 3), torch.ones(2, 3)),
        lambda: metrics.self_similarity(torch.ones(1, 3)),
        lambda: metrics.psnr(torch.ones(1, 3, 2, 2), torch.ones(3, 2, 2)),
        lambda: metrics.frechet_distance(torch.ones(1, 3), torch.ones(2, 3)),
    ],
    ids=["widths", "none", "unpaired", "one image", "psnr shapes", "no covariance"],
)
def test_shapes_without_a_meaning_are_refused(call: object) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        call()
