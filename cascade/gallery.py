"""Pictures of a cascade as files: one PNG per picture and stage, and a grid."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL.PngImagePlugin import PngInfo

from cascade.config.stage import AugmentationLevel, SamplerConfig
from cascade.data.images import grid, to_pil, write_png
from cascade.errors import UserError
from cascade.pipeline import Cascade
from cascade.progress import progress_bar, stage_steps


def draw_to_folder(
    cascade: Cascade,
    prompts: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    *,
    samplers: Mapping[str, SamplerConfig] | None = None,
    levels: Mapping[str, AugmentationLevel] | None = None,
    last_stage: str | None = None,
    batch_size: int = 8,
) -> Path:
    """Draw every prompt with every seed, with a progress bar.

    Writes `STAGE/PROMPT-SEED.png` with prompt and seed in the PNG's text, and `grid.png` of the
    last stage, a row per prompt. Pictures there from an earlier call are only ever replaced by the
    same prompt number and seed.

    Returns:
        The grid's path.

    Raises:
        UserError: the folder's name is taken by a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder for the pictures.")
    pairs = [(number, seed) for number in range(len(prompts)) for seed in seeds]
    with progress_bar() as bar:
        drawn = cascade.sample(
            [prompts[number] for number, _ in pairs],
            [seed for _, seed in pairs],
            samplers=samplers,
            levels=levels,
            last_stage=last_stage,
            batch_size=batch_size,
            on_step=stage_steps(bar),
        )
    for name, images in drawn.stages.items():
        for (number, seed), image in zip(pairs, to_pil(images), strict=True):
            note = PngInfo()
            note.add_itxt("prompt", prompts[number])
            note.add_text("seed", str(seed))
            write_png(image, folder / name / f"{number:02d}-{seed}.png", note)
    path = folder / "grid.png"
    write_png(grid(drawn.images, len(seeds)), path)
    return path
