"""Pipelines of DeepFloyd IF as published, one diffusers folder for each stage, read in place.

A folder holds `unet/`, `scheduler/`, in stage II `image_noising_scheduler/`, and in stage I, if not
in both, `text_encoder/` and `tokenizer/`. What no file states is IF's own: 77 unmasked tokens,
captions cleaned, the empty text as null, stage II noised after it was upsampled, by bilinear
interpolation with aligned corners, at level 0.25, guidance 7 and 4, 100 and 50 steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cascade.config.folders import CascadeManifest, is_pipeline
from cascade.config.stage import StageConfig, TextConfig
from cascade.config.unet import UNetConfig
from cascade.errors import UserError
from cascade.formats.keys import Entry, entries, meta_tensors
from cascade.formats.scheduler import sampling_from_diffusers, schedule_from_diffusers
from cascade.formats.settings import Settings
from cascade.formats.unet import unet_from_diffusers
from cascade.formats.weights import Weights, find_weights
from cascade.stage import Stage, meta_network

LICENCE = (
    "DeepFloyd IF License Agreement: these weights, whatever is tuned from them and the pictures "
    "they make are for non-commercial research only, with attribution and without sublicensing."
)
TEXT = TextConfig(max_length=77, cleaning="deepfloyd", null="empty", masked=False)

# The published stages by the widths of their levels; others are named after their pictures.
_NAMES = {
    (192, 384, 576, 768): "if-i-m",
    (320, 640, 960, 1280): "if-i-l",
    (704, 1408, 2112, 2816): "if-i-xl",
    (96, 192, 384, 576, 768): "if-ii-m",
    (160, 320, 640, 960, 1280): "if-ii-l",
}
_FACTOR = 4  # of the published second stages


@dataclass(frozen=True)
class PipelineStage:
    """A pipeline folder, and the stage that its files describe."""

    folder: Path
    config: StageConfig


@dataclass(frozen=True)
class Pipelines:
    """Pipeline folders that together are a cascade.

    Attributes:
        manifest: their names in order, base first; the text encoder by its absolute path, even
            if none of the folders has one.
        stages: the folders in the same order.
    """

    manifest: CascadeManifest
    stages: tuple[PipelineStage, ...]


def read_pipelines(paths: Sequence[Path | str], text_encoder: Path | None = None) -> Pipelines:
    """Read the configurations of pipeline folders.

    Args:
        text_encoder: the encoder's folder; None is that of one of the stages.
    """
    folders = [Path(path) for path in paths]
    if not folders:
        raise UserError("No folder is given; give the downloaded folder of each stage.")
    stages: list[PipelineStage] = []
    for folder in sorted(folders, key=lambda folder: _network(folder).need("sample_size", int)):
        stages.append(read_stage(folder, stages[-1].config.size if stages else None))
    _check_chain(stages)
    encoder = (text_encoder or _text_encoder(folders)).resolve()
    values = {
        "name": stages[0].folder.resolve().name,
        "text_encoder": str(encoder),
        "stages": [stage.config.name for stage in stages],
        "licence": LICENCE,
        "recipe": "deepfloyd",
    }
    manifest = CascadeManifest.parse(values, "the cascade of these folders")
    return Pipelines(manifest, tuple(stages))


def read_stage(folder: Path, below: int | None = None) -> PipelineStage:
    """Read the configuration of one pipeline folder.

    Args:
        below: side of a super-resolution stage's input, pixels; a quarter of its own by default.
    """
    network = _network(folder)
    unet = unet_from_diffusers(network)
    size = network.need("sample_size", int)
    guidance, steps = (4.0, 50) if unet["low_res"] else (7.0, 100)
    scheduler = Settings.read(folder / "scheduler" / "scheduler_config.json")
    diffusion, sampler = sampling_from_diffusers(scheduler, guidance, steps)
    kind = "sr" if unet["low_res"] else "base"
    values = {
        "name": _NAMES.get(tuple(unet["channels"]), f"{kind}{size}"),
        "size": size,
        "unet": unet,
        "diffusion": diffusion,
        "low_res": _low_res(folder, below or size // _FACTOR) if unet["low_res"] else None,
        "text": TEXT.model_dump(),
        "sampler": sampler,
        "licence": LICENCE,
    }
    return PipelineStage(folder, StageConfig.parse(values, str(folder)))


def load_stage(
    source: PipelineStage, device: torch.device | str = "cpu", variant: str | None = None
) -> Stage:
    """Load a stage from its pipeline folder, in float32, without writing anything.

    On a CPU tensors of float32 files stay memory-mapped; the attention's alone are joined into
    matrices of their own.
    """
    weights = open_weights(source, variant, str(device))
    network = meta_network(source.config)
    tensors = {
        entry.ours: entry.join([weights[name] for name in entry.theirs]).float()
        for entry in entries(source.config.unet)
    }
    network.load_state_dict(tensors, assign=True)
    return Stage(source.config, network.eval())


def open_weights(source: PipelineStage, variant: str | None, device: str = "cpu") -> Weights:
    """Open a pipeline folder's U-Net; reads the files' headers alone."""
    folder = source.folder / "unet"
    weights = Weights(find_weights(folder, variant), device)
    shapes = {name: header.shape for name, header in weights.headers.items()}
    wanted = their_shapes(source.config.unet)
    names = sorted(shapes.keys() | wanted.keys())
    differing = [name for name in names if shapes.get(name) != wanted.get(name)]
    if differing:
        raise UserError(
            f"The weights in {folder} do not fit their config.json ({len(differing)} differ, "
            f"{differing[0]} among them); the files come from different checkpoints."
        )
    return weights


def their_shapes(config: UNetConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors of diffusers' network, by name."""
    ours = meta_tensors(config)
    return {
        name: tuple(part.shape)
        for entry in entries(config)
        for name, part in entry.split(ours[entry.ours]).items()
    }


def one_dtype(entry: Entry, weights: Weights) -> torch.dtype:
    """Return the type of the tensors that make up one of ours."""
    dtypes = {weights.headers[name].dtype for name in entry.theirs}
    if len(dtypes) > 1:
        raise UserError(
            f"{entry.theirs[0]} and its neighbours are stored in different types; save the "
            "weights in one type first."
        )
    return dtypes.pop()


def _network(folder: Path) -> Settings:
    if not is_pipeline(folder):
        raise UserError(
            f"{folder} is no diffusers pipeline: it has no unet/config.json; give the downloaded "
            "folder of a stage."
        )
    return Settings.read(folder / "unet" / "config.json")


def _check_chain(stages: Sequence[PipelineStage]) -> None:
    """Check that the first stage is a base, and each other one makes its picture larger."""
    base = [stage.config.low_res is None for stage in stages]
    sizes = [stage.config.size for stage in stages]
    if base != [True] + [False] * (len(stages) - 1) or len(set(sizes)) < len(sizes):
        made = ", ".join(f"{stage.folder} ({stage.config.name})" for stage in stages)
        raise UserError(
            f"{made}: these make no cascade; give the folder of one base stage, and of a "
            "super-resolution stage for each larger size."
        )


def _low_res(folder: Path, size: int) -> dict[str, Any]:
    scheduler = folder / "image_noising_scheduler" / "scheduler_config.json"
    return {
        "size": size,
        "schedule": schedule_from_diffusers(Settings.read(scheduler)),
        "noise_at": "high",
        "upsample": "bilinear",
        "align_corners": True,
        "sampling_level": {"value": 0.25},
    }


def _text_encoder(folders: Sequence[Path]) -> Path:
    """Return the first encoder there is; with a store of embeddings none need be there."""
    encoders = [(folder / "text_encoder").resolve() for folder in folders]
    return next((encoder for encoder in encoders if encoder.is_dir()), encoders[0])
