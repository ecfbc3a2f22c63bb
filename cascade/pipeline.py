"""`Cascade`: a text encoder and stages, from prompts to pictures.

Shapes: `B` pictures, `C H W` pixels in [-1, 1].
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import EntryPoint
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from cascade.config.encoder import EncoderMode
from cascade.config.encoder import encoder_mode as known_mode
from cascade.config.engine import BundleOptions
from cascade.config.folders import (
    BUNDLED,
    CascadeManifest,
    cascade_folder,
    check_chain,
    is_pipeline,
    read_manifest,
    read_stage_config,
    stage_index,
)
from cascade.config.sample import SampleOptions
from cascade.config.stage import StageConfig
from cascade.data.images import to_pil
from cascade.environment import usable_device
from cascade.errors import UserError
from cascade.formats.deepfloyd import load_stage, read_pipelines
from cascade.plugins import OPENERS, opener, points
from cascade.progress import say
from cascade.request import Request, scales
from cascade.sampling import OnStep, of_size, prompt_tables, require_any_size, sample_request
from cascade.stage import Stage
from cascade.text.files import EncoderFiles
from cascade.text.prompts import PromptEncoder, PromptTable, load_text, open_text
from cascade.text.store import EmbeddingStore


@dataclass(frozen=True)
class CascadeOutput:
    """Images of a cascade: B per stage; the last stage's are the result.

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
        device: torch.device | str | None = "cpu",
        variant: str | None = None,
        embeddings: Path | str | None = None,
        encoder_mode: EncoderMode = "auto",
        engines: BundleOptions | None = None,
    ) -> "Cascade":
        """Load a cascade folder, one that ships with the project by its name ("mini"), or a bundle.

        The folders of DeepFloyd IF's stages, as diffusers lays them out, can be given in its
        place: `Cascade.load(["IF-I-L-v1.0", "IF-II-M-v1.0"])`. The licence is logged.

        Args:
            path: one folder, or those of a cascade's stages in any order.
            device: where the weights go, or engines run; None is the GPU where there is one.
            variant: which files of diffusers' folders, such as "fp16"; see
                `cascade.formats.weights.find_weights`.
            embeddings: a store of embeddings (`cascade embed`), which then stands in for the text
                encoder; prompts that are not in it are refused.
            encoder_mode: how the text encoder's weights are held.
            engines: how a bundle's engines run, and which fine-tune of it is drawn from.

        Raises:
            UserError: no such cascade or device, or a file in it is missing or damaged.
        """
        point = _plugin(path, engines)
        if point is not None:
            opened: Cascade = point.load()(path, device, embeddings, encoder_mode, engines)
            return opened
        return Opened.at(path, variant, embeddings).load(device, encoder_mode)

    def stage(self, name: str) -> Stage:
        """Return a stage by its name.

        Raises:
            UserError: the cascade has no such stage.
        """
        return self.stages[stage_index(name, self.configs)]

    @property
    def configs(self) -> list[StageConfig]:
        """What its stages are, base first."""
        return [stage.config for stage in self.stages]

    def upscaled_to(self, size: int) -> "Cascade":
        """Return this cascade with its last stage applied to its own images up to `size` pixels.

        A super-resolution network without self-attention sees no more than a neighbourhood, at
        any size: Imagen trains its 256 -> 1024 stage on 64 -> 256 crops (section 2.5), and a
        64 -> 256 network runs at 256 -> 1024 as it is. Its weights stay those of the smaller scale.

        Raises:
            UserError: the last stage is no such network, or does not arrive at `size`.
        """
        known, last = len(self.stages), self.stages[-1]
        larger = scales(self.configs, size)[known:]
        if larger:
            require_any_size([last], "size")
        again = [Stage(config, last.denoiser.network) for config in larger]
        return Cascade(self.manifest, self.encoder, [*self.stages, *again])

    def prompts(self, prompts: Sequence[str], stage: str | None = None) -> PromptTable:
        """Embed a few prompts, and the unconditional text, for one stage; the base by default."""
        config = self.stages[0].config if stage is None else self.stage(stage).config
        return PromptTable.build(self.encoder, prompts, config.text)

    def sample(
        self,
        prompts: str | Sequence[str],
        seeds: Iterable[int] | None = None,
        *,
        num_images: int | None = None,
        options: SampleOptions | None = None,
        on_step: OnStep | None = None,
        **changes: Any,
    ) -> CascadeOutput:
        """Sample one image per seed.

        Args:
            prompts: one for all seeds, or one per seed.
            seeds: a picture is a function of its prompt, its seed and its settings; what is drawn
                beside it moves roundings alone. 0, 1, 2, ... by default.
            num_images: pictures of each prompt, with seeds 0, 1, 2, ...; in place of seeds.
            options: what differs from the checkpoints' settings.
            on_step: called with (stage name, network steps done, of how many) per batch and step.
            changes: fields of `SampleOptions` by name, beside or in place of `options`:
                `steps=20, guidance=3.0`.

        Raises:
            UserError: the numbers of prompts and seeds differ, a stage name is unknown, or a value
                is of another kind or out of range.
        """
        asked = (options or SampleOptions()).changed("what is asked", changes)
        request = Request.of(self.configs, prompts, seeds, asked, num_images)
        parts = [images.stages for _, images in self.sample_batches(request, on_step=on_step)]
        return CascadeOutput({name: torch.cat([part[name] for part in parts]) for name in parts[0]})

    def sample_batches(
        self,
        request: Request,
        batches: Sequence[range] | None = None,
        on_step: OnStep | None = None,
    ) -> Iterator[tuple[range, CascadeOutput]]:
        """Sample batch by batch, each through all stages: what is done can be kept at once.

        Args:
            request: what is sampled.
            batches: those of `request.batches()` that are wanted; all by default.
            on_step: as in `sample`.
        """
        wanted = request.batches() if batches is None else batches
        stages = of_size(self.stages, request.size)
        negatives = [text for text in request.negatives if text is not None]
        texts = [*request.prompts, *negatives]
        tables = prompt_tables(self.encoder, texts, self.configs)
        for rows, images in sample_request(stages, tables, request, wanted, on_step):
            yield rows, CascadeOutput(images)


@dataclass(frozen=True)
class Opened:
    """A cascade on disk: its settings are read and checked, its weights are not loaded yet.

    Attributes:
        manifest: what the cascade is.
        configs: its stages, base first.
        text: where its text comes from.
        loaders: load the stages onto a device.
    """

    manifest: CascadeManifest
    configs: list[StageConfig]
    text: EncoderFiles | EmbeddingStore
    loaders: list[Callable[[str], Stage]]

    @classmethod
    def at(
        cls,
        path: Path | str | Sequence[Path | str],
        variant: str | None = None,
        embeddings: Path | str | None = None,
    ) -> "Opened":
        """Open what `Cascade.load` loads; the arguments are as there.

        Raises:
            UserError: no such cascade, or its settings are missing or damaged.
        """
        folders = _folders(path)
        loaders: list[Callable[[str], Stage]]
        if len(folders) > 1 or is_pipeline(folders[0]):
            folder, source = folders[0], read_pipelines(folders)
            manifest, configs = source.manifest, [stage.config for stage in source.stages]
            loaders = [partial(load_stage, stage, variant=variant) for stage in source.stages]
        elif variant is not None:
            raise UserError(
                f"{folders[0]} is no diffusers pipeline, so there is no variant '{variant}' of its "
                "weights; leave the variant out."
            )
        else:
            folder = cascade_folder(folders[0])
            manifest = read_manifest(folder)
            configs = [read_stage_config(folder / name) for name in manifest.stages]
            loaders = [partial(_load, folder / name) for name in manifest.stages]
        print_licence(manifest)
        if not isinstance(embeddings, (Path, str, NoneType)):
            raise UserError(f"embeddings are {embeddings!r}; give the folder of a store.")
        store = None if embeddings is None else Path(embeddings)
        text = open_text(folder / manifest.text_encoder, store)
        check_chain(configs, text.width, folder)
        return cls(manifest, configs, text, loaders)

    def load(
        self, device: torch.device | str | None = "cpu", encoder_mode: EncoderMode = "auto"
    ) -> Cascade:
        """Load the weights.

        Raises:
            UserError: there is no such device or mode, or a file is missing or damaged.
        """
        where = usable_device(device)
        encoder = load_text(self.text, known_mode(encoder_mode), where)
        return Cascade(self.manifest, encoder, [load(where) for load in self.loaders])


@cache
def print_licence(manifest: CascadeManifest) -> None:
    """Log, once, what a cascade's weights may be used for, if it is stated."""
    if manifest.licence:
        say(f"Licence of {manifest.name}: {manifest.licence}")


def _plugin(path: object, engines: BundleOptions | None) -> EntryPoint | None:
    """Return the plugin that opens a folder: a bundle's package."""
    if not isinstance(path, (str, Path)):
        return None
    if engines is None:
        return opener(Path(path))
    # Where no file says who opens it, the first one says why it is no bundle.
    point = opener(Path(path)) or next(iter(points(OPENERS).values()), None)
    if point is None:
        raise UserError("Nothing here opens bundles; install dreamcascade with cascade_export.")
    return point


def _folders(path: object) -> list[Path]:
    """Return the folders that are given as a cascade."""
    parts = [path] if isinstance(path, (str, Path)) else path
    if not isinstance(parts, Sequence) or not parts:
        raise UserError(f"A cascade is a folder, not {path!r}; give its path, or '{BUNDLED[0]}'.")
    for part in parts:
        if not isinstance(part, (str, Path)) or not str(part):
            raise UserError(f"A cascade is a folder, not {part!r}; give its path.")
    return [Path(part) for part in parts]


def _load(folder: Path, device: str) -> Stage:
    """Load a stage with its weights laid out as its images are: else every call copies them."""
    stage = Stage.load(folder, device)
    stage.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return stage
