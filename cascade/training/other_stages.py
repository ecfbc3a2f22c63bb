"""The stages of a cascade that stand before and behind the one in training."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cascade.config.folders import cascade_folder, read_manifest, read_stage_config
from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.stage import check_weights
from cascade.text.files import EncoderFiles
from cascade.text.store import EmbeddingStore


@dataclass(frozen=True)
class OtherStages:
    """What completes a stage in training to a cascade.

    Attributes:
        earlier: folders of the stages that make what it enlarges, base first; none of a base.
        later: those that enlarge what it makes.
    """

    earlier: dict[Path, StageConfig]
    later: dict[Path, StageConfig]

    @property
    def configs(self) -> list[StageConfig]:
        """All of them."""
        return [*self.earlier.values(), *self.later.values()]


def other_stages(folders: Iterable[tuple[Path, StageConfig]], stage: StageConfig) -> OtherStages:
    """Sort a cascade's stages, base first, by which side of a stage they stand on.

    One as large as it, whose place it takes, is left out.
    """
    given = 0 if stage.low_res is None else stage.low_res.size
    stages = dict(folders)
    return OtherStages(
        {folder: one for folder, one in stages.items() if one.size <= given},
        {
            folder: one
            for folder, one in stages.items()
            if one.low_res is not None and one.low_res.size >= stage.size
        },
    )


def open_others(
    cascade: str, stage: StageConfig, text: EncoderFiles | EmbeddingStore
) -> OtherStages:
    """Read the other stages of a cascade's folder, and check that they fit.

    Args:
        text: of the run, by which they must have been trained too.

    Raises:
        UserError: it is no cascade, or a size, the text encoder or the text's conventions differ.
    """
    folder = cascade_folder(cascade)
    manifest = read_manifest(folder)
    named = [(folder / name, read_stage_config(folder / name)) for name in manifest.stages]
    others = other_stages(named, stage)
    _check_sizes(others, stage, folder)
    for place, one in (others.earlier | others.later).items():
        if one.unet.text_width != text.width:
            raise UserError(
                f"Stage '{one.name}' of {folder} reads text of width {one.unet.text_width}, and "
                f"that of this run is {text.width} wide; name a cascade of the same text encoder."
            )
        if isinstance(text, EmbeddingStore):
            text.check_text(one.text)
        check_weights(place, one)
    if (folder / manifest.text_encoder).is_dir():  # else there is nothing to compare with
        _check_encoder(EncoderFiles.open(folder / manifest.text_encoder), text)
    return others


def _check_sizes(others: OtherStages, stage: StageConfig, folder: Path) -> None:
    made: int | None = None
    for one in (*others.earlier.values(), stage, *others.later.values()):
        wanted = None if one.low_res is None else one.low_res.size
        if wanted != made:
            makes = (
                "none makes what it enlarges" if made is None else f"the one before makes {made}"
            )
            raise UserError(
                f"The stages of {folder} do not complete '{stage.name}': '{one.name}' enlarges "
                f"{wanted} pixels and {makes}; name a cascade that fits, or leave it out."
            )
        made = one.size
    if not others.configs:
        raise UserError(
            f"{folder} has no stage that enlarges the {stage.size} pixels of '{stage.name}'; name "
            "a cascade that has, or leave it out."
        )


def _check_encoder(files: EncoderFiles, text: EncoderFiles | EmbeddingStore) -> None:
    if isinstance(text, EmbeddingStore):
        text.check_encoder(files)
        return
    same = files.model_digest == text.model_digest
    if not same or files.tokenizer_digest != text.tokenizer_digest:
        raise UserError(
            f"The text encoder in {files.folder} is another one than that in {text.folder}; name a "
            "cascade of the same text encoder."
        )
