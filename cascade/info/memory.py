"""Memory of a cascade's stages on a device."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cascade.config.base import read_toml
from cascade.config.folders import cascade_folder, is_pipeline, read_manifest, read_stage_config
from cascade.config.memory import MemoryConfig
from cascade.config.optimizer import OptimizerConfig
from cascade.config.stage import Precision, StageConfig
from cascade.config.train import PretrainConfig, Recomputation, TrainConfig
from cascade.errors import UserError
from cascade.formats.deepfloyd import read_stage
from cascade.model.memory import sampling_bytes, training_bytes
from cascade.model.precision import convolves_bf16, in_bf16
from cascade.progress import amount, silence
from cascade.text.files import EncoderFiles
from cascade.training.distributed import ALONE
from cascade.training.footprint import held

_XXL = 4096
"""Width of T5 v1.1 XXL, the encoder of every published cascade."""


def describe_memory(path: str, plan: MemoryConfig) -> RenderableType:
    """Tabulate the memory of each stage for sampling and fine-tuning, and the text encoder's.

    Args:
        path: a cascade's folder or name, a diffusers pipeline, or a stage's or a run's TOML file;
            weights are not read and need not be there.
    """
    stages, encoder = _read(path)
    for config in stages:
        if plan.size is not None and plan.size % config.unet.factor:
            raise UserError(
                f"Stage '{config.name}' cannot work on {plan.size} pixels; give a multiple of "
                f"{config.unet.factor}."
            )
    table = Table(title=f"Memory, batch {plan.batch_size}, {plan.precision}")
    table.add_column("")
    for config in stages:
        table.add_column(config.name, justify="right")
    columns = [dict(_memory(config, plan)) for config in stages]
    for row in columns[0]:
        table.add_row(row, *(amount(column[row]) for column in columns))
    return Group(table, *_encoder_lines(encoder, stages[0]), Text(_NOT_COUNTED))


_NOT_COUNTED = (
    "Weights and gradients are float32. Activations are at their peak, as a CPU and the kernels "
    "keep them: without kernels a GPU keeps about half as much again in fine-tuning, whose totals "
    "are upper bounds. Where this is a CPU without bf16, what its convolutions write out in bf16 "
    "is counted. Not counted: other workspaces of convolutions, what allocators lose to fragments, "
    "CUDA's own context, the few pictures of a sampler."
)


def _read(path: str) -> tuple[list[StageConfig], EncoderFiles | None]:
    file = Path(path)
    if file.suffix == ".toml":
        values = read_toml(file)
        if "stage" not in values:
            return [StageConfig.parse(values, path)], None
        run = PretrainConfig.parse(values, path)
        return [run.stage], _encoder(run.text_encoder)
    if is_pipeline(file):
        return [read_stage(file).config], None
    folder = cascade_folder(path)
    manifest = read_manifest(folder)
    stages = [read_stage_config(folder / name) for name in manifest.stages]
    return stages, _encoder(folder / manifest.text_encoder)


def _encoder(folder: Path | None) -> EncoderFiles | None:
    return EncoderFiles.open(folder) if folder is not None and folder.is_dir() else None


def _memory(config: StageConfig, plan: MemoryConfig) -> Iterator[tuple[str, int]]:
    unet, tokens = config.unet, config.text.max_length
    optimizer = OptimizerConfig(name=plan.optimizer)
    run = TrainConfig(steps=1, batch_size=plan.batch_size, optimizer=optimizer)
    parts = held(config, run, ALONE)
    rows = plan.batch_size * (1 if config.sampler.guidance == 1 else 2)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision: Precision = "bf16" if in_bf16(plan.precision, device) else "fp32"
    unrolled = device.type == "cpu" and not convolves_bf16()
    sampled = sampling_bytes(
        unet, rows, plan.size or config.size, tokens, precision, unrolled=unrolled
    )
    crop = config.low_res.crop if config.low_res else None
    size = plan.size or crop or config.size
    kept, selective, full = (
        training_bytes(
            unet,
            plan.batch_size,
            size,
            tokens,
            precision,
            unrolled=unrolled,
            recomputation=recomputation,
        )
        for recomputation in get_args(Recomputation)
    )
    yield "weights", parts.weights
    yield "sampling: activations", sampled
    yield "sampling: total", parts.weights + sampled
    yield "fine-tuning: gradients", parts.gradients
    yield f"fine-tuning: {plan.optimizer}", parts.moments
    yield "fine-tuning: activations", kept
    yield "fine-tuning: total", parts.device + kept
    for name, again in (("selective", selective), ("full", full)):
        yield f"{name} checkpointing: activations", again
        yield f"{name} checkpointing: total", parts.device + again
    yield "an average of the weights adds", parts.weights


def _encoder_lines(files: EncoderFiles | None, stage: StageConfig) -> Iterator[Text]:
    if files is None and stage.unet.text_width != _XXL:
        return
    name = "T5 v1.1 XXL" if files is None else str(files.folder)
    sizes = encoder_bytes(_xxl_shapes() if files is None else files.shapes())
    modes = ", ".join(f"{mode} {amount(size)}" for mode, size in sizes.items())
    yield Text(f"Text encoder {name}, weights: {modes}. A store of embeddings needs none.")


def encoder_bytes(shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Return what an encoder's weights take in each mode (see `cascade.config.encoder`).

    Held layer by layer: the largest block and the embeddings, which lie in the file's own type,
    at most float32.
    """
    values = {name: math.prod(shape) for name, shape in shapes.items()}
    blocks: dict[str, int] = {}
    quantised = 0
    for name, shape in shapes.items():
        if not name.startswith("block."):
            continue
        block = name.split(".")[1]
        blocks[block] = blocks.get(block, 0) + values[name]
        linear = len(shape) == 2 and "relative_attention_bias" not in name
        quantised += values[name] - 2 * shape[0] if linear else 0  # a byte less; a scale per row
    total = sum(values.values())
    return {
        "float32": 4 * total,
        "bfloat16": 2 * total,
        "int8": 2 * total - quantised,
        "layerwise": 4 * (total - sum(blocks.values()) + max(blocks.values())),
    }


def _xxl_shapes() -> dict[str, torch.Size]:
    with silence():
        from transformers import T5Config, T5EncoderModel

    config = T5Config(
        d_model=_XXL,
        d_kv=64,
        d_ff=10240,
        num_layers=24,
        num_heads=64,
        vocab_size=32128,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        encoder = T5EncoderModel(config).encoder
    return {name: value.shape for name, value in encoder.state_dict().items()}
