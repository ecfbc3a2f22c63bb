"""A cascade with LoRA files merged into its stages."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.formats.lora import read_lora
from cascade.model.adapters import adapt
from cascade.pipeline import Cascade
from cascade.stage import Stage, meta_network
from cascade.tensors import require_finite


def lora_files(values: Sequence[str], stages: Sequence[StageConfig]) -> dict[str, list[Path]]:
    """Sort LoRA files by the stage that they belong to.

    Args:
        values: `FILE`, which is the base's, or `STAGE=FILE`.

    Raises:
        UserError: a file is not there.
    """
    names = [stage.name for stage in stages]
    found: dict[str, list[Path]] = {}
    for value in values:
        stage, separator, file = value.partition("=")
        named = bool(separator) and stage in names
        path = Path(file if named else value)
        if not path.is_file():
            raise UserError(
                f"There is no LoRA file {path}; give FILE for stage '{names[0]}', or STAGE=FILE "
                f"with one of {', '.join(names)}."
            )
        found.setdefault(stage if named else names[0], []).append(path)
    return found


def with_lora(
    cascade: Cascade,
    files: Mapping[str, Sequence[Path]],
    scale: float = 1.0,
    unet_only: bool = False,
) -> Cascade:
    """Return the cascade with LoRA files merged; it stays as it is.

    Args:
        unet_only: leave out what they change of the text encoder.

    Raises:
        UserError: a file is damaged or does not fit its stage.
    """
    if not math.isfinite(scale):
        raise UserError(f"The scale of a LoRA cannot be {scale}; 1 adds it as it was trained.")
    if not files:
        return cascade
    stages = [
        _merged(stage, files.get(stage.config.name, ()), scale, unet_only)
        for stage in cascade.stages
    ]
    return Cascade(cascade.manifest, cascade.encoder, stages)


def _merged(stage: Stage, files: Sequence[Path], scale: float, unet_only: bool) -> Stage:
    if not files:
        return stage
    network = meta_network(stage.config)
    network.load_state_dict(stage.network.state_dict(), assign=True)
    for path in files:
        for layer, adapter in read_lora(path, network, stage.config.unet, scale, unet_only):
            adapt(network, layer, adapter)
    merged = stage.with_network(network.eval()).merged()
    # Sums may overflow where neither summand does.
    told = f"the network with {', '.join(map(str, files))} merged"
    require_finite(merged.network.state_dict(), told)
    return merged
