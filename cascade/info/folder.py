"""The contents of a cascade's folder, and whether it is whole."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cascade.config.folders import (
    MANIFEST,
    cascade_folder,
    check_chain,
    read_manifest,
    read_stage_config,
)
from cascade.config.stage import AugmentationLevel, SamplerConfig, StageConfig
from cascade.errors import UserError
from cascade.progress import amount
from cascade.stage import check_weights
from cascade.tensors import weight_shapes
from cascade.text.encoder import meta_model
from cascade.text.files import EncoderFiles


@dataclass(frozen=True)
class Description:
    """The contents of a cascade's folder.

    Attributes:
        name: the cascade's.
        folder: where it lies.
        licence: of the weights; empty where none is stated.
        written: when its manifest was, ISO 8601.
        disk: bytes of its stages, and of its text encoder.
        text_encoder: the encoder's folder and width.
        stages: each stage's properties by name, base first, in words.
        subjects: prompts that name what it was personalised on.
        faults: why it is not whole, a sentence each.
    """

    name: str
    folder: str
    licence: str
    written: str
    disk: int
    text_encoder: str
    stages: dict[str, dict[str, str]]
    subjects: tuple[str, ...]
    faults: tuple[str, ...]

    def json(self) -> str:
        """Return the same for programs."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False)

    def table(self) -> RenderableType:
        """Return a table of the stages, and notes on the whole."""
        table = Table(title=f"Cascade {self.name} ({self.folder})")
        table.add_column("")
        for stage in self.stages:
            table.add_column(stage)
        columns = list(self.stages.values())
        for row in dict.fromkeys(name for column in columns for name in column):
            table.add_row(row, *(column.get(row, "-") for column in columns))
        lines = [
            f"Text encoder: {self.text_encoder}",
            f"On disk: {amount(self.disk)}, written {self.written}",
            *(f'Subject, to be drawn with: --prompt "{prompt}"' for prompt in self.subjects),
            f"Licence: {self.licence or 'not stated'}",
        ]
        return Group(table, *map(Text, lines))


def describe(path: str) -> Description:
    """Read what a cascade's folder says, and compare it with its files; weights are not read."""
    folder = cascade_folder(path)
    manifest = read_manifest(folder)
    faults: list[str] = []
    configs: list[StageConfig] = []
    stages: dict[str, dict[str, str]] = {}
    for name in manifest.stages:
        with _noted(faults):
            config = read_stage_config(folder / name)
            configs.append(config)
            stages[name] = dict(_properties(config, manifest.licence))
            check_weights(folder / name, config)
            stages[name]["parameters"] = f"{count_parameters(folder / name) / 1e6:.2f} M"
    encoder = folder / manifest.text_encoder
    width, told = None, f"none at {encoder}; give a store of embeddings with --embeddings"
    if encoder.is_dir():
        told = str(encoder)
        with _noted(faults):
            files = EncoderFiles.open(encoder)
            meta_model(files)
            width = files.width
    if len(configs) == len(manifest.stages):
        with _noted(faults):
            check_chain(configs, width or configs[0].unet.text_width, folder)
    subjects = (
        f"a {one.identifier} {one.class_noun}"
        for one in chain.from_iterable(config.subjects for config in configs)
    )
    places = [*(folder / name for name in manifest.stages), folder / "text"]
    return Description(
        name=manifest.name,
        folder=str(folder),
        licence=manifest.licence,
        written=_written(folder / MANIFEST),
        disk=sum(map(_size, places)),
        text_encoder=told,
        stages=stages,
        subjects=tuple(dict.fromkeys(subjects)),
        faults=tuple(dict.fromkeys(faults)),
    )


@contextmanager
def _noted(faults: list[str]) -> Iterator[None]:
    """Go on after what is not whole, and keep what is to be said of it."""
    try:
        yield
    except UserError as error:
        faults.append(str(error))


def _written(file: Path) -> str:
    return datetime.fromtimestamp(file.stat().st_mtime).astimezone().isoformat(" ", "minutes")


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def count_parameters(folder: Path) -> int:
    """Count the values of a stage's weights, by the file's header."""
    return sum(math.prod(shape) for shape in weight_shapes(folder / "model.safetensors").values())


def _properties(config: StageConfig, licence: str) -> Iterator[tuple[str, str]]:
    yield "makes", f"{config.size} x {config.size}"
    yield "parameters", "?"  # until they are counted
    yield "predicts", config.diffusion.prediction
    yield "schedule", config.diffusion.schedule
    yield "learned variance", "yes" if config.unet.learned_variance else "no"
    yield "sampler", _sampler(config.sampler)
    yield "text", f"{config.text.max_length} tokens, cleaning {config.text.cleaning}"
    yield "null text", config.text.null
    yield "resize kernel", config.resize
    if config.low_res is not None:
        low, high = (_level(level) for level in config.low_res.training_levels)
        yield "enlarges", f"{config.low_res.size} x {config.low_res.size}"
        yield "noise added", f"at {config.low_res.noise_at} resolution"
        yield "augmentation, trained", low if low == high else f"{low} to {high}"
        yield "augmentation, sampling", _level(config.low_res.sampling_level)
    if config.licence and config.licence != licence:
        yield "licence", config.licence


def _sampler(sampler: SamplerConfig) -> str:
    return f"{sampler.name}, {sampler.count} steps, guidance {sampler.guidance:g}"


def _level(level: AugmentationLevel) -> str:
    if level.unit == "time":
        return f"time {level.value:g}"
    return f"variance {level.value:g} ({noise_in_grey_levels(level.value):.1f} grey levels)"


def noise_in_grey_levels(variance: float) -> float:
    """Return the standard deviation of variance-preserving noise in 8-bit gray levels."""
    return math.sqrt(variance) * 255.0 / 2.0
