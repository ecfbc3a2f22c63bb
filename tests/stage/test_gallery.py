"""Pictures as files, and what a folder says of itself."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cascade import gallery as gallery_module
from cascade.config.sample import SampleOptions
from cascade.config.stage import SamplerConfig
from cascade.data.images import to_pil
from cascade.errors import UserError
from cascade.gallery import Gallery, sample_to_folder
from cascade.pipeline import Cascade
from cascade.request import Request


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def draw(
    cascade: Cascade,
    folder: Path,
    prompts: str | list[str],
    seeds: Sequence[int],
    **asked: Any,
) -> Gallery:
    texts = [prompts] if isinstance(prompts, str) else prompts
    pairs = [(text, seed) for text in texts for seed in seeds]
    request = Request.of(
        cascade.configs,
        [text for text, _ in pairs],
        [seed for _, seed in pairs],
        SampleOptions(**asked),
    )
    return sample_to_folder(cascade, request, folder, columns=len(seeds))


def told(path: Path) -> dict[str, str]:
    with Image.open(path) as picture:
        return dict(picture.text)  # type: ignore[attr-defined]


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}


def test_every_picture_is_a_file_that_names_its_prompt_and_seed(
    cascade: Cascade, tmp_path: Path
) -> None:
    prompts = ["a dog", "ein Hund, 犬"]
    folder = tmp_path / "new" / "out"
    gallery = draw(cascade, folder, prompts, [4, 5, 6], batch_size=2)
    names = [f"{number:02d}-{seed}.png" for number in (0, 1) for seed in (4, 5, 6)]
    stages = {"base16": 16, "sr32": 32}
    assert files(folder) == sorted(
        ["grid.png", *(f"{stage}/{name}" for stage in stages for name in names)]
    )
    for (stage, side), config in zip(stages.items(), cascade.configs, strict=True):
        path = folder / stage / "01-5.png"
        with Image.open(path) as picture:
            assert picture.size == (side, side)
        noted = told(path)
        assert len(noted.pop("fingerprint")) == 64
        assert SamplerConfig.model_validate_json(noted.pop("sampler")) == config.sampler
        assert noted == {"prompt": prompts[1], "seed": "5", "cascade": "tiny"}
    assert gallery == Gallery(folder / "grid.png", pictures=6, kept=0, shown=6)
    with Image.open(gallery.grid) as sheet, Image.open(folder / "sr32" / "01-5.png") as picture:
        assert sheet.size == (3 * 34 - 2, 2 * 34 - 2)  # a row per prompt, a gap of 2
        assert sheet.crop((34, 34, 66, 66)).tobytes() == picture.tobytes()


def test_files_hold_what_the_cascade_draws(cascade: Cascade, tmp_path: Path) -> None:
    draw(cascade, tmp_path, "a dog", [3], last_stage="base16")
    assert files(tmp_path) == ["base16/00-3.png", "grid.png"]
    (expected,) = to_pil(cascade.sample("a dog", [3]).stages["base16"])
    with Image.open(tmp_path / "base16" / "00-3.png") as picture:
        assert picture.tobytes() == expected.tobytes()


def test_other_files_in_the_folder_stay(cascade: Cascade, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    (tmp_path / "base16").mkdir()
    (tmp_path / "base16" / "00-1.png").write_text("mine, and no picture")
    before = contents(tmp_path)
    draw(cascade, tmp_path, "a dog", [0, 1], last_stage="base16")
    assert contents(tmp_path).items() > before.items()
    assert files(tmp_path / "base16") == ["00-1.png", "01-0.png", "01-1.png"]


OTHERS: dict[str, dict[str, Any]] = {
    "settings": {"steps": 2},
    "guidance": {"guidance": 2.0},
    "noise": {"noise_level": 0.5},
    "negative": {"negative_prompts": "a cat"},
    "stage": {"samplers": {"sr32": {"steps": 4}}},
}


@pytest.mark.parametrize("other", ["prompt", "weights", *OTHERS])
def test_a_picture_of_something_else_is_never_replaced(
    cascade: Cascade, tmp_path: Path, other: str
) -> None:
    draw(cascade, tmp_path, "a dog", [0, 1])
    before = contents(tmp_path)
    tuned = cascade
    if other == "weights":
        network = copy.deepcopy(cascade.stages[1].network)
        next(network.parameters()).data.mul_(1.5)
        stages = (cascade.stages[0], cascade.stages[1].with_network(network))
        tuned = Cascade(cascade.manifest, cascade.encoder, stages)
    prompt = "a cat" if other == "prompt" else "a dog"
    for _ in range(2):  # the second finds all of it there
        gallery = draw(tuned, tmp_path, prompt, [0], **OTHERS.get(other, {}))
        assert contents(tmp_path).items() > before.items()
        added = contents(tmp_path).keys() - before.keys()
        assert added == {"base16/01-0.png", "sr32/01-0.png", "grid-1.png"}
        assert gallery.grid.name == "grid-1.png"
    assert gallery.kept == 1
    # The first prompt still has its number, for other seeds too.
    assert draw(cascade, tmp_path, "a dog", [1, 2]).kept == 1
    assert (tmp_path / "sr32" / "00-2.png").is_file()


def test_a_prompt_has_one_number_whatever_its_place(cascade: Cascade, tmp_path: Path) -> None:
    draw(cascade, tmp_path, ["a dog", "a cat"], [0], last_stage="base16")
    gallery = draw(cascade, tmp_path, ["a cup", "a cat", "a cat"], [0])
    assert files(tmp_path / "sr32") == ["01-0.png", "02-0.png"]
    assert told(tmp_path / "sr32" / "01-0.png")["prompt"] == "a cat"
    assert gallery.shown == 3
    # Pictures of the base alone are part of the whole.
    assert files(tmp_path / "base16") == ["00-0.png", "01-0.png", "02-0.png"]


def test_a_call_that_was_stopped_goes_on_to_the_same_files(
    cascade: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def again(folder: Path) -> Gallery:
        return draw(cascade, folder, "a dog", range(5), batch_size=2)

    again(tmp_path / "whole")
    written: list[str] = []
    write = gallery_module.write_png

    def stop_at_the_sixth(image: Image.Image, path: Path, note: object) -> None:
        if len(written) == 6:  # the first batch is whole, of the second there is one base picture
            raise KeyboardInterrupt
        written.append(path.name)
        write(image, path, note)  # type: ignore[arg-type]

    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(gallery_module, "write_png", stop_at_the_sixth)
        with pytest.raises(KeyboardInterrupt):
            again(stopped)
    assert len(files(stopped)) == 6
    batches: list[range] = []
    drawing = Cascade.sample_batches

    def noted(self: Cascade, request: Request, wanted: list[range], on_step: Any) -> Any:
        batches.extend(wanted)
        return drawing(self, request, wanted, on_step)

    monkeypatch.setattr(Cascade, "sample_batches", noted)
    assert again(stopped).kept == 3
    assert batches == [range(2, 4), range(4, 5)]
    assert contents(stopped) == contents(tmp_path / "whole")
    assert again(stopped).kept == 5
    assert len(batches) == 2  # nothing more is drawn


@pytest.mark.parametrize("seed", [0, 7])
def test_another_call_that_comes_first_keeps_its_number(
    cascade: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    drawing = Cascade.sample_batches

    def slow(self: Cascade, *arguments: Any) -> Any:
        monkeypatch.setattr(Cascade, "sample_batches", drawing)
        draw(cascade, tmp_path, "a cat", [seed])
        return drawing(self, *arguments)

    monkeypatch.setattr(Cascade, "sample_batches", slow)
    draw(cascade, tmp_path, "a dog", [0, 1], batch_size=1)
    assert files(tmp_path / "sr32") == [f"00-{seed}.png", "01-0.png", "01-1.png"]
    assert told(tmp_path / "sr32" / f"00-{seed}.png")["prompt"] == "a cat"


def test_another_call_s_picture_of_the_same_name_stays(
    cascade: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = gallery_module.write_png

    def meanwhile(image: Image.Image, path: Path, note: object) -> None:
        write(image, path, note)  # type: ignore[arg-type]
        (tmp_path / "sr32").mkdir(exist_ok=True)
        (tmp_path / "sr32" / "00-0.png").write_text("another call's")

    monkeypatch.setattr(gallery_module, "write_png", meanwhile)
    with pytest.raises(UserError, match=r"00-0\.png was written by another call"):
        draw(cascade, tmp_path, "a dog", [0])
    assert (tmp_path / "sr32" / "00-0.png").read_text() == "another call's"


def test_what_is_no_picture_is_not_written(cascade: Cascade, tmp_path: Path) -> None:
    network = copy.deepcopy(cascade.stages[1].network)
    next(network.parameters()).data.fill_(float("nan"))
    spoilt = (cascade.stages[0], cascade.stages[1].with_network(network))
    with pytest.raises(UserError, match="'sr32' drew what is no picture"):
        draw(Cascade(cascade.manifest, cascade.encoder, spoilt), tmp_path / "out", "a dog", [0])
    assert list(tmp_path.iterdir()) == []


def test_a_grid_has_no_more_pixels_than_viewers_take(
    cascade: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery_module, "_WIDEST", 40)  # two of 16 pixels and their gaps
    gallery = draw(cascade, tmp_path, ["a", "b", "c"], range(3), last_stage="base16")
    assert (gallery.pictures, gallery.shown) == (9, 4)
    with Image.open(gallery.grid) as sheet:
        assert sheet.size == (34, 34)


def test_a_place_that_cannot_be_written_is_told_before_anything_is_drawn(
    cascade: Cascade, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cascade, "sample_batches", None)
    (tmp_path / "taken").write_text("mine")
    for place in ("taken", "taken/below"):
        with pytest.raises(UserError, match="Nothing can be written into"):
            draw(cascade, tmp_path / place, "a dog", [0])
    assert (tmp_path / "taken").read_text() == "mine"
