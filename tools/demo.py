"""The demonstration: personalise a cascade on a few photos and show what changed.

    python tools/demo.py                                    # a cat that ships with scikit-image
    python tools/demo.py --subject my-photos --class dog    # your own

Tunes the cascade as its recipe says, and its base without prior preservation and without masks;
draws all beside the untouched one, and writes `report.html`, one page that needs no server. Started
again it goes on where it was.
"""

import hashlib
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console

from cascade.cli.mistakes import answer
from cascade.cli.sample import usable_device
from cascade.config.dreambooth import RECIPES, DreamBoothConfig, Recipe
from cascade.config.stage import StageConfig, SubjectConfig
from cascade.data.images import Photos, read_image, read_photos, write_png
from cascade.data.saliency import U2NetP
from cascade.dreambooth.masks import mask_beside
from cascade.dreambooth.personalise import SHEET, personalise
from cascade.environment import environment
from cascade.errors import UserError
from cascade.evaluate.features import EfficientNetLite0, FeatureExtractor
from cascade.evaluate.subject import (
    Drawn,
    Reconstruction,
    ceiling,
    draw_subject,
    reconstruct,
    score_subject,
    subject_prompts,
)
from cascade.files import write_bytes
from cascade.pipeline import Cascade, cascade_folder, read_manifest
from cascade.progress import progress_bar, stage_steps
from cascade.train.report import read_log
from demo_elsewhere import accuracy, elsewhere, likeness
from demo_report import (
    AFTER,
    BEFORE,
    KINDS,
    NO_MASKS,
    NO_PRIOR,
    Outcome,
    demo_report,
    write_pictures,
)
from tuning import draw_in_advance, stage_configs, training_seconds

console = Console()
SEEDS = range(8)


@dataclass(frozen=True)
class Work:
    """One demonstration: its folder, its photos and where its class images are kept."""

    folder: Path
    photos: Photos
    held_out: Image.Image | None
    class_noun: str
    cascade: str

    @property
    def class_images(self) -> Path:
        """The class images' folder, which subjects share."""
        return self.folder.parent / "class-images"

    def config(self, kind: str) -> DreamBoothConfig:
        """How a kind of `KINDS` is tuned: every stage, or for comparison the base alone."""
        base = stage_configs(self.cascade)[0].name
        less = {NO_PRIOR: {"prior": None}, NO_MASKS: {"masks": None}}
        return DreamBoothConfig(
            cascade=self.cascade,
            instance_data_dir=self.folder / "photos",
            output_dir=self.folder / kind.replace(" ", "-"),
            class_noun=self.class_noun,
            class_data_dir=self.class_images,
            stages=() if kind == AFTER else (base,),
            recipe=self.recipe.model_copy(update=less.get(kind, {})),
        )

    @property
    def recipe(self) -> Recipe:
        """The cascade's own."""
        return RECIPES[read_manifest(cascade_folder(self.cascade)).recipe]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds that are tuned: a recipe without masks has nothing to leave out there."""
        return tuple(kind for kind in KINDS[1:] if kind != NO_MASKS or self.recipe.masks)


def main(
    subject: Annotated[Path | None, typer.Option(help="Folder with 3 to 5 photos.")] = None,
    class_noun: Annotated[str | None, typer.Option("--class", help="What they show.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("runs/demo"),
    cascade: Annotated[str, typer.Option(help="The cascade to personalise.")] = "mini",
) -> None:
    """Run the whole demonstration."""
    if (subject is None) != (class_noun is None):
        raise UserError("Give both --subject (a folder of photos) and --class (what they show).")
    photos = read_photos(views_of_a_cat(output / "chelsea") if subject is None else subject)
    outcome = demonstrate(prepare(photos, class_noun or "cat", output, cascade))
    report = demo_report(outcome, " ".join(["python", *sys.argv]), environment())
    write_pictures(report, output / "pictures")
    report.write(output / "report.html")
    console.print(f"Open {output / 'report.html'} in a browser.")


def prepare(photos: Photos, class_noun: str, output: Path, cascade: str) -> Work:
    """Keep one photo out where there are four or more, and copy the others beside the run.

    The folder is named by what it depends on, so other photos never meet an older run.
    """
    held_out = photos.images[-1] if len(photos.paths) >= 4 else None
    kept = photos.paths[:-1] if held_out else photos.paths
    # As they are: their transparency, and the masks beside them, say where the subject is.
    files = [file for photo in kept for file in (photo, mask_beside(photo)) if file.is_file()]
    digest = hashlib.sha256(f"{class_noun} {cascade}".encode())
    for file in files:
        digest.update(file.read_bytes())
    folder = output / digest.hexdigest()[:12]
    for file in files:
        write_bytes(file.read_bytes(), folder / "photos" / file.name)
    return Work(folder, read_photos(folder / "photos"), held_out, class_noun, cascade)


def demonstrate(work: Work) -> Outcome:
    """Tune the cascade as its recipe says and less, and compare all with the untouched one."""
    console.rule("class images and scenes")
    # Those that are there were drawn for another subject of the class.
    times = draw_in_advance(work.config(AFTER))
    cascades = {BEFORE: Cascade.load(work.cascade, usable_device(None))}
    for kind in work.kinds:
        console.rule(f"tuning: {kind}")
        cascades[kind] = Cascade.load(personalise(work.config(kind)), usable_device(None))
    logs = dict(run_logs(work))
    times |= {f"tuning {run}": training_seconds(log) for run, log in logs.items()}
    with timed(times, "drawing and scoring the comparison"):
        return compare(work, cascades, logs, times)


def run_logs(work: Work) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """The statuses of every training run, by stage."""
    for kind in work.kinds:
        for stage in stage_configs(work.cascade):
            log = read_log(work.config(kind).output_dir / "runs" / stage.name / "log.jsonl")
            if log:
                yield stage.name if kind == AFTER else f"{stage.name} {kind}", log


def views_of_a_cat(folder: Path) -> Path:
    """Write crops of the CC0 photo of a cat inside scikit-image; the last will be held out."""
    from skimage.data import chelsea

    photo = Image.fromarray(chelsea())
    boxes = ((0, 0, 451, 300), (30, 0, 451, 300), (0, 0, 421, 300), (15, 10, 440, 300))
    for number, box in enumerate(boxes):
        write_png(photo.crop(box), folder / f"{number}.png")
    return folder


@contextmanager
def timed(times: dict[str, float], name: str) -> Iterator[None]:
    """Note how many seconds the block takes, and say what it does."""
    console.rule(name)
    start = time.perf_counter()
    yield
    times[name] = time.perf_counter() - start


def compare(
    work: Work,
    cascades: Mapping[str, Cascade],
    logs: dict[str, list[dict[str, float]]],
    times: dict[str, float],
) -> Outcome:
    """Draw the same seeds with every cascade and score them."""
    frozen, tuned = cascades[BEFORE], cascades[AFTER]
    configs = [stage.config for stage in tuned.stages]
    subject = configs[0].subject
    assert subject is not None, "a personalised cascade records its subject"
    drawn = dict(drawings(cascades, subject))
    extractor = EfficientNetLite0(usable_device(None))
    photos = work.photos.images
    find_mask = U2NetP() if work.recipe.masks else None
    pictures = elsewhere(cascades, subject, console)
    return Outcome(
        subject=subject,
        photos=photos,
        held_out=work.held_out,
        drawn=drawn,
        masks=read_image(work.config(AFTER).output_dir / SHEET) if work.recipe.masks else None,
        elsewhere=pictures,
        accuracy=accuracy(work.cascade, pictures),
        likeness=likeness(pictures, photos, extractor, find_mask) if find_mask else {},
        reconstructions={
            stage.name: reconstructions(work, (frozen, tuned), stage, extractor)
            for stage in configs
            if stage.low_res is not None
        },
        scores={
            stage.name: {
                kind: score_subject(shown, drawn[BEFORE], photos, extractor, stage.name)
                for kind, shown in drawn.items()
            }
            for stage in configs
        },
        ceilings={stage.name: ceiling(photos, extractor, stage.size) for stage in configs},
        logs=logs,
        times=times,
    )


def reconstructions(
    work: Work, cascades: tuple[Cascade, Cascade], stage: StageConfig, extractor: FeatureExtractor
) -> tuple[Reconstruction, Reconstruction]:
    """One photo enlarged by the untuned and by the tuned super-resolution stage."""
    subject = cascades[1].stages[0].config.subject
    assert subject is not None, "a personalised cascade records its subject"
    shown = [work.held_out or work.photos.images[0]]
    of_subject, of_class = subject_prompts(subject)
    untuned, tuned = (
        reconstruct(cascade, stage.name, shown, prompt, extractor)
        for cascade, prompt in zip(cascades, (of_class, of_subject), strict=True)
    )
    return untuned, tuned


def drawings(
    cascades: Mapping[str, Cascade], subject: SubjectConfig
) -> Iterator[tuple[str, Drawn]]:
    """The subject's and the class's prompt, drawn by each cascade with the same seeds."""
    with progress_bar(console) as bar:
        for kind, cascade in cascades.items():
            yield kind, draw_subject(cascade, subject, SEEDS, stage_steps(bar, f"{kind}: "))


if __name__ == "__main__":
    answer(lambda: typer.run(main))
