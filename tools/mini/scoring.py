"""What the scores of a base and of a super-resolution stage have in common."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cascade.config.folders import cascade_folder, read_manifest, read_stage_config
from cascade.config.stage import SamplerConfig
from cascade.errors import UserError
from cascade.evaluate.stored import OnDone, PictureSet
from cascade.sampling import prompt_table
from cascade.stage import Stage
from cascade.text.files import EncoderFiles
from cascade.text.prompts import PromptEncoder
from cascade.text.source import ready


@dataclass(frozen=True)
class Context:
    """Where and how to work.

    Attributes:
        work: folder for what was drawn and computed, so that an interrupted score goes on.
        device: where networks compute.
        batch_size: pictures worked on at once.
        pieces: what to call after every piece of a piece of work, by that work's name.
    """

    work: Path
    device: str
    batch_size: int
    pieces: Callable[[str], OnDone]

    @property
    def pictures(self) -> Path:
        """Folder for what stages draw."""
        return self.work / "pictures"

    @property
    def features(self) -> Path:
        """Folder for what networks make of pictures."""
        return self.work / "features"


@dataclass(frozen=True)
class Scored:
    """A stage's score.

    Attributes:
        record: settings and figures, ready for JSON.
        table: the figures as Markdown.
        sheets: pictures to look at, by what comes behind their files' names.
    """

    record: Mapping[str, object]
    table: str
    sheets: Mapping[str, Image.Image]


@dataclass(frozen=True)
class Model:
    """A stage with what embeds its captions.

    Attributes:
        stage: loaded.
        encoder: loaded.
        text_digest: of the encoder's weights and vocabulary.
    """

    stage: Stage
    encoder: PromptEncoder
    text_digest: str

    def pictures(
        self,
        sampler: SamplerConfig,
        prompts: Sequence[str],
        seeds: Sequence[int],
        low_res: Tensor | None = None,
    ) -> PictureSet:
        """One picture per prompt and seed, yet to be drawn."""
        table = prompt_table(self.encoder, prompts, self.stage.config)
        return PictureSet(self.stage, sampler, table, self.text_digest, prompts, seeds, low_res)

    def described(self) -> dict[str, object]:
        """What a record says of it."""
        return {
            "name": self.stage.config.name,
            "fingerprint": self.stage.fingerprint(),
            "parameters": sum(weight.numel() for weight in self.stage.network.parameters()),
            "text encoder": self.text_digest,
        }


def open_model(
    path: str, enlarges: bool, stage: str | None, text: Path | None, device: str
) -> Model:
    """Load a stage from its own folder, or from a cascade's folder or name.

    Args:
        path: the stage's folder, the cascade's, or "mini".
        enlarges: whether it is to be a super-resolution stage.
        stage: which of a cascade's stages; the first of that kind by default.
        text: folder of the text encoder; the cascade's own, and `mini`'s for a stage's folder, by
            default.
        device: where both compute.

    Raises:
        UserError: there is no such stage, or it reads the text of another encoder.
    """
    folder = Path(path)
    if (folder / "config.json").is_file():
        encoder = text or cascade_folder("mini") / "text"
    else:
        whole = cascade_folder(path)
        manifest = read_manifest(whole)
        name = stage or _first(whole, manifest.stages, enlarges)
        if name not in manifest.stages:
            raise UserError(
                f"The cascade has no stage '{name}'; it has {', '.join(manifest.stages)}."
            )
        folder = whole / name
        encoder = text or whole / manifest.text_encoder
    config = read_stage_config(folder)
    if enlarges and config.low_res is None:
        raise UserError(f"Stage '{config.name}' is a base; score it with the command `base`.")
    if not enlarges and config.low_res is not None:
        raise UserError(
            f"Stage '{config.name}' enlarges pictures; score it with the command `enlargement`."
        )
    files = EncoderFiles.open(encoder)
    if config.unet.text_width != files.width:
        raise UserError(
            f"Stage '{config.name}' reads text of width {config.unet.text_width} but the encoder "
            f"in {encoder} writes {files.width}; give its own with --text."
        )
    loaded = Stage.load(folder, device)
    # As its images are laid out; else every call copies the weights.
    loaded.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    digest = f"{files.model_digest[:16]} {files.tokenizer_digest[:16]}"
    return Model(loaded, ready(files, device=device), digest)


def _first(cascade: Path, names: Sequence[str], enlarges: bool) -> str:
    """The first stage of a cascade that enlarges, or that does not."""
    for name in names:
        if (read_stage_config(cascade / name).low_res is not None) == enlarges:
            return name
    raise UserError(f"{cascade} has no {'super-resolution' if enlarges else 'base'} stage.")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
