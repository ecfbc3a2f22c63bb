"""The measures of a personalised model, as pure functions of features and images.

"DreamBooth" is Ruiz et al. (2023, arXiv 2208.12242). Its measures use DINO; these take the features
of any extractor, and normalise them themselves.

Shapes: `N`, `M` images, `D` feature width, `C H W` channels, rows, columns.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def subject_similarity(generated: Tensor, real: Tensor) -> float:
    """Return the mean pairwise cosine between features of images `N D` and of photos `M D`.

    Of the subject's prompt it is subject fidelity (DreamBooth, section 4.1, "DINO"); of the class's
    it is PRES (section 4.3).
    """
    _check(generated, real)
    return float((_unit(generated) @ _unit(real).T).mean())


def self_similarity(features: Tensor) -> float:
    """Return the mean cosine between different images of one set `N D`, N >= 2.

    On the subject's real photos it is the ceiling of `subject_similarity` (DreamBooth, table 1, row
    "Real Images"). An image is never compared with itself.
    """
    _check(features, features)
    count = features.shape[0]
    if count < 2:
        raise ValueError("similarity within a set needs at least two images")
    unit = _unit(features)
    # The sum over all ordered pairs without the diagonal, whose N cosines are 1 by construction.
    off_diagonal = (unit @ unit.T).sum() - unit.square().sum()
    return float(off_diagonal / (count * (count - 1)))


def feature_distance(images: Tensor, reference: Tensor) -> float:
    """Return the mean of 1 - cosine between row i of one set and row i of the other, `N D` each."""
    _check(images, reference, paired=True)
    distance = 1 - (_unit(images) * _unit(reference)).sum(1).mean()
    return float(distance.clamp(min=0))  # equal rows may round to a cosine a hair above 1


def psnr(images: Tensor, reference: Tensor) -> float:
    """Return the peak signal-to-noise ratio in dB, the mean over images `N C H W` in [-1, 1].

    `10 log10(peak^2 / mse)` with peak 2, per image; infinite for equal images.
    """
    if images.shape != reference.shape or images.ndim != 4 or images.shape[0] == 0:
        raise ValueError(
            f"psnr takes two equal shapes N C H W, not {tuple(images.shape)} "
            f"and {tuple(reference.shape)}"
        )
    mse = (images.double() - reference.double()).square().mean((1, 2, 3))
    return float((10 * torch.log10(4 / mse)).mean())


def frechet_distance(features: Tensor, reference: Tensor) -> float:
    """Return the Frechet distance between the Gaussians fitted to two sets `N D` and `M D`.

    `|mu_1 - mu_2|^2 + tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))` in float64 (Heusel et al. 2017, equation
    6; FID with Inception features). Biased upwards for few samples: compare only equal N and M.

    With `S = R' R` the eigenvalues of `S_1 S_2` are the squared singular values of `R_1 R_2'`, so
    the trace of the root is a nuclear norm. No covariance is formed and no complex root is taken,
    and the result is as exact for N < D, where the covariances are singular.
    """
    _check(features, reference)
    if min(features.shape[0], reference.shape[0]) < 2:
        raise ValueError("a covariance needs at least two images in each set")
    mean_1, root_1 = _gaussian(features)
    mean_2, root_2 = _gaussian(reference)
    cross = torch.linalg.matrix_norm(root_1 @ root_2.T, ord="nuc")
    distance = (mean_1 - mean_2).square().sum()
    distance = distance + root_1.square().sum() + root_2.square().sum() - 2 * cross
    return max(0.0, float(distance))  # rounding may leave -1e-12 for equal sets


def _gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean `D` and a factor R, `min(N, D) D`, of the covariance R' R."""
    features = features.double()
    mean = features.mean(0)
    centred = (features - mean) / (features.shape[0] - 1) ** 0.5
    return mean, torch.linalg.qr(centred, mode="r").R


def _unit(features: Tensor) -> Tensor:
    # float64: 1 - cosine of near-equal images would lose all its digits in float32.
    return F.normalize(features.double(), dim=1)


def _check(first: Tensor, second: Tensor, paired: bool = False) -> None:
    shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(f"features must be N D and M D of one width, not {shapes}")
    if first.shape[0] == 0 or second.shape[0] == 0:
        raise ValueError(f"features of at least one image are needed, not {shapes}")
    if paired and first.shape != second.shape:
        raise ValueError(f"paired features must have equal shapes, not {shapes}")
