"""diffusers to ours and back: every byte of every tensor, whole, sharded, in half precision."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from cascade.config.folders import cascade_folder, read_manifest, read_stage_config
from cascade.config.stage import AugmentationLevel, SubjectConfig
from cascade.errors import UserError
from cascade.formats.deepfloyd import LICENCE, load_stage, read_pipelines
from cascade.formats.export import check_expressible, export_cascade, noise_level
from cascade.formats.importing import import_cascade
from cascade.pipeline import Cascade
from cascade.stage import Stage

diffusers: Any = pytest.importorskip("diffusers")

WEIGHTS = "diffusion_pytorch_model.safetensors"


def stored(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder's safetensors files, as they are stored."""
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def bits(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    return {
        name: (value.dtype, value.shape, value.contiguous().view(torch.uint8).numpy().tobytes())
        for name, value in tensors.items()
    }


def resave(folder: Path, variant: str | None, dtype: torch.dtype, shard: str) -> None:
    """Save a pipeline's U-Net anew: in another type, under a variant's name, in shards."""
    network = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet").to(dtype)
    for path in (folder / "unet").glob("*.safetensors"):
        path.unlink()
    network.save_pretrained(folder / "unet", variant=variant, max_shard_size=shard)


@pytest.mark.parametrize(
    ("variant", "dtype", "shard", "files"),
    [
        (None, torch.float32, "10GB", 1),
        (None, torch.bfloat16, "10GB", 1),
        ("fp16", torch.float16, "10GB", 1),
        ("fp16", torch.float16, "300KB", 2),
        (None, torch.float32, "300KB", 3),
    ],
)
def test_tensors_come_back_byte_for_byte(
    my_pipelines: tuple[Path, Path], tmp_path: Path,
    variant: str | None, dtype: torch.dtype, shard: str, files: int,
) -> None:  # fmt: skip
    for folder in my_pipelines:
        resave(folder, variant, dtype, shard)
        assert len(list((folder / "unet").glob("*.safetensors"))) >= files
    folder = import_cascade(read_pipelines(my_pipelines), tmp_path / "ours", variant=variant)
    assert {value.dtype for value in stored(folder / "base8").values()} == {dtype}
    exported = export_cascade(folder, read_manifest(folder), tmp_path / "theirs")
    for before, after in zip(my_pipelines, exported, strict=True):
        assert bits(stored(before / "unet")) == bits(stored(after / "unet"))
        for kind, place in (
            (diffusers.UNet2DConditionModel, "unet"),
            (diffusers.DDPMScheduler, "scheduler"),
        ):
            assert settings(kind, before / place) == settings(kind, after / place)
    noising = "image_noising_scheduler"
    schedules = [
        settings(diffusers.DDPMScheduler, f[1] / noising) for f in (my_pipelines, exported)
    ]
    assert schedules[0]["beta_schedule"] == schedules[1]["beta_schedule"]


def settings(kind: Any, folder: Path) -> dict[str, Any]:
    """A configuration with diffusers' defaults filled in."""
    values = dict(kind.from_config(kind.load_config(folder)).config)
    return {key: value for key, value in values.items() if not key.startswith("_")}


def test_an_imported_stage_is_the_folders_own(pipelines: tuple[Path, Path], tmp_path: Path) -> None:
    found = read_pipelines(pipelines)
    folder = import_cascade(found, tmp_path / "ours")
    for stage in found.stages:
        direct, imported = load_stage(stage), Stage.load(folder / stage.config.name)
        assert imported.fingerprint() == direct.fingerprint()
        imported.save(tmp_path / "again")
        for name in ("config.json", "model.safetensors"):
            ours = (folder / stage.config.name / name).read_bytes()
            assert ours == (tmp_path / "again" / name).read_bytes()


def test_the_licence_travels(pipelines: tuple[Path, Path], tmp_path: Path) -> None:
    folder = import_cascade(read_pipelines(pipelines), tmp_path / "ours")
    assert read_manifest(folder).licence == LICENCE
    with safe_open(folder / "sr32" / "model.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["config"])["licence"] == LICENCE
    for exported in export_cascade(folder, read_manifest(folder), tmp_path / "theirs"):
        assert LICENCE in (exported / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("copied", [True, False])
def test_the_text_encoder_is_copied_or_referred_to(
    pipelines: tuple[Path, Path], tmp_path: Path, copied: bool
) -> None:
    folder = import_cascade(read_pipelines(pipelines), tmp_path / "ours", copy_text_encoder=copied)
    assert (folder / "text").is_dir() == copied
    prompts = ["a photo of a dog"]
    tables = [Cascade.load(place).prompts(prompts) for place in (folder, pipelines)]
    rows = [table.rows(prompts).embedding for table in tables]
    assert torch.equal(*rows)


def test_a_tuned_stage_is_exported_with_its_subject(
    pipelines: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = import_cascade(read_pipelines(pipelines), tmp_path / "ours")
    stage = Stage.load(folder / "sr32")
    assert stage.config.low_res is not None
    level = AugmentationLevel(value=1e-3, unit="variance")
    changes = {
        "subjects": (SubjectConfig(identifier="sec", class_noun="dog"),),
        "low_res": stage.config.low_res.model_copy(update={"sampling_level": level}),
    }
    config = stage.config.model_copy(update=changes)
    stage.with_network(stage.network, config).save(folder / "sr32")
    _, two = export_cascade(folder, read_manifest(folder), tmp_path / "theirs")
    card = (two / "README.md").read_text(encoding="utf-8")
    assert config.low_res is not None
    schedule = diffusers.DDPMScheduler.from_pretrained(two / "image_noising_scheduler")
    nearest = int((1 - schedule.alphas_cumprod - 1e-3).abs().argmin())
    assert noise_level(config.low_res) == nearest
    for part in (
        "Subject: a sec dog",
        "guidance_scale=4,",
        "num_inference_steps=50",
        f"noise_level={nearest}",
    ):
        assert part in card


def test_outputs_are_not_overwritten(pipelines: tuple[Path, Path], tmp_path: Path) -> None:
    found = read_pipelines(pipelines)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        import_cascade(found, tmp_path / "full")
    folder = import_cascade(found, tmp_path / "ours")
    with pytest.raises(UserError, match="not an empty folder"):
        export_cascade(folder, read_manifest(folder), folder)


def test_an_encoder_of_another_width_is_refused(
    my_pipelines: tuple[Path, Path], tmp_path: Path, rewrite: Callable[..., None]
) -> None:
    rewrite(my_pipelines[0] / "text_encoder" / "config.json", d_model=64)
    with pytest.raises(UserError, match=r"text of width 128 but the encoder in .* gives 64"):
        import_cascade(read_pipelines(my_pipelines), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_an_import_that_fails_leaves_no_cascade(
    my_pipelines: tuple[Path, Path], tmp_path: Path
) -> None:
    path = my_pipelines[1] / "unet" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match="damaged"):
        import_cascade(read_pipelines(my_pipelines), tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("unet.resample", "convolution", "residual blocks"),
        ("unet.text_norm", "layer", "in groups"),
        ("unet.skip_scale", 0.7071, "not scaled"),
        ("unet.norm_groups", 16, "32 groups"),
        ("unet.attention", ("joint", "none"), "at the middle"),
        ("text.max_length", 128, "IF's pipelines fix it"),
        ("text.null", "zeros", "IF's pipelines fix it"),
        ("low_res.noise_at", "low", "upsampled picture"),
        ("low_res.align_corners", False, "corners"),
        ("diffusion.schedule", "cosine", "discrete"),
    ],
)
def test_what_diffusers_cannot_express(
    pipelines: tuple[Path, Path], path: str, value: object, message: str
) -> None:
    config = read_pipelines(pipelines).stages[1].config
    check_expressible(config)
    group, _, key = path.partition(".")
    changed = getattr(config, group).model_copy(update={key: value})
    with pytest.raises(UserError, match=f"'sr32' has {path} = .*{message}"):
        check_expressible(config.model_copy(update={group: changed}))


def test_the_bundled_cascade_cannot_be_exported(tmp_path: Path) -> None:
    folder = cascade_folder("mini")
    with pytest.raises(UserError, match=r"'base64' has .* cannot express"):
        export_cascade(folder, read_manifest(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_export_can_leave_the_text_encoder_out(
    pipelines: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = import_cascade(read_pipelines(pipelines), tmp_path / "ours")
    one, _ = export_cascade(folder, read_manifest(folder), tmp_path / "out", text_encoder=False)
    index = json.loads((one / "model_index.json").read_text())
    assert index["text_encoder"] == index["tokenizer"] == [None, None]
    assert not (one / "text_encoder").exists()


def test_progress_counts_every_tensor(pipelines: tuple[Path, Path], tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    folder = import_cascade(
        read_pipelines(pipelines), tmp_path / "ours", on_tensor=lambda *what: seen.append(what)
    )
    for name in ("base8", "sr32"):
        steps = [(done, total) for stage, done, total in seen if stage == name]
        total = len(stored(folder / name))
        assert steps == [(index + 1, total) for index in range(total)]


def test_stage_configurations_are_the_folders(pipelines: tuple[Path, Path], tmp_path: Path) -> None:
    found = read_pipelines(pipelines)
    folder = import_cascade(found, tmp_path / "ours")
    for stage in found.stages:
        assert read_stage_config(folder / stage.config.name) == stage.config
