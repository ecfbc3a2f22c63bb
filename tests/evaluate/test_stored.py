"""Pictures and features on disk: the same whether interrupted or not, and never someone else's."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cascade.evaluate import stored
from cascade.evaluate.stored import PictureSet, evenly, stored_features, to_bytes, to_floats
from cascade.pipeline import Cascade
from cascade.sampling import sample_stage

PROMPTS = ("a dog", "a cat", "a dog", "a red bus", "a cat")


class StopError(Exception):
    """What a test interrupts work with."""


class MeanColour:
    """Features that one can see: the mean of each colour. Counts the pictures it was given."""

    def __init__(self, name: str = "mean colour") -> None:
        self.name = name
        self.seen = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images.mean((2, 3))


@pytest.fixture(scope="module")
def drawing(tiny_cascade: Path) -> PictureSet:
    cascade = Cascade.load(tiny_cascade)
    base = cascade.stages[0]
    table = cascade.prompts(PROMPTS)
    return PictureSet(base, base.config.sampler, table, "text", PROMPTS, range(5))


def stop_at(number: int) -> stored.OnDone:
    def on_done(done: int, total: int) -> None:
        if done >= number:
            raise StopError

    return on_done


def test_drawing_that_was_interrupted_goes_on_and_draws_nothing_twice(
    drawing: PictureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = drawing.draw(tmp_path / "whole", batch_size=2)
    with pytest.raises(StopError):
        drawing.draw(tmp_path / "parts", batch_size=2, on_done=stop_at(2))
    drawn: list[int] = []

    def count(*arguments: object, **options: object) -> Tensor:
        pictures = sample_stage(*arguments, **options)  # type: ignore[arg-type]
        drawn.append(len(pictures))
        return pictures

    monkeypatch.setattr(stored, "sample_stage", count)
    told: list[tuple[int, int]] = []
    again = drawing.draw(
        tmp_path / "parts", batch_size=2, on_done=lambda done, total: told.append((done, total))
    )
    assert drawn == [2, 1]
    assert told == [(2, 5), (4, 5), (5, 5)]
    np.testing.assert_array_equal(again, whole)
    drawing.draw(tmp_path / "parts", batch_size=2)
    assert drawn == [2, 1]


def test_pictures_are_those_of_the_sampler_in_8_bits(drawing: PictureSet, tmp_path: Path) -> None:
    pictures = sample_stage(drawing.stage, drawing.table, PROMPTS, range(5), batch_size=2)
    np.testing.assert_array_equal(drawing.draw(tmp_path, batch_size=2), to_bytes(pictures))
    assert len(np.unique(to_bytes(pictures))) > 50  # not all black


def test_every_setting_has_its_own_place(drawing: PictureSet) -> None:
    sampler = drawing.sampler
    others = [
        replace(drawing, sampler=sampler.model_copy(update={"guidance": 1.0})),
        replace(drawing, sampler=sampler.model_copy(update={"steps": 2})),
        replace(drawing, text_digest="other"),
        replace(drawing, prompts=PROMPTS[::-1]),
        replace(drawing, seeds=range(1, 6)),
        replace(drawing, low_res=torch.zeros(5, 3, 4, 4)),
        replace(drawing, low_res=torch.ones(5, 3, 4, 4)),
        replace(drawing, stage=drawing.stage.with_network(torch.nn.Linear(2, 2))),
    ]
    names = {drawing.name, *(other.name for other in others)}
    assert len(names) == 1 + len(others)
    assert replace(drawing).name == drawing.name


def test_super_resolution_makes_pictures_of_its_factor(tiny_cascade: Path, tmp_path: Path) -> None:
    cascade = Cascade.load(tiny_cascade)
    stage = cascade.stages[1]
    low = torch.rand(2, 3, 24, 24) * 2 - 1
    table = cascade.prompts(PROMPTS)
    drawing = PictureSet(stage, stage.config.sampler, table, "", PROMPTS[:2], range(2), low)
    pictures = drawing.draw(tmp_path, batch_size=1)
    assert pictures.shape == (2, 3, 48, 48)
    alone = sample_stage(stage, table, PROMPTS[:1], range(1), low_res=low[:1])
    np.testing.assert_array_equal(pictures[:1], to_bytes(alone))


def test_features_are_computed_once_and_kept_in_the_order_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "_PIECE", 3)
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 4, 4), dtype=np.uint8)
    rows = np.array([9, 0, 4, 4, 2, 7, 1])
    extractor = MeanColour()
    with pytest.raises(StopError):
        stored_features(extractor, images, rows, "a", tmp_path, stop_at(3))
    assert extractor.seen == 3
    found = stored_features(extractor, images, rows, "a", tmp_path)
    assert extractor.seen == 7
    torch.testing.assert_close(found, to_floats(images[rows]).mean((2, 3)))
    torch.testing.assert_close(stored_features(extractor, images, rows, "a", tmp_path), found)
    assert extractor.seen == 7
    for number, (other, digest, some) in enumerate(
        [(extractor, "b", rows), (extractor, "a", rows[::-1]), (MeanColour("other"), "a", rows)]
    ):
        before = other.seen
        stored_features(other, images, some, digest, tmp_path)
        assert other.seen == before + 7, number


def test_rows_are_chosen_evenly() -> None:
    np.testing.assert_array_equal(evenly(10, 5), [0, 2, 4, 6, 8])
    np.testing.assert_array_equal(evenly(7, 3), [0, 2, 4])
    np.testing.assert_array_equal(evenly(3, 7), [0, 1, 2])


def test_8_bits_come_back_exactly() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16).repeat(3, axis=1)
    np.testing.assert_array_equal(to_bytes(to_floats(levels)), levels)
