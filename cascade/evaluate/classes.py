"""Whether a classifier sees in a picture what its caption says.

The classifier errs on photos too, and small pictures make it err more: a share means something
beside the same share of photos of that size, and beside chance.

Shapes: `B` pictures, `C` candidate classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ClassAccuracy:
    """Shares of pictures in [0, 1].

    Attributes:
        top_1: whose likeliest class is the right one.
        top_5: whose five likeliest classes hold the right one.
        coarse: whose likeliest class has the right one's noun: any dog for a Chihuahua.
    """

    top_1: float
    top_5: float
    coarse: float


def class_accuracy(logits: Tensor, labels: Tensor, nouns: Sequence[str]) -> ClassAccuracy:
    """Score a classifier's answers.

    Args:
        logits: of the candidate classes alone, `B C`.
        labels: what each picture should show, `B` in 0..C-1.
        nouns: the coarse noun of each candidate; classes with the same one are one coarse class.
    """
    _check(logits, labels, nouns)
    ranked = logits.topk(min(5, len(nouns)), dim=1).indices
    hits = (ranked == labels[:, None]).double()
    group = _groups(nouns)
    return ClassAccuracy(
        top_1=float(hits[:, 0].mean()),
        top_5=float(hits.sum(1).mean()),
        coarse=float((group[ranked[:, 0]] == group[labels]).double().mean()),
    )


def noun_accuracy(logits: Tensor, labels: Tensor, nouns: Sequence[str]) -> dict[str, float]:
    """Return `ClassAccuracy.coarse` of each noun's pictures; arguments as for `class_accuracy`."""
    _check(logits, labels, nouns)
    group = _groups(nouns)
    hits = (group[logits.argmax(1)] == group[labels]).double()
    wanted = group[labels]
    return {
        noun: float(hits[wanted == number].mean())
        for number, noun in enumerate(dict.fromkeys(nouns))
        if (wanted == number).any()
    }


def chance_accuracy(labels: Tensor, nouns: Sequence[str]) -> ClassAccuracy:
    """What a classifier is expected to reach on these labels that never looks at a picture."""
    group = _groups(nouns)
    shares = torch.bincount(group).double() / len(nouns)
    return ClassAccuracy(
        top_1=1 / len(nouns),
        top_5=min(5, len(nouns)) / len(nouns),
        coarse=float(shares[group[labels]].mean()),
    )


def _groups(nouns: Sequence[str]) -> Tensor:
    numbers = {noun: number for number, noun in enumerate(dict.fromkeys(nouns))}
    return torch.tensor([numbers[noun] for noun in nouns])


def _check(logits: Tensor, labels: Tensor, nouns: Sequence[str]) -> None:
    if logits.ndim != 2 or logits.shape != (len(labels), len(nouns)) or not len(labels):
        raise ValueError(
            f"logits must be B C for B = {len(labels)} labels and C = {len(nouns)} nouns, "
            f"not {tuple(logits.shape)}"
        )
