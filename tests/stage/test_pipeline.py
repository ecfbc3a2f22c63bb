"""From prompts and seeds to pictures, stage after stage."""

from pathlib import Path

import pytest
import torch

from cascade.config.folders import BUNDLED, cascade_folder, read_manifest
from cascade.config.stage import AugmentationLevel, SamplerConfig
from cascade.diffusion.noise import Noise, derive_seed
from cascade.errors import UserError
from cascade.pipeline import Cascade

# As in test_stage: rounding that depends on how many rows are worked on at once.
SAME = 1e-4


def test_every_stage_s_pictures_are_kept_in_order(cascade: Cascade) -> None:
    drawn = cascade.sample("a photo of a dog", seeds=[3, 4, 5])
    assert {name: tuple(t.shape) for name, t in drawn.stages.items()} == {
        "base16": (3, 3, 16, 16),
        "sr32": (3, 3, 32, 32),
    }
    assert list(drawn.stages) == ["base16", "sr32"]
    assert torch.equal(drawn.tensor, drawn.stages["sr32"])
    assert [image.size for image in drawn.images] == [(32, 32)] * 3


def test_pictures_depend_on_prompt_and_seed_alone(cascade: Cascade) -> None:
    prompts = ["a dog", "a cat", "a backpack"]
    whole = cascade.sample(prompts, [7, 8, 9], batch_size=3)
    split = cascade.sample(prompts, [7, 8, 9], batch_size=2)
    alone = cascade.sample("a cat", [8])
    for name, images in whole.stages.items():
        torch.testing.assert_close(split.stages[name], images, atol=SAME, rtol=0)
        torch.testing.assert_close(alone.stages[name][0], images[1], atol=SAME, rtol=0)
    assert torch.equal(cascade.sample(prompts, [7, 8, 9], batch_size=3).tensor, whole.tensor)


def test_stages_draw_unrelated_noise_from_one_seed(
    cascade: Cascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[list[int]] = []
    begin = Noise.__init__

    def note(self: Noise, numbers: list[int]) -> None:
        seeds.append(list(numbers))
        begin(self, numbers)

    monkeypatch.setattr(Noise, "__init__", note)
    cascade.sample("a dog", [1, 2])
    assert seeds == [[derive_seed(s, name) for s in (1, 2)] for name in ("base16", "sr32")]


def test_samplers_and_levels_are_by_stage(cascade: Cascade) -> None:
    plain = cascade.sample("a dog", [0])
    fewer = cascade.sample("a dog", [0], samplers={"sr32": SamplerConfig(name="heun", steps=3)})
    noisier = cascade.sample("a dog", [0], levels={"sr32": AugmentationLevel(value=0.9)})
    for other in (fewer, noisier):
        assert torch.equal(other.stages["base16"], plain.stages["base16"])
        assert (other.stages["sr32"] - plain.stages["sr32"]).abs().max() > 1e-3


def test_progress_counts_steps_of_all_batches(cascade: Cascade) -> None:
    seen: list[tuple[str, int, int]] = []
    cascade.sample("a dog", [0, 1, 2], batch_size=2, on_step=lambda *step: seen.append(step))
    # Each batch goes through both stages: three steps and two.
    assert seen == [
        *(("base16", done, 6) for done in range(1, 4)),
        *(("sr32", done, 4) for done in range(1, 3)),
        *(("base16", done, 6) for done in range(4, 7)),
        *(("sr32", done, 4) for done in range(3, 5)),
    ]


def test_folders_that_are_no_cascade(tiny_cascade: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no cascade at .*gone; give .* 'mini'"):
        cascade_folder(tmp_path / "gone")
    with pytest.raises(UserError, match=r"it has no cascade\.json"):
        Cascade.load(tmp_path)
    assert read_manifest(tiny_cascade).stages == ("base16", "sr32")


def test_a_folder_of_the_same_name_comes_before_a_bundled_cascade(
    tiny_cascade: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cascade_folder(BUNDLED[0]).is_dir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").symlink_to(tiny_cascade)
    assert cascade_folder("mini") == Path("mini")


def test_the_last_stage_goes_on_to_larger_sizes(cascade: Cascade) -> None:
    larger = cascade.upscaled_to(64)
    drawn = larger.sample("a dog", [4])
    assert list(drawn.stages) == ["base16", "sr32", "sr32-at-64"]
    assert drawn.tensor.shape == (1, 3, 64, 64)
    # The smaller pictures are those of the cascade itself.
    assert torch.equal(drawn.stages["sr32"], cascade.sample("a dog", [4]).tensor)
    assert larger.stages[-1].network is cascade.stages[-1].network


def test_only_sizes_that_the_factor_reaches_are_made(cascade: Cascade) -> None:
    with pytest.raises(UserError, match="makes pictures of 16, 32, 64 pixels"):
        cascade.upscaled_to(48)
    base = Cascade(cascade.manifest, cascade.encoder, cascade.stages[:1])
    with pytest.raises(UserError, match="'base16' cannot be used again at a larger scale"):
        base.upscaled_to(32)


def test_every_stage_reads_text_by_its_own_conventions(tiny_cascade: Path) -> None:
    """What a super-resolution stage was trained with is not what its base was trained with."""
    cascade = Cascade.load(tiny_cascade)
    base, sr = cascade.stages
    other = sr.config.text.model_copy(update={"max_length": 3, "null": "empty", "masked": False})
    changed = sr.with_network(sr.network, sr.config.model_copy(update={"text": other}))
    settings = {"guidance": 3.0, "steps": 2}
    prompt = "a dog on the beach"
    plain = cascade.sample(prompt, [0], **settings)
    mixed = Cascade(cascade.manifest, cascade.encoder, [base, changed]).sample(
        prompt, [0], **settings
    )
    assert torch.equal(plain.stages["base16"], mixed.stages["base16"])
    assert not torch.equal(plain.stages["sr32"], mixed.stages["sr32"])
    rows = cascade.prompts([prompt], "sr32").rows([prompt])
    assert rows.embedding.shape[1] > 3
    alike = cascade.prompts([prompt]).rows([prompt])
    assert torch.equal(rows.embedding, alike.embedding)
