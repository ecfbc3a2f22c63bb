"""The stages that complete the one in training: which they are, and what does not fit."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cascade.config.folders import read_stage_config
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.text.files import EncoderFiles
from cascade.training.other_stages import open_others, other_stages


@pytest.fixture(scope="module")
def text(tiny_cascade: Path) -> EncoderFiles:
    return EncoderFiles.open(tiny_cascade / "text")


def _sized(stage: StageConfig, size: int, given: int | None = None) -> StageConfig:
    low_res = None
    if stage.low_res is not None:
        low_res = stage.low_res.model_copy(update={"size": given, "crop": None})
    return stage.model_copy(update={"size": size, "low_res": low_res, "name": f"s{size}"})


@pytest.fixture(scope="module")
def sized(tiny_cascade: Path) -> Callable[..., StageConfig]:
    """A stage of other sizes: a base, or one that enlarges."""
    base, sr = (read_stage_config(tiny_cascade / name) for name in ("base16", "sr32"))

    def sized(size: int, given: int | None = None) -> StageConfig:
        return _sized(base if given is None else sr, size, given)

    return sized


@pytest.mark.parametrize(
    ("size", "given", "earlier", "later"),
    [
        (16, None, [], ["b", "c"]),
        (32, 16, ["a"], ["c"]),
        (64, 32, ["a", "b"], []),
        (32, None, [], ["c"]),  # a larger base, whose pictures the last one enlarges
        (64, 16, ["a"], []),  # twice the factor
    ],
)
def test_others_stand_before_and_behind(
    sized: Callable[..., StageConfig],
    size: int,
    given: int | None,
    earlier: list[str],
    later: list[str],
) -> None:
    chain = {Path("a"): sized(16), Path("b"): sized(32, 16), Path("c"): sized(64, 32)}
    found = other_stages(chain.items(), sized(size, given))
    assert [str(folder) for folder in found.earlier] == earlier
    assert [str(folder) for folder in found.later] == later


def test_a_cascade_completes_its_own_stages(tiny_cascade: Path, text: EncoderFiles) -> None:
    for name, other in (("base16", "sr32"), ("sr32", "base16")):
        stage = read_stage_config(tiny_cascade / name)
        assert [one.name for one in open_others(str(tiny_cascade), stage, text).configs] == [other]


@pytest.mark.parametrize(
    ("size", "given", "told"),
    [
        (32, None, "no stage that enlarges the 32 pixels of 's32'"),
        (8, None, "'sr32' enlarges 16 pixels and the one before makes 8"),
        (32, 8, "'s32' enlarges 8 pixels and none makes what it enlarges"),
        (64, 24, "'s64' enlarges 24 pixels and the one before makes 16"),
    ],
)
def test_other_sizes_are_refused(
    tiny_cascade: Path,
    text: EncoderFiles,
    sized: Callable[..., StageConfig],
    size: int,
    given: int | None,
    told: str,
) -> None:
    with pytest.raises(UserError, match=told):
        open_others(str(tiny_cascade), sized(size, given), text)


def test_another_text_encoder_is_refused(
    tmp_path: Path, tiny_cascade: Path, text: EncoderFiles
) -> None:
    stage = read_stage_config(tiny_cascade / "base16")
    wide, foreign, far = (tmp_path / name for name in ("wide", "foreign", "far"))
    for folder in (wide, foreign, far):
        shutil.copytree(tiny_cascade, folder)
    _edit(wide / "sr32" / "config.json", '"text_width": 128', '"text_width": 64')
    with pytest.raises(UserError, match="reads text of width 64, and that of this run is 128"):
        open_others(str(wide), stage, text)
    with (foreign / "text" / "spiece.model").open("ab") as vocabulary:
        vocabulary.write(b" ")
    with pytest.raises(UserError, match="is another one than that in"):
        open_others(str(foreign), stage, text)
    shutil.rmtree(far / "text")  # nothing to compare with
    assert open_others(str(far), stage, text).later


def _edit(path: Path, old: str, new: str) -> None:
    held = path.read_text(encoding="utf-8")
    assert old in held
    path.write_text(held.replace(old, new), encoding="utf-8")
