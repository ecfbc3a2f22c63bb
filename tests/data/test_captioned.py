"""Rows of `cascade train` are a pure function of their positions."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cascade.config.data import DataConfig, RowConfig
from cascade.config.stage import LowResConfig, StageConfig
from cascade.data.array import CaptionedArray
from cascade.data.batch import draw_offset, make_pair, permutation
from cascade.data.captioned import CaptionedSamples, Source
from cascade.data.images import resize, to_tensor
from cascade.data.opening import open_samples
from cascade.errors import UserError
from cascade_bench.few_steps import TINY

COUNT, SIZE = 12, 16
UNET = TINY.unet
BASE = StageConfig(name="base", size=SIZE, unet=UNET)


def super_resolution(crop: int | None) -> StageConfig:
    return StageConfig(
        name="sr",
        size=SIZE,
        resize="lanczos",
        unet=UNET.model_copy(update={"low_res": True}),
        low_res=LowResConfig(size=4, crop=crop),
    )


def write_dataset(folder: Path, images: np.ndarray, captions: list[list[str]]) -> Path:
    folder.mkdir(exist_ok=True)
    np.save(folder / "images.npy", images)
    lines = [json.dumps(line, ensure_ascii=False) for line in captions]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def pictures(count: int = COUNT) -> np.ndarray:
    drawn = np.random.default_rng(0).integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)
    drawn[:, 0, 0, :] = np.arange(count)[:, None]  # the top row's red tells which picture it is
    return drawn


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    captions = [[f"picture {i}", f"photo {i}"] for i in range(COUNT)]
    return write_dataset(tmp_path_factory.mktemp("data"), pictures(), captions)


@pytest.fixture(scope="module")
def data(folder: Path) -> CaptionedArray:
    return CaptionedArray.open(folder)


def samples(
    data: CaptionedArray, stage: StageConfig = BASE, seed: int = 3, **changes: Any
) -> CaptionedSamples:
    rows = RowConfig(**({"caption_dropout": 0.0, "flip": False} | changes))
    return CaptionedSamples((Source(data, 1.0, (SIZE, SIZE)),), stage, seed, rows)


def which(images: torch.Tensor) -> list[int]:
    return images[:, 0, 0, 0].tolist()


def test_pictures_stay_on_the_disk(data: CaptionedArray) -> None:
    assert isinstance(data.images, np.memmap)
    assert np.array_equal(np.asarray(data.picture(5)), pictures()[5].transpose(1, 2, 0))


def test_rows_do_not_depend_on_their_batch_or_on_earlier_ones(data: CaptionedArray) -> None:
    stage = super_resolution(crop=8)
    source = samples(data, stage, flip=True, caption_dropout=0.3)
    together = source.rows(range(40))
    again = samples(data, stage, flip=True, caption_dropout=0.3)
    for position in (39, 0, 17):
        alone = again.rows([position])
        assert torch.equal(alone.images[0], together.images[position])
        assert alone.low_res is not None
        assert together.low_res is not None
        assert torch.equal(alone.low_res[0], together.low_res[position])
        assert alone.prompts[0] == together.prompts[position]
        assert alone.seeds[0] == together.seeds[position]
    assert len(set(together.seeds)) == 40
    assert together.positions == 40
    assert together.weights.tolist() == [1.0] * 40


def test_another_seed_gives_other_rows(data: CaptionedArray) -> None:
    one, two = samples(data).rows(range(COUNT)), samples(data, seed=4).rows(range(COUNT))
    assert which(one.images) != which(two.images)
    assert not set(one.seeds) & set(two.seeds)


def test_every_epoch_is_another_permutation(data: CaptionedArray) -> None:
    rows = which(samples(data).rows(range(3 * COUNT)).images)
    epochs = [tuple(rows[i : i + COUNT]) for i in range(0, 3 * COUNT, COUNT)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len(set(epochs)) == 3
    assert sorted(permutation(1000, 5).tolist()) == list(range(1000))


def test_captions_are_those_of_the_picture_and_all_are_used(data: CaptionedArray) -> None:
    batch = samples(data).rows(range(20 * COUNT))
    for index, prompt in zip(which(batch.images), batch.prompts, strict=True):
        assert prompt in (f"picture {index}", f"photo {index}")
    kinds = Counter(str(prompt).split()[0] for prompt in batch.prompts)
    # 240 draws of two: 120 +- 4 standard deviations of 7.7.
    assert 89 < kinds["photo"] < 151


def test_rates_of_dropped_captions_and_mirrored_pictures(data: CaptionedArray) -> None:
    batch = samples(data, caption_dropout=0.25, flip=True).rows(range(1200))
    dropped = sum(prompt is None for prompt in batch.prompts)
    # Binomial: 300 +- 4 standard deviations of 15.
    assert 240 < dropped < 360
    originals = torch.from_numpy(data.images[which(batch.images)])
    same = (batch.images == originals).flatten(1).all(1)
    mirrored = (batch.images == originals.flip(3)).flatten(1).all(1)
    assert bool((same ^ mirrored).all())
    # 600 +- 4 standard deviations of 17.3.
    assert 530 < int(mirrored.sum()) < 670
    never = samples(data, caption_dropout=1.0).rows(range(30))
    assert never.prompts == (None,) * 30


@pytest.mark.parametrize("crop", [8, 12])
def test_a_crop_has_the_low_resolution_pixels_of_its_place(crop: int) -> None:
    stage = super_resolution(crop)
    picture = Image.fromarray(pictures()[0].transpose(1, 2, 0))
    whole, small = to_tensor(picture), to_tensor(resize(picture, 4, "lanczos"))
    places = set()
    for seed in range(60):
        high, low = make_pair(stage, picture, draw_offset(stage, np.random.default_rng(seed)))
        assert low is not None
        side = crop // 4
        assert high.shape == (3, crop, crop)
        assert low.shape == (3, side, side)
        offsets = range(4 - side + 1)
        (place,) = [
            (top, left)
            for top in offsets
            for left in offsets
            if torch.equal(low, small[:, top : top + side, left : left + side])
        ]
        top, left = 4 * place[0], 4 * place[1]
        assert torch.equal(high, whole[:, top : top + crop, left : left + crop])
        places.add(place)
    assert len(places) == (4 - crop // 4 + 1) ** 2


@pytest.mark.parametrize("crop", [None, SIZE])
def test_without_a_crop_the_pair_is_whole(crop: int | None) -> None:
    picture = Image.fromarray(pictures()[0].transpose(1, 2, 0))
    high, low = make_pair(super_resolution(crop), picture, (0, 0))
    assert torch.equal(high, to_tensor(picture))
    assert low is not None
    assert torch.equal(low, to_tensor(resize(picture, 4, "lanczos")))
    assert make_pair(BASE, picture, (0, 0))[1] is None


def test_separators_inside_captions_do_not_break_lines(tmp_path: Path) -> None:
    captions = [["a\u2028b", "c\x85d"], ["e\x0cf"]]
    data = CaptionedArray.open(write_dataset(tmp_path, pictures(2), captions))
    assert data.texts == (("a\u2028b", "c\x85d"), ("e\x0cf",))


@pytest.mark.parametrize(
    ("images", "captions", "message"),
    [
        (pictures(2), [["a"]], "2 pictures but 1 lines of captions"),
        (pictures(2), [["a"], []], r"Line 2 of .*captions\.jsonl holds no caption"),
        (pictures(2), [["a"], [3]], "Line 2"),
        (pictures(2).astype(np.float32), [["a"], ["b"]], "holds float32 of shape"),
        (pictures(2)[:, :1], [["a"], ["b"]], "must be uint8 of shape N 3 S S"),
        (pictures(2)[:, :, :8], [["a"], ["b"]], "must be uint8 of shape N 3 S S"),
        (pictures(0), [], "at least one picture"),
    ],
)
def test_datasets_that_cannot_be_used(
    tmp_path: Path, images: np.ndarray, captions: list[list[str]], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        CaptionedArray.open(write_dataset(tmp_path, images, captions))


def test_damaged_and_missing_files_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"has no images\.npy"):
        CaptionedArray.open(tmp_path)
    whole = (folder / "images.npy").read_bytes()
    (tmp_path / "images.npy").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"has no captions\.jsonl"):
        CaptionedArray.open(tmp_path)
    (tmp_path / "captions.jsonl").write_text('["a"]\n')
    with pytest.raises(UserError, match=r"images\.npy cannot be read"):
        CaptionedArray.open(tmp_path)
    np.save(tmp_path / "images.npy", pictures(1))
    (tmp_path / "captions.jsonl").write_text('["a"')
    with pytest.raises(UserError, match=r"Line 1 of .*captions\.jsonl"):
        CaptionedArray.open(tmp_path)


def test_pictures_must_be_as_large_as_the_stage_s(folder: Path) -> None:
    with pytest.raises(UserError, match="16 pixels wide but stage 'base' makes 32"):
        open_samples(DataConfig(folder=folder), BASE.model_copy(update={"size": 32}), 0, 4)


def test_no_row_belies_its_caption(tmp_path: Path) -> None:
    """Mirrored, what is on the left is on the right."""
    sided = [["a dog on the left", "a dog"], ["a cat, right of a tree", "a cat"]] * (COUNT // 2)
    data = CaptionedArray.open(write_dataset(tmp_path / "sided", pictures(), sided))
    chosen = samples(data, flip=True, caption_dropout=0.3).decide(range(400))
    prompts = [one.prompt or "" for one in chosen]
    named = np.array(["left" in prompt or "right" in prompt for prompt in prompts])
    mirrored = np.array([one.mirrored for one in chosen])
    assert not mirrored[named].any()
    assert 0.3 < mirrored[~named].mean() < 0.7
    assert 100 < named.sum() < 200


def test_a_byte_order_mark_is_no_part_of_a_caption(folder: Path, tmp_path: Path) -> None:
    marked = write_dataset(tmp_path / "marked", pictures(), [["a dog"]] * COUNT)
    text = (marked / "captions.jsonl").read_bytes()
    (marked / "captions.jsonl").write_bytes(b"\xef\xbb\xbf" + text)
    assert CaptionedArray.open(marked).texts == (("a dog",),) * COUNT


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("caf\xe9".encode("latin-1"), "is not UTF-8 text"),
        (b"[" * 100_000, "Line 1 of .* holds no caption"),
        (b"[" + b"9" * 5000 + b"]", "Line 1 of .* holds no caption"),
    ],
)
def test_captions_that_cannot_be_read(tmp_path: Path, content: bytes, told: str) -> None:
    place = write_dataset(tmp_path / "bad", pictures(), [["a dog"]] * COUNT)
    (place / "captions.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=told):
        CaptionedArray.open(place)


def test_an_archive_of_arrays_is_named(tmp_path: Path) -> None:
    place = write_dataset(tmp_path / "bad", pictures(), [["a dog"]] * COUNT)
    with (place / "images.npy").open("wb") as file:
        np.savez(file, images=pictures())
    with pytest.raises(UserError, match="is an archive of arrays"):
        CaptionedArray.open(place)
