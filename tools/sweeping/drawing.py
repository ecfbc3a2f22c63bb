"""The pictures by which a setting is judged, and how they are kept.

Shapes: `B` pictures, `C H W` pixels in [-1, 1].
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from safetensors.torch import load_file, save

from cascade.config.stage import SamplerConfig, SubjectConfig
from cascade.data.images import to_pil, write_png
from cascade.evaluate.subject import Drawn, draw_subject, subject_prompts
from cascade.files import write_bytes
from cascade.pipeline import Cascade, Pictures
from cascade.progress import progress_bar, stage_steps
from cascade.sampling import sample_stage
from comparison import SEEDS

SHOWN = (4, 2)
"""How many pictures of the subject's and of the class's prompt are kept to be looked at."""


def draw_base(
    cascade: Cascade, subject: SubjectConfig, sampler: SamplerConfig, console: Console
) -> Drawn:
    """Draw the subject's and the class's prompt with the base alone."""
    base = cascade.stages[0].config.name
    with progress_bar(console) as bar:
        return draw_subject(
            cascade,
            subject,
            SEEDS,
            stage_steps(bar, "drawing: "),
            samplers={base: sampler},
            last_stage=base,
        )


def enlarge(cascade: Cascade, subject: SubjectConfig, low: Drawn, stages: Sequence[str]) -> Drawn:
    """Go on from the base's pictures through these stages, as `Cascade.sample` does."""
    drawn = []
    for prompt, start in zip(subject_prompts(subject), (low.instance, low.of_class), strict=True):
        pictures = dict(start.stages)
        last = start.tensor
        for name in stages:
            last = sample_stage(
                cascade.stage(name),
                cascade.prompts([prompt], name),
                [prompt] * len(SEEDS),
                SEEDS,
                low_res=last,
            )
            pictures[name] = last
        drawn.append(Pictures(pictures))
    instance, of_class = drawn
    return Drawn(instance, of_class)


def kept(path: Path, stages: Sequence[str], draw: Callable[[], Drawn]) -> Drawn:
    """Pictures of these stages from a file, or drawn and written to it."""
    if path.is_file():
        tensors = load_file(path)
    else:
        drawn = draw()
        tensors = {
            f"{name} {kind}": pictures.stages[name].contiguous()
            for kind, pictures in (("instance", drawn.instance), ("class", drawn.of_class))
            for name in stages
        }
        write_bytes(save(tensors), path)
    instance, of_class = (
        Pictures({name: tensors[f"{name} {kind}"] for name in stages})
        for kind in ("instance", "class")
    )
    return Drawn(instance, of_class)


def show(drawn: Drawn, paths: Sequence[Path]) -> None:
    """Write the first pictures of both prompts, to be looked at."""
    pairs = zip((drawn.instance, drawn.of_class), SHOWN, strict=True)
    pictures = [picture for prompt, count in pairs for picture in to_pil(prompt.tensor[:count])]
    for picture, path in zip(pictures, paths, strict=True):
        write_png(picture, path)
