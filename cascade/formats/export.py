"""Export of a cascade folder to pipeline folders that diffusers loads."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cascade.config.folders import CascadeManifest, read_stage_config
from cascade.config.stage import LowResConfig, StageConfig
from cascade.diffusion.noise import level_from_variance
from cascade.diffusion.schedule import make_schedule
from cascade.errors import UserError
from cascade.files import new_folder, write_bytes, write_json
from cascade.formats.deepfloyd import TEXT, their_shapes
from cascade.formats.keys import entries
from cascade.formats.scheduler import noising_to_diffusers, scheduler_to_diffusers
from cascade.formats.unet import unet_to_diffusers
from cascade.formats.weights import (
    STEM,
    OnTensor,
    Weights,
    encoder_weights,
    require_output,
    write_encoder,
    write_weights,
)
from cascade.stage import check_weights
from cascade.tensors import Header, weight_shapes
from cascade.text.files import EncoderFiles

# A stage's setting, the only value that diffusers' network and pipelines for IF have, and why.
_REQUIRED: dict[str, tuple[object, str]] = {
    "unet.resample": ("residual", "its levels change their size inside residual blocks"),
    "unet.skip_scale": (1.0, "its skip connections are not scaled"),
    "unet.text_norm": ("group", "its text is normalised in groups"),
    "unet.norm_groups": (32, "its norms have 32 groups"),
    "unet.learned_variance": (True, "its pipelines take six output channels apart"),
    "low_res.noise_at": ("high", "its pipeline noises the upsampled picture"),
    "low_res.upsample": ("bilinear", "its pipeline upsamples by bilinear interpolation"),
    "low_res.align_corners": (True, "its pipeline aligns the corners"),
    **{f"text.{key}": (value, "IF's pipelines fix it") for key, value in TEXT},
}


def export_cascade(
    source: Path,
    manifest: CascadeManifest,
    output: Path,
    *,
    text_encoder: bool = True,
    on_tensor: OnTensor | None = None,
) -> list[Path]:
    """Write every stage as a pipeline folder; weights keep their type.

    The base's folder loads as diffusers' `IFPipeline`, a super-resolution stage's as its
    `IFSuperResolutionPipeline`. There is no safety checker in them, of which diffusers warns.

    Args:
        text_encoder: put the encoder into the base's folder; without, diffusers is called with
            embeddings.

    Returns:
        The stages' folders, base first; the output is removed if they do not come about.
    """
    stages = {source / name: read_stage_config(source / name) for name in manifest.stages}
    opened: dict[Path, Weights] = {}
    for folder, config in stages.items():
        check_expressible(config)
        check_weights(folder, config)
        path = folder / "model.safetensors"
        opened[folder] = Weights(dict.fromkeys(weight_shapes(path), path))
    encoder = EncoderFiles.open(source / manifest.text_encoder) if text_encoder else None
    copied = [encoder_weights(encoder)] if encoder is not None else []
    require_output(output, [*opened.values(), *copied])
    with new_folder(output):
        for folder, config in stages.items():
            target = output / folder.name
            with_encoder = encoder is not None and config.low_res is None
            _write_settings(config, target, with_encoder)
            if encoder is not None and with_encoder:
                _write_text(encoder, target)
            _write_unet(config, opened[folder], target / "unet", on_tensor)
    return [output / folder.name for folder in stages]


def check_expressible(config: StageConfig) -> None:
    """Check that diffusers has a network and a pipeline that sample this stage's pictures."""
    values = config.model_dump()
    for path, (wanted, reason) in _REQUIRED.items():
        group, _, key = path.partition(".")
        settings = values[group]
        if settings is not None and settings[key] != wanted:
            raise _inexpressible(config, f"{path} = {settings[key]!r}", reason)
    if set(config.unet.attention) - {"none", "joint"} or config.unet.attention[-1] != "joint":
        kinds = ", ".join(config.unet.attention)
        raise _inexpressible(
            config, f"unet.attention = {kinds}", "its attention is joint, and always at the middle"
        )
    if config.diffusion.schedule == "cosine":
        raise _inexpressible(config, "diffusion.schedule = 'cosine'", "its schedules are discrete")


def _inexpressible(config: StageConfig, setting: str, reason: str) -> UserError:
    return UserError(
        f"Stage '{config.name}' has {setting}, which diffusers cannot express ({reason}); only "
        "cascades of DeepFloyd IF's kind can be exported."
    )


def _write_unet(
    config: StageConfig, weights: Weights, folder: Path, on_tensor: OnTensor | None
) -> None:
    owner = {name: entry for entry in entries(config.unet) for name in entry.theirs}
    headers = {
        name: Header(weights.headers[owner[name].ours].dtype, shape)
        for name, shape in their_shapes(config.unet).items()
    }

    def read(name: str) -> Tensor:
        return owner[name].split(weights[owner[name].ours])[name]

    write_json(unet_to_diffusers(config.unet, config.size), folder / "config.json")
    write_weights(
        folder / f"{STEM}.safetensors",
        headers,
        read,
        {"format": "pt"},
        on_tensor and partial(on_tensor, config.name),
    )


def _write_settings(config: StageConfig, folder: Path, with_encoder: bool) -> None:
    """Write the pipeline's index, its schedulers and its card."""
    scheduler = ["diffusers", "DDPMScheduler"]
    none = [None, None]
    index: dict[str, Any] = {
        "_class_name": "IFPipeline",
        "feature_extractor": none,
        "requires_safety_checker": True,
        "safety_checker": none,
        "scheduler": scheduler,
        "text_encoder": ["transformers", "T5EncoderModel"] if with_encoder else none,
        "tokenizer": ["transformers", "T5Tokenizer"] if with_encoder else none,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "watermarker": none,
    }
    write_json(
        scheduler_to_diffusers(config.diffusion, config.sampler),
        folder / "scheduler" / "scheduler_config.json",
    )
    if config.low_res is not None:
        index |= {"_class_name": "IFSuperResolutionPipeline", "image_noising_scheduler": scheduler}
        write_json(
            noising_to_diffusers(config.low_res.schedule),
            folder / "image_noising_scheduler" / "scheduler_config.json",
        )
    write_json(index, folder / "model_index.json")
    write_bytes(_card(config).encode(), folder / "README.md")


def _write_text(encoder: EncoderFiles, folder: Path) -> None:
    tokenizer = folder / "tokenizer"
    write_encoder(encoder, folder / "text_encoder", tokenizer / "spiece.model")
    write_json({"tokenizer_class": "T5Tokenizer"}, tokenizer / "tokenizer_config.json")


def _card(config: StageConfig) -> str:
    """Return the licence and the pipeline's arguments, for which its files have no place."""
    sampler = config.sampler
    listed = None if sampler.timesteps is None else [int(time) for time in sampler.timesteps]
    steps = f"num_inference_steps={sampler.steps}" if listed is None else f"timesteps={listed}"
    arguments = [f"guidance_scale={sampler.guidance:g}", steps]
    if config.low_res is not None:
        arguments.append(f"noise_level={noise_level(config.low_res)}")
    lines = [f"# {config.name}", "", f"Licence: {config.licence or 'not stated'}", ""]
    for subject in config.subjects:
        lines += [f"Subject: a {subject.identifier} {subject.class_noun}", ""]
    lines += [f"Call the pipeline with `{', '.join(arguments)}`.", ""]
    return "\n".join(lines)


def noise_level(low_res: LowResConfig) -> int:
    """Return the augmentation level that a stage samples at as diffusers' timestep."""
    schedule = make_schedule(low_res.schedule)
    level = low_res.sampling_level
    time = level.value
    if level.unit == "variance":
        time = level_from_variance(schedule, level.value)
    return int(schedule.draw(torch.tensor(time, dtype=torch.float64)))
