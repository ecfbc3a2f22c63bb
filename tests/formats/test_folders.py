"""Published folders are recognised from their files alone; what ours cannot do is refused."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cascade.config.folders import read_manifest
from cascade.config.stage import StageConfig, TextConfig
from cascade.config.unet import UNetConfig
from cascade.errors import UserError
from cascade.formats.deepfloyd import LICENCE, load_stage, read_pipelines, read_stage
from cascade.formats.settings import Settings
from cascade.formats.unet import unet_from_diffusers, unet_to_diffusers
from cascade.pipeline import Cascade, print_licence

PUBLISHED = ["if-i-m", "if-i-l", "if-i-xl", "if-ii-m", "if-ii-l"]
Rewrite = Callable[..., None]


def test_a_published_cascade(pipelines: tuple[Path, Path]) -> None:
    found = read_pipelines(pipelines[::-1])  # in any order
    assert found.manifest.stages == ("base8", "sr32")
    assert Path(found.manifest.text_encoder) == (pipelines[0] / "text_encoder").resolve()
    assert found.manifest.licence == LICENCE
    base, second = (stage.config for stage in found.stages)
    assert (base.size, second.size) == (8, 32)
    for config in (base, second):
        assert config.text == TextConfig(
            max_length=77, cleaning="deepfloyd", null="empty", masked=False
        )
        assert config.unet.learned_variance
        assert config.diffusion.prediction == "eps"
        assert config.diffusion.schedule == "squared_cosine"
        assert config.sampler.variance == "learned"
        assert config.sampler.threshold.kind == "dynamic"
        assert config.sampler.threshold.percentile == 0.95
        assert config.licence == LICENCE
    assert (base.sampler.guidance, second.sampler.guidance) == (7.0, 4.0)
    assert (base.sampler.threshold.cap, second.sampler.threshold.cap) == (1.5, 1.0)
    assert (base.sampler.steps, second.sampler.steps) == (100, 50)
    assert base.sampler.spacing == second.sampler.spacing == "leading"
    assert base.low_res is None
    low_res = second.low_res
    assert low_res is not None
    assert (low_res.size, low_res.noise_at, low_res.schedule) == (8, "high", "squared_cosine")
    assert (low_res.upsample, low_res.align_corners) == ("bilinear", True)
    assert (low_res.sampling_level.value, low_res.sampling_level.unit) == (0.25, "time")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_five_published_stages(name: str, repository: Path, tmp_path: Path) -> None:
    """Their configurations become ours, name included, and come back as they were."""
    expected = StageConfig.read(repository / "configs" / f"{name}.toml")
    network = unet_to_diffusers(expected.unet, expected.size)
    write(tmp_path / "unet" / "config.json", network)
    scheduler = {
        "beta_schedule": "squaredcos_cap_v2",
        "dynamic_thresholding_ratio": 0.95,
        "sample_max_value": 1.0 if expected.low_res else 1.5,
        "thresholding": True,
        "variance_type": "learned_range",
    }
    for folder in ("scheduler", "image_noising_scheduler"):
        write(tmp_path / folder / "scheduler_config.json", scheduler)
    stage = read_stage(tmp_path)
    assert stage.config.model_copy(update={"licence": expected.licence}) == expected
    assert unet_to_diffusers(stage.config.unet, stage.config.size) == network


@pytest.mark.parametrize("seed", range(12))
def test_random_networks_round_trip(
    seed: int, network: Callable[[int], dict[str, Any]], theirs: Callable[..., Any]
) -> None:
    """Equal as diffusers sees them: with its defaults filled in."""
    with torch.device("meta"):
        before = settings(theirs(network(seed)))
    unet = unet_from_diffusers(Settings(json.loads(json.dumps(before)), "config.json"))
    written = unet_to_diffusers(UNetConfig.model_validate(unet), before["sample_size"])
    with torch.device("meta"):
        after = settings(theirs({k: v for k, v in written.items() if k != "_class_name"}))
    assert after == before


def settings(network: Any) -> dict[str, Any]:
    """A network's configuration with diffusers' defaults, without its notes."""
    values = {key: value for key, value in network.config.items() if not key.startswith("_")}
    blocks = values["layers_per_block"]
    if isinstance(blocks, int):  # one number stands for every level
        values["layers_per_block"] = [blocks] * len(values["block_out_channels"])
    return values


def test_a_diffusers_folder_loads_without_writing(pipelines: tuple[Path, Path]) -> None:
    before = sorted(path for folder in pipelines for path in folder.rglob("*"))
    cascade = Cascade.load(pipelines)
    assert [stage.config.name for stage in cascade.stages] == ["base8", "sr32"]
    assert not any(stage.network.training for stage in cascade.stages)
    assert sorted(path for folder in pipelines for path in folder.rglob("*")) == before


def test_the_licence_is_told_once(
    pipelines: tuple[Path, Path], heard: pytest.LogCaptureFixture
) -> None:
    print_licence.cache_clear()
    Cascade.load(pipelines)
    Cascade.load(pipelines)
    assert heard.text.count("non-commercial research only") == 1


REFUSED = [
    ({"act_fn": "mish"}, "'act_fn' is 'mish'"),
    ({"only_cross_attention": True}, "'only_cross_attention' is True"),
    ({"norm_num_groups": 16}, "'norm_num_groups' is 16"),
    ({"cross_attention_norm": "layer_norm"}, "'cross_attention_norm' is 'layer_norm'"),
    ({"class_embed_type": "timestep"}, "'class_embed_type' is 'timestep'"),
    ({"in_channels": 4}, "'in_channels' is 4"),
    ({"resnet_skip_time_act": True}, "'time_embedding_act_fn' is None"),
    ({"mid_block_scale_factor": 1.4}, "'mid_block_scale_factor' is 1.4"),
    ({"attention_head_dim": [16, 16]}, "'attention_head_dim' is .*int"),
    ({"down_block_types": ["DownBlock2D", "DownBlock2D"]}, "'down_block_types' is"),
    ({"up_block_types": ["ResnetUpsampleBlock2D"] * 2}, "'up_block_types' is"),
    ({"encoder_hid_dim": None}, "'encoder_hid_dim' is None"),
    ({"a_new_key": 3}, "'a_new_key' is 3"),
    ({"sample_size": [8, 16]}, "'sample_size' is"),
    ({"block_out_channels": []}, r"'block_out_channels' is \[\]"),
    ({"block_out_channels": [[32], [64]]}, "'block_out_channels' is"),
    ({"block_out_channels": [None, 64]}, "'block_out_channels' is"),
    ({"block_out_channels": [True, 64]}, "'block_out_channels' is"),
    ({"down_block_types": []}, r"'down_block_types' is \[\]"),
    ({"down_block_types": [{}]}, "'down_block_types' is"),
    ({"resnet_out_scale_factor": 0}, "'resnet_out_scale_factor' is 0"),
    ({"resnet_out_scale_factor": "1"}, "'resnet_out_scale_factor' is '1'"),
    ({"resnet_out_scale_factor": None}, "'resnet_out_scale_factor' is None"),
    ({"resnet_out_scale_factor": True}, "'resnet_out_scale_factor' is True"),
    ({"resnet_out_scale_factor": math.inf}, "'resnet_out_scale_factor' is inf"),
    ({"resnet_out_scale_factor": math.nan}, "'resnet_out_scale_factor' is nan"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_networks_of_another_kind(
    my_pipelines: tuple[Path, Path], rewrite: Rewrite, change: dict[str, Any], message: str
) -> None:
    rewrite(my_pipelines[0] / "unet" / "config.json", **change)
    with pytest.raises(UserError, match=f"config.json {message}"):
        read_pipelines(my_pipelines)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "DDIMScheduler"}, "'_class_name' is 'DDIMScheduler'"),
        ({"beta_schedule": "sigmoid"}, "'beta_schedule' is 'sigmoid'"),
        ({"num_train_timesteps": 500}, "'num_train_timesteps' is 500"),
        ({"variance_type": "learned"}, "'variance_type' is 'learned'"),
        ({"timestep_spacing": "trailing"}, "'timestep_spacing' is 'trailing'"),
        ({"algorithm_type": "sde"}, "'algorithm_type' is 'sde'"),
        ({"thresholding": "no"}, "'thresholding' is 'no'"),
        ({"thresholding": False, "clip_sample": "no"}, "'clip_sample' is 'no'"),
    ],
)
def test_schedulers_of_another_kind(
    my_pipelines: tuple[Path, Path], rewrite: Rewrite, change: dict[str, Any], message: str
) -> None:
    rewrite(my_pipelines[0] / "scheduler" / "scheduler_config.json", **change)
    with pytest.raises(UserError, match=f"scheduler_config.json {message}"):
        read_pipelines(my_pipelines)


def test_folders_that_make_no_cascade(my_pipelines: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no unet/config\.json"):
        read_pipelines([tmp_path])
    for folders in ([my_pipelines[1]], [my_pipelines[0]] * 2, [*my_pipelines, my_pipelines[1]]):
        with pytest.raises(UserError, match="these make no cascade"):
            read_pipelines(folders)
    with pytest.raises(UserError, match="there is no variant 'fp16'"):
        Cascade.load("mini", variant="fp16")
    shutil.rmtree(my_pipelines[0] / "text_encoder")
    with pytest.raises(UserError, match="There is no text encoder folder"):
        Cascade.load(my_pipelines)
    (my_pipelines[1] / "image_noising_scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(UserError, match=r"scheduler_config\.json is missing"):
        read_pipelines(my_pipelines)
    with pytest.raises(UserError, match="cascade import"):
        read_manifest(my_pipelines[0])


def test_weights_of_another_network(my_pipelines: tuple[Path, Path], rewrite: Rewrite) -> None:
    rewrite(my_pipelines[0] / "unet" / "config.json", cross_attention_dim=32)
    (stage,) = read_pipelines(my_pipelines[:1]).stages
    with pytest.raises(UserError, match=r"do not fit their config\.json"):
        load_stage(stage)


def write(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")
