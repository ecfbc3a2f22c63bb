"""A cascade put together of trained stages and a text encoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from cascade.config.folders import MANIFEST, CascadeManifest, check_chain, read_stage_config
from cascade.config.stage import RecipeName, StageConfig
from cascade.errors import UserError
from cascade.files import new_folder, write_bytes
from cascade.formats.weights import Weights, encoder_weights, require_output, write_encoder
from cascade.stage import Stage, check_weights
from cascade.tensors import headers
from cascade.text.files import EncoderFiles

TEXT: Final = "text"
"""The folder of a copied text encoder."""


def assemble(
    stages: Sequence[Path],
    output: Path,
    *,
    text_encoder: Path | None = None,
    copy_text_encoder: bool = True,
    name: str | None = None,
    recipe: RecipeName = "paper",
    licence: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> CascadeManifest:
    """Write the folder of a cascade; what it is made of stays as it is.

    Args:
        text_encoder: its folder; without one, prompts come from a store of embeddings.
        copy_text_encoder: else the manifest names it by its absolute path.
        name: the cascade's; its folder's if left out.
        licence: of the weights; what the stages state if left out.
    """
    configs = [_config(folder) for folder in stages]
    encoder = None if text_encoder is None else EncoderFiles.open(text_encoder)
    check_chain(configs, encoder.width if encoder else configs[0].unet.text_width, output)
    copied = [_weights(folder) for folder in stages]
    if encoder is not None and copy_text_encoder:
        copied.append(encoder_weights(encoder))
    require_output(output, copied)
    place = TEXT if encoder is None or copy_text_encoder else str(encoder.folder.absolute())
    stated = dict.fromkeys(config.licence for config in configs if config.licence)
    manifest = CascadeManifest(
        name=name or output.absolute().name,
        text_encoder=place,
        stages=tuple(config.name for config in configs),
        recipe=recipe,
        licence="; ".join(stated) if licence is None else licence,
    )
    with new_folder(output):
        for folder, config in zip(stages, configs, strict=True):
            Stage.load(folder).save(output / config.name, dtype)
        if encoder is not None and copy_text_encoder:
            write_encoder(encoder, output / TEXT, output / TEXT / encoder.vocabulary.name)
        write_bytes((manifest.model_dump_json(indent=2) + "\n").encode(), output / MANIFEST)
    return manifest


def _config(folder: Path) -> StageConfig:
    """Read a stage's configuration and compare its weights' shapes with it."""
    if not (folder / "config.json").is_file() and (folder / "stage" / "config.json").is_file():
        raise UserError(f"{folder} is the folder of a run; its stage is {folder / 'stage'}.")
    config = read_stage_config(folder)
    check_weights(folder, config)
    return config


def _weights(folder: Path) -> Weights:
    path = folder / "model.safetensors"
    return Weights(dict.fromkeys(headers(path), path))
