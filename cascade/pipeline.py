"""`Cascade`: a text encoder and stages, from prompts to pictures.

Shapes: `B` pictures, `C H W` pixels in [-1, 1].
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image
from rich.console import Console
from rich.text import Text
from torch import Tensor

from cascade.config.stage import (
    MANIFEST,
    AugmentationLevel,
    CascadeManifest,
    SamplerConfig,
    StageConfig,
)
from cascade.data.images import to_pil
from cascade.errors import UserError
from cascade.files import read_json
from cascade.formats.deepfloyd import is_pipeline, load_stage, read_pipelines
from cascade.sampling import OnStep, prompt_table, sample_stage
from cascade.stage import Stage, read_stage_config
from cascade.text.modes import EncoderMode
from cascade.text.prompts import PromptEncoder, PromptTable
from cascade.text.source import open_text, ready

BUNDLED = ("mini",)


@dataclass(frozen=True)
class Pictures:
    """What a cascade drew: per stage, B pictures; the last stage's are the result.

    Attributes:
        stages: stage name to tensor B C H W in [-1, 1], in the cascade's order.
    """

    stages: Mapping[str, Tensor]

    @property
    def images(self) -> list[Image.Image]:
        """The last stage's pictures."""
        return to_pil(self.tensor)

    @property
    def tensor(self) -> Tensor:
        """The last stage's pictures, B C H W in [-1, 1]."""
        return list(self.stages.values())[-1]


class Cascade:
    """A text encoder and the stages that turn its embeddings into ever larger pictures."""

    def __init__(
        self, manifest: CascadeManifest, encoder: PromptEncoder, stages: Sequence[Stage]
    ) -> None:
        self.manifest = manifest
        self.encoder = encoder
        self.stages = tuple(stages)

    @classmethod
    def load(
        cls,
        path: Path | str | Sequence[Path | str],
        device: torch.device | str = "cpu",
        variant: str | None = None,
        embeddings: Path | None = None,
        encoder_mode: EncoderMode = "auto",
    ) -> "Cascade":
        """Load a cascade folder, or one that ships with the project by its name ("mini").

        The folders of DeepFloyd IF's stages, as diffusers lays them out, can be given in its
        place: `Cascade.load(["IF-I-L-v1.0", "IF-II-M-v1.0"])`. The licence is printed.

        Args:
            path: one folder, or those of a cascade's stages in any order.
            device: where the weights go.
            variant: which files of diffusers' folders, such as "fp16"; see
                `cascade.formats.weights.find_weights`.
            embeddings: a store of embeddings (`cascade embed`), which then stands in for the text
                encoder; prompts that are not in it are refused.
            encoder_mode: how the text encoder's weights are held.

        Raises:
            UserError: no such cascade, or a file in it is missing or damaged.
        """
        folders = [Path(part) for part in ([path] if isinstance(path, (str, Path)) else path)]
        loaders: list[Callable[[], Stage]]
        if len(folders) > 1 or is_pipeline(folders[0]):
            folder, source = folders[0], read_pipelines(folders)
            manifest, configs = source.manifest, [stage.config for stage in source.stages]
            loaders = [partial(load_stage, stage, device, variant) for stage in source.stages]
        elif variant is not None:
            raise UserError(
                f"{folders[0]} is no diffusers pipeline, so there is no variant '{variant}' of its "
                "weights; leave the variant out."
            )
        else:
            folder = cascade_folder(folders[0])
            manifest = read_manifest(folder)
            configs = [read_stage_config(folder / name) for name in manifest.stages]
            loaders = [partial(_load, folder / name, device) for name in manifest.stages]
        print_licence(manifest)
        text = open_text(folder / manifest.text_encoder, embeddings)
        check_chain(configs, text.width, folder)
        encoder = ready(text, encoder_mode, device)
        return cls(manifest, encoder, [load() for load in loaders])

    def stage(self, name: str) -> Stage:
        """A stage by its name.

        Raises:
            UserError: the cascade has no such stage.
        """
        for stage in self.stages:
            if stage.config.name == name:
                return stage
        known = ", ".join(stage.config.name for stage in self.stages)
        raise UserError(f"The cascade has no stage '{name}'; it has {known}.")

    def enlarged(self, size: int) -> "Cascade":
        """This cascade with its last stage used again, on its own pictures, up to `size` pixels.

        A super-resolution network without self-attention sees no more than a neighbourhood, at
        any size: Imagen trains its 256 -> 1024 stage on 64 -> 256 crops (section 2.5), and a
        64 -> 256 network runs at 256 -> 1024 as it is. Its weights stay those of the smaller scale.

        Raises:
            UserError: the last stage is no such network, or does not arrive at `size`.
        """
        stages = list(self.stages)
        while stages[-1].config.size < size:
            stages.append(_next_scale(stages[-1]))
        if stages[-1].config.size != size:
            made = ", ".join(str(stage.config.size) for stage in stages)
            raise UserError(f"This cascade makes pictures of {made} pixels; give one of these.")
        return Cascade(self.manifest, self.encoder, stages)

    def prompts(self, prompts: Sequence[str]) -> PromptTable:
        """Embed a few prompts, and the unconditional text, once."""
        return prompt_table(self.encoder, prompts, self.stages[0].config)

    def sample(
        self,
        prompts: str | Sequence[str],
        seeds: Sequence[int] | None = None,
        *,
        samplers: Mapping[str, SamplerConfig] | None = None,
        levels: Mapping[str, AugmentationLevel] | None = None,
        last_stage: str | None = None,
        batch_size: int = 8,
        on_step: OnStep | None = None,
    ) -> Pictures:
        """Draw one picture per seed.

        Args:
            prompts: one for all seeds, or one per seed.
            seeds: a picture is a function of its prompt and its seed, never of its batch;
                0, 1, 2, ... by default.
            samplers: stage name to sampler settings, where they differ from the checkpoint's.
            levels: stage name to augmentation level, where it differs from the checkpoint's.
            last_stage: stop after this stage; the last by default.
            batch_size: how many pictures are worked on at once.
            on_step: called with (stage name, network steps done, of how many) per batch and step.

        Raises:
            UserError: the numbers of prompts and seeds differ, or a stage name is unknown.
        """
        texts, numbers = _pairs(prompts, seeds)
        for name in {*(samplers or {}), *(levels or {}), *([last_stage] if last_stage else [])}:
            self.stage(name)
        table = self.prompts(texts)
        drawn: dict[str, Tensor] = {}
        low_res: Tensor | None = None
        for stage in self.stages:
            name = stage.config.name
            low_res = sample_stage(
                stage,
                table,
                texts,
                numbers,
                low_res=low_res,
                sampler=(samplers or {}).get(name),
                level=(levels or {}).get(name),
                batch_size=batch_size,
                on_step=on_step,
            )
            drawn[name] = low_res
            if name == last_stage:
                break
        return Pictures(drawn)


def check_chain(stages: Sequence[StageConfig], width: int, folder: Path) -> None:
    """Make sure that each stage enlarges the pictures of the one before, and reads text of `width`.

    Raises:
        UserError: it does not.
    """
    made: int | None = None
    for stage in stages:
        wanted = stage.low_res.size if stage.low_res else None
        if wanted != made:
            enlarges = "makes pictures from nothing" if wanted is None else f"enlarges {wanted} px"
            before = "it is the first" if made is None else f"the one before makes {made} px"
            raise UserError(
                f"In {folder} stage '{stage.name}' {enlarges} but {before}; "
                f"put the stages of {MANIFEST} in order, base first."
            )
        if stage.unet.text_width != width:
            raise UserError(
                f"In {folder} stage '{stage.name}' reads text of width {stage.unet.text_width} but "
                f"the encoder's is {width}; use the encoder that belongs to the stages."
            )
        made = stage.size


def cascade_folder(path: Path | str) -> Path:
    """The folder of a cascade given by path or by the name of one that ships with the project.

    Raises:
        UserError: there is none.
    """
    if str(path) in BUNDLED and not (Path(path) / MANIFEST).is_file():
        return Path(str(files("cascade") / "zoo" / str(path)))
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(
            f"There is no cascade at {path}; give the folder of one, or '{BUNDLED[0]}'."
        )
    return folder


def read_manifest(folder: Path) -> CascadeManifest:
    """Read a cascade folder's `cascade.json`.

    Raises:
        UserError: it is missing or damaged.
    """
    if is_pipeline(folder) and not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} is a diffusers pipeline; make a cascade of it first: cascade import "
            f"--from {folder} --output CASCADE."
        )
    if not (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} is no cascade: it has no {MANIFEST}; a run that was cut short lacks it "
            "until it is started again and ends."
        )
    return CascadeManifest.parse(read_json(folder / MANIFEST), str(folder / MANIFEST))


@cache
def print_licence(manifest: CascadeManifest) -> None:
    """Tell on the error stream, once, what a cascade's weights may be used for, if it is stated."""
    if manifest.licence:
        note = Text(f"Licence of {manifest.name}: {manifest.licence}", style="dim")
        Console(stderr=True).print(note, soft_wrap=True)


def _load(folder: Path, device: torch.device | str) -> Stage:
    """Load a stage with its weights laid out as its images are: else every call copies them."""
    stage = Stage.load(folder, device)
    stage.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return stage


def _next_scale(stage: Stage) -> Stage:
    """The same super-resolution network, one scale up."""
    config = stage.config
    if config.low_res is None or {"self", "joint"} & set(config.unet.attention):
        raise UserError(
            f"Stage '{config.name}' cannot be used again at a larger scale: only a "
            f"super-resolution stage without self-attention can; {config.size} is its size."
        )
    size = config.size * config.size // config.low_res.size
    low_res = config.low_res.model_copy(update={"size": config.size})
    name = f"{config.name.partition('-at-')[0]}-at-{size}"
    larger = config.model_copy(update={"name": name, "size": size, "low_res": low_res})
    return stage.with_network(stage.network, larger)


def _pairs(
    prompts: str | Sequence[str], seeds: Sequence[int] | None
) -> tuple[list[str], list[int]]:
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    numbers = list(range(len(texts))) if seeds is None else list(seeds)
    if len(texts) == 1:
        texts = texts * len(numbers)
    if len(texts) != len(numbers) or not texts:
        raise UserError(
            f"There are {len(texts)} prompts for {len(numbers)} seeds; give one prompt for all, "
            "or one per seed."
        )
    return texts, numbers
