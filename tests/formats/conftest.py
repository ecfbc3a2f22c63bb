"""DeepFloyd IF in small: diffusers networks of its kind, and whole pipeline folders of them."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

diffusers: Any = pytest.importorskip("diffusers")

TEXT_WIDTH = 128  # the bundled text encoder's
KIND = {
    "addition_embed_type": "text",
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim_type": "text_proj",
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
}
STAGE_TWO = {
    "class_embed_type": "timestep",
    "in_channels": 6,
    "resnet_skip_time_act": True,
}


def random_network(seed: int) -> dict[str, Any]:
    """A configuration of diffusers' U-Net: even seeds are first stages, odd ones second."""
    draw = random.Random(seed)
    levels = draw.choice([2, 3])
    # At least two channels for each of the 32 groups: a norm over one channel removes the bias in
    # front of it, whose gradient would be rounding alone.
    channels = [32 * draw.choice([2, 3]) for _ in range(levels)]
    attends = [*(draw.random() < 0.5 for _ in range(levels - 1)), True]
    activation = draw.choice(["gelu", "silu"])
    settings = KIND | {
        "act_fn": activation,
        "addition_embed_type_num_heads": draw.choice([2, 8]),
        "attention_head_dim": draw.choice([8, 16, 32]),
        "block_out_channels": channels,
        "cross_attention_dim": draw.choice([64, 96]),
        "down_block_types": [
            "SimpleCrossAttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends
        ],
        "encoder_hid_dim": draw.choice([16, 48]),
        "in_channels": 3,
        "layers_per_block": draw.choice([1, 2]),
        "sample_size": 16,
        "time_embedding_dim": draw.choice([None, 64]),
        "up_block_types": [
            "SimpleCrossAttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in attends[::-1]
        ],
    }
    if seed % 2:
        scale = draw.choice([1.0, 1 / 0.7071])
        settings |= STAGE_TWO | {
            "layers_per_block": [draw.choice([1, 2]) for _ in channels],
            "mid_block_scale_factor": scale,
            "resnet_out_scale_factor": scale,
            "sample_size": 64,
            "time_embedding_act_fn": activation,
        }
    return settings


def small(stage: int) -> dict[str, Any]:
    """A network that reads the bundled text encoder: stage 1 or 2 of one small cascade."""
    plain = [True, False] if stage == 1 else [True, True, False]
    settings = KIND | {
        "act_fn": "gelu",
        "addition_embed_type_num_heads": 8,
        "attention_head_dim": 16,
        "block_out_channels": [32, 64] if stage == 1 else [32, 32, 64],
        "cross_attention_dim": 64,
        "down_block_types": [
            "ResnetDownsampleBlock2D" if p else "SimpleCrossAttnDownBlock2D" for p in plain
        ],
        "encoder_hid_dim": TEXT_WIDTH,
        "in_channels": 3,
        "layers_per_block": 1,
        "sample_size": 8 if stage == 1 else 32,
        "up_block_types": [
            "ResnetUpsampleBlock2D" if p else "SimpleCrossAttnUpBlock2D" for p in plain[::-1]
        ],
    }
    if stage == 2:
        settings |= STAGE_TWO | {
            "layers_per_block": [1, 1, 2],
            "mid_block_scale_factor": 1 / 0.7071,
            "resnet_out_scale_factor": 1 / 0.7071,
            "time_embedding_act_fn": "gelu",
        }
    return settings


def build(settings: dict[str, Any], seed: int = 0) -> Any:
    """A diffusers network with random weights, none of them zero."""
    torch.manual_seed(seed)
    return diffusers.UNet2DConditionModel(**settings).eval()


SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.15.0",
    "beta_schedule": "squaredcos_cap_v2",
    "num_train_timesteps": 1000,
}


def write_pipeline(folder: Path, stage: int, text: Path | None) -> Path:
    """One stage as it is published; `text` is a T5's folder, for a first stage."""
    network = build(small(stage), seed=stage)
    # Random networks are steeper than trained ones and would magnify the rounding of every step.
    with torch.no_grad():
        network.conv_out.weight.mul_(0.5)
    network.save_pretrained(folder / "unet")
    sampling = SCHEDULER | {
        "clip_sample": True,
        "dynamic_thresholding_ratio": 0.95,
        "prediction_type": "epsilon",
        "sample_max_value": 1.5 if stage == 1 else 1.0,
        "thresholding": True,
        "variance_type": "learned_range",
    }
    write_json(folder / "scheduler" / "scheduler_config.json", sampling)
    if stage == 2:
        write_json(folder / "image_noising_scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "model_index.json", _index(stage, text is not None))
    if text is not None:
        shutil.copytree(text, folder / "text_encoder")
        (folder / "tokenizer").mkdir()
        (folder / "text_encoder" / "spiece.model").rename(folder / "tokenizer" / "spiece.model")
    return folder


def _index(stage: int, encoder: bool) -> dict[str, Any]:
    scheduler, none = ["diffusers", "DDPMScheduler"], [None, None]
    index: dict[str, Any] = {
        "_class_name": "IFPipeline" if stage == 1 else "IFSuperResolutionPipeline",
        "feature_extractor": none,
        "requires_safety_checker": False,
        "safety_checker": none,
        "scheduler": scheduler,
        "text_encoder": ["transformers", "T5EncoderModel"] if encoder else none,
        "tokenizer": ["transformers", "T5Tokenizer"] if encoder else none,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "watermarker": none,
    }
    return index if stage == 1 else index | {"image_noising_scheduler": scheduler}


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


@pytest.fixture(scope="session")
def pipelines(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of a small published cascade, 8 -> 32 pixels; read them only."""
    root = tmp_path_factory.mktemp("published")
    text = repository / "cascade" / "zoo" / "mini" / "text"
    return (
        write_pipeline(root / "IF-I-S-v1.0", 1, text),
        write_pipeline(root / "IF-II-S-v1.0", 2, None),
    )


@pytest.fixture
def my_pipelines(pipelines: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the folders to change."""
    one, two = (shutil.copytree(folder, tmp_path / folder.name) for folder in pipelines)
    return one, two


@pytest.fixture
def rewrite() -> Callable[..., None]:
    """Change keys of a JSON file."""

    def change(path: Path, **values: Any) -> None:
        write_json(path, json.loads(path.read_text(encoding="utf-8")) | values)

    return change


@pytest.fixture
def network() -> Callable[[int], dict[str, Any]]:
    """Random configurations by their seed."""
    return random_network


@pytest.fixture
def theirs() -> Callable[[dict[str, Any]], Any]:
    """Build a diffusers network."""
    return build
