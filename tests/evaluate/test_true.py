"""The true pictures that a stage is compared with."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cascade.config.pack import PackConfig
from cascade.config.stage import StageConfig
from cascade.data.pack import PackManifest
from cascade.errors import UserError
from cascade.evaluate.true import TruePictures, captions_of, pixels_of
from cascade.packing.run import pack
from cascade_bench.few_steps import TINY

STAGE = StageConfig(
    name="base",
    size=64,
    unet=TINY.unet,
)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(40):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((96, 72)).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"photo {number}")
    return folder


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_of_a_pack_it_is_what_training_did_not_see(
    photos: Path, tmp_path: Path, share: float
) -> None:
    config = PackConfig(sources=(str(photos),), output=tmp_path / "pack", held_out=share, workers=1)
    pack(config)
    manifest = PackManifest.load(tmp_path / "pack" / "pack.json")
    held_out = sum(shard.records for shard in manifest.of_split("validation"))
    true = TruePictures(str(tmp_path / "pack"))
    data = true.data(STAGE, 64)
    assert len(data) == (held_out or 40)
    rows = np.arange(3)
    pixels = pixels_of(data, rows)
    assert pixels.shape == (3, 3, 64, 64)
    for caption, picture in zip(captions_of(data, rows), pixels, strict=True):
        photo = Image.open(photos / f"{int(caption.split()[1]):02d}.png")
        kernel = Image.Resampling[STAGE.resize.upper()]
        expected = photo.resize((64, 64), kernel, box=(12, 0, 84, 72))
        assert np.array_equal(picture.transpose(1, 2, 0), np.asarray(expected))


def test_pictures_smaller_than_a_stage_s_are_refused(photos: Path, tmp_path: Path) -> None:
    pack(PackConfig(sources=(str(photos),), output=tmp_path / "pack", workers=1))
    data = TruePictures(str(tmp_path / "pack")).data(STAGE, 80)
    with pytest.raises(UserError, match="96x72 is smaller than the 80x80"):
        pixels_of(data, np.arange(1))
