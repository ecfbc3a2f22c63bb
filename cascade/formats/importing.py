"""Import of published pipeline folders as a cascade folder, tensor by tensor."""

from functools import partial
from pathlib import Path

from torch import Tensor

from cascade.config.folders import MANIFEST
from cascade.errors import UserError
from cascade.files import new_folder, write_bytes
from cascade.formats.deepfloyd import Pipelines, PipelineStage, one_dtype, open_weights
from cascade.formats.keys import entries, meta_tensors
from cascade.formats.weights import (
    OnTensor,
    Weights,
    encoder_weights,
    require_output,
    write_encoder,
    write_weights,
)
from cascade.tensors import Header
from cascade.text.files import EncoderFiles


def import_cascade(
    source: Pipelines,
    output: Path,
    *,
    variant: str | None = None,
    copy_text_encoder: bool = False,
    on_tensor: OnTensor | None = None,
) -> Path:
    """Write pipeline folders as a cascade folder; weights keep their type.

    Args:
        copy_text_encoder: T5-XXL takes up to 19 GB, so the manifest names the published folder by
            its absolute path unless it is to be copied.

    Returns:
        The folder, with its manifest written last; it is removed if that does not come about.
    """
    opened = [(stage, open_weights(stage, variant)) for stage in source.stages]
    copied = [weights for _, weights in opened]
    encoder = _encoder(source, needed=copy_text_encoder)
    if encoder is not None:
        read = encoder_weights(encoder)  # checked wherever it stays
        copied += [read] if copy_text_encoder else []
    require_output(output, copied)
    manifest = source.manifest
    with new_folder(output):
        if copy_text_encoder and encoder is not None:
            manifest = manifest.model_copy(update={"text_encoder": "text"})
            write_encoder(encoder, output / "text", output / "text" / encoder.vocabulary.name)
        for stage, weights in opened:
            _import_stage(stage, weights, output / stage.config.name, on_tensor)
        text = manifest.model_dump_json(indent=2) + "\n"
        write_bytes(text.encode(), output / MANIFEST)
    return output


def _encoder(source: Pipelines, *, needed: bool) -> EncoderFiles | None:
    """Open the text encoder if it is there; where a store of embeddings is used it need not be."""
    folder = Path(source.manifest.text_encoder)
    if not folder.is_dir() and not needed:
        return None
    encoder = EncoderFiles.open(folder)
    for stage in source.stages:
        width = stage.config.unet.text_width
        if width != encoder.width:
            raise UserError(
                f"{stage.folder} reads text of width {width} but the encoder in {folder} gives "
                f"{encoder.width}; use the encoder that belongs to the stages."
            )
    return encoder


def _import_stage(
    stage: PipelineStage, weights: Weights, folder: Path, on_tensor: OnTensor | None
) -> None:
    """Write a stage folder as `Stage.save` does, without ever holding the stage."""
    config = stage.config
    table = {entry.ours: entry for entry in entries(config.unet)}
    headers = {
        name: Header(one_dtype(table[name], weights), tuple(tensor.shape))
        for name, tensor in meta_tensors(config.unet).items()
    }

    def read(name: str) -> Tensor:
        return table[name].join([weights[part] for part in table[name].theirs])

    text = config.model_dump_json(indent=2)
    write_bytes((text + "\n").encode(), folder / "config.json")
    write_weights(
        folder / "model.safetensors",
        headers,
        read,
        {"config": text},
        on_tensor and partial(on_tensor, config.name),
    )
