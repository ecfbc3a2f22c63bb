"""Pictures as files, and what a folder says of itself."""

from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from cascade.config.stage import CascadeManifest, SubjectConfig
from cascade.data.images import to_pil
from cascade.errors import UserError
from cascade.gallery import draw_to_folder
from cascade.info import count_parameters, describe
from cascade.pipeline import Cascade
from cascade.stage import Stage


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_every_picture_is_a_file_that_names_its_prompt_and_seed(
    cascade: Cascade, tmp_path: Path
) -> None:
    prompts = ["a dog", "ein Hund, 犬"]
    grid = draw_to_folder(cascade, prompts, [4, 5, 6], tmp_path / "new" / "out", batch_size=2)
    folder = tmp_path / "new" / "out"
    names = [f"{number:02d}-{seed}.png" for number in (0, 1) for seed in (4, 5, 6)]
    stages = {"base16": 16, "sr32": 32}
    assert files(folder) == sorted(
        ["grid.png", *(f"{stage}/{name}" for stage in stages for name in names)]
    )
    for stage, side in stages.items():
        with Image.open(folder / stage / "01-5.png") as picture:
            assert picture.size == (side, side)
            assert picture.text == {  # type: ignore[attr-defined]
                "prompt": prompts[1],
                "seed": "5",
            }
    assert grid == folder / "grid.png"
    with Image.open(grid) as sheet, Image.open(folder / "sr32" / "01-5.png") as picture:
        assert sheet.size == (3 * 34 - 2, 2 * 34 - 2)  # a row per prompt, a gap of 2
        assert sheet.crop((34, 34, 66, 66)).tobytes() == picture.tobytes()


def test_files_hold_what_the_cascade_draws(cascade: Cascade, tmp_path: Path) -> None:
    draw_to_folder(cascade, ["a dog"], [3], tmp_path, last_stage="base16")
    assert files(tmp_path) == ["base16/00-3.png", "grid.png"]
    (expected,) = to_pil(cascade.sample("a dog", [3]).stages["base16"])
    with Image.open(tmp_path / "base16" / "00-3.png") as picture:
        assert picture.tobytes() == expected.tobytes()


def test_other_files_in_the_folder_stay(cascade: Cascade, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    draw_to_folder(cascade, ["a dog"], [0], tmp_path, last_stage="base16")
    draw_to_folder(cascade, ["a dog"], [1], tmp_path, last_stage="base16")
    assert files(tmp_path) == ["base16/00-0.png", "base16/00-1.png", "grid.png", "mine.txt"]


def test_a_file_in_the_folder_s_place_is_refused_and_kept(cascade: Cascade, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UserError, match="taken is a file"):
        draw_to_folder(cascade, ["a dog"], [0], tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def shown(path: Path) -> str:
    console = Console(width=150, record=True, markup=False, emoji=False, quiet=True)
    with console.capture() as text:
        console.quiet = False
        console.print(describe(str(path)))
    return text.get()


def test_info_shows_what_each_stage_is(tiny_cascade: Path) -> None:
    text = shown(tiny_cascade)
    for part in ("tiny", "base16", "sr32", "16 x 16", "32 x 32", "0.26 M", "0.14 M"):
        assert part in text
    assert "dpmpp_2m, 3 steps, guidance 3" in text
    assert "time 0 to time 1" in text
    assert "at low resolution" in text
    assert "Licence: not stated" in text
    assert "subject" not in text


def test_info_shows_the_subject_and_the_licence_as_written(base: Stage, tmp_path: Path) -> None:
    subject = SubjectConfig(identifier="[v]", class_noun="dog")
    changes = {"subjects": (subject,), "licence": "[research] only"}
    base.with_network(base.network, base.config.model_copy(update=changes)).save(tmp_path / "base")
    manifest = CascadeManifest(name="[mine]", stages=("base",), licence="[all] rights")
    (tmp_path / "cascade.json").write_text(manifest.model_dump_json())
    text = shown(tmp_path)
    for part in ("a [v] dog", "[research] only", "[mine]", "Licence: [all] rights"):
        assert part in text


def test_info_counts_from_the_header(base: Stage, tiny_cascade: Path, tmp_path: Path) -> None:
    path = tiny_cascade / "base16" / "model.safetensors"
    assert count_parameters(path) == sum(p.numel() for p in base.network.parameters())
    (tmp_path / "half.safetensors").write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"half\.safetensors is damaged"):
        count_parameters(tmp_path / "half.safetensors")
    with pytest.raises(UserError, match=r"gone\.safetensors is missing"):
        count_parameters(tmp_path / "gone.safetensors")
