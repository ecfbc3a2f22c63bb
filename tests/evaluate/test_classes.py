"""Shares of right answers, counted by hand."""

import pytest
import torch

from cascade.evaluate.classes import (
    ClassAccuracy,
    chance_accuracy,
    class_accuracy,
    noun_accuracy,
)

NOUNS = ("dog", "dog", "cat", "bus", "car", "cup", "pen")
# Likeliest first: right; the other dog; right among the first five; only the sixth.
RANKED = (
    (0, 1, 2, 3, 4, 5, 6),
    (0, 1, 2, 3, 4, 5, 6),
    (3, 4, 5, 6, 2, 1, 0),
    (0, 1, 2, 3, 4, 6, 5),
)
LABELS = torch.tensor([0, 1, 2, 6])


def logits() -> torch.Tensor:
    return -torch.tensor(RANKED).argsort(dim=1).float()


def test_right_answers_are_counted_at_the_first_the_fifth_and_the_noun() -> None:
    assert class_accuracy(logits(), LABELS, NOUNS) == ClassAccuracy(0.25, 0.75, 0.5)
    assert noun_accuracy(logits(), LABELS, NOUNS) == {"dog": 1.0, "cat": 0.0, "pen": 0.0}


def test_five_of_fewer_candidates_are_all_of_them() -> None:
    found = class_accuracy(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), ("dog", "cat"))
    assert found == ClassAccuracy(0.0, 1.0, 0.0)
    assert chance_accuracy(torch.tensor([0]), ("dog", "cat")).top_5 == 1.0


def test_chance_is_the_mean_of_every_blind_answer() -> None:
    """A classifier that always says the same thing, averaged over what it may say."""
    blind = [
        class_accuracy(torch.eye(len(NOUNS))[answer].expand(4, -1), LABELS, NOUNS)
        for answer in range(len(NOUNS))
    ]
    chance = chance_accuracy(LABELS, NOUNS)
    assert chance.top_1 == pytest.approx(sum(one.top_1 for one in blind) / len(NOUNS))
    assert chance.coarse == pytest.approx(sum(one.coarse for one in blind) / len(NOUNS))
    assert chance.top_5 == pytest.approx(5 / 7)


def test_logits_of_other_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="B = 4 labels and C = 7 nouns"):
        class_accuracy(torch.zeros(4, 1000), LABELS, NOUNS)
    with pytest.raises(ValueError, match="B = 0 labels"):
        class_accuracy(torch.zeros(0, 7), torch.zeros(0), NOUNS)
