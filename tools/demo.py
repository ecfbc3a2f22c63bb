"""The demonstration: personalise a cascade on a few photos and show what changed.

    python tools/demo.py                                    # a cat that ships with scikit-image
    python tools/demo.py --subject my-photos --class dog    # your own

Tunes the cascade twice, with and without prior preservation, draws both beside the untouched one,
and writes `report.html`, one page that needs no server. Started again it goes on where it was.
"""

import hashlib
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from rich.console import Console

from cascade.cli.mistakes import answer
from cascade.cli.sample import usable_device
from cascade.config.dreambooth import RECIPES, DreamBoothConfig
from cascade.config.stage import StageConfig, SubjectConfig
from cascade.data.images import Photos, read_photos, write_png
from cascade.dreambooth.personalise import personalise
from cascade.environment import environment
from cascade.errors import UserError
from cascade.evaluate.features import EfficientNetLite0, FeatureExtractor
from cascade.evaluate.judge import FOLDER, Judge
from cascade.evaluate.subject import (
    Drawn,
    Reconstruction,
    ceiling,
    draw_subject,
    reconstruct,
    score_subject,
    subject_prompts,
)
from cascade.pipeline import Cascade, Pictures, cascade_folder, read_manifest
from cascade.progress import progress_bar, stage_steps
from cascade.train.report import read_log
from demo_report import KINDS, SHOWN, Outcome, demo_report, write_pictures
from tuning import draw_in_advance, stage_configs, training_seconds

console = Console()
SEEDS = range(12)
SCENES = (
    "{subject} on the beach",
    "{subject} in the mountains",
    "{subject} on a blue background",
    "a black and white photo of {subject}",
)


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

    def config(self, prior: bool) -> DreamBoothConfig:
        """With prior preservation every stage is tuned; without, for comparison, the base."""
        recipe = RECIPES[read_manifest(cascade_folder(self.cascade)).recipe]
        base = stage_configs(self.cascade)[0].name
        return DreamBoothConfig(
            cascade=self.cascade,
            instance_data_dir=self.folder / "photos",
            output_dir=self.folder / ("with-prior" if prior else "without-prior"),
            class_noun=self.class_noun,
            class_data_dir=self.class_images,
            stages=() if prior else (base,),
            recipe=recipe if prior else recipe.model_copy(update={"prior": None}),
        )


def main(
    subject: Annotated[Path | None, typer.Option(help="Folder with 3 to 5 photos.")] = None,
    class_noun: Annotated[str | None, typer.Option("--class", help="What they show.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("runs/demo"),
    cascade: Annotated[str, typer.Option(help="The cascade to personalise.")] = "mini",
) -> None:
    """Run the whole demonstration."""
    if (subject is None) != (class_noun is None):
        raise UserError("Give both --subject (a folder of photos) and --class (what they show).")
    images = list(crops_of_a_cat()) if subject is None else list(read_photos(subject).images)
    outcome = demonstrate(prepare(images, class_noun or "cat", output, cascade))
    report = demo_report(outcome, " ".join(["python", *sys.argv]), environment())
    write_pictures(report, output / "pictures")
    report.write(output / "report.html")
    console.print(f"Open {output / 'report.html'} in a browser.")


def prepare(images: list[Image.Image], class_noun: str, output: Path, cascade: str) -> Work:
    """Keep one photo out where there are four or more, and copy the others beside the run.

    The folder is named by what it depends on, so other photos never meet an older run.
    """
    *tuned_on, last = images
    held_out = last if len(images) >= 4 else None
    digest = hashlib.sha256(f"{class_noun} {cascade}".encode())
    kept = tuned_on if held_out else images
    for image in kept:
        digest.update(image.tobytes())
    folder = output / digest.hexdigest()[:12]
    for number, image in enumerate(kept):
        write_png(image, folder / "photos" / f"{number:02d}.png")
    return Work(folder, read_photos(folder / "photos"), held_out, class_noun, cascade)


def demonstrate(work: Work) -> Outcome:
    """Tune the cascade with and without prior preservation and compare both with the untouched."""
    console.rule("class images and scenes")
    # Those that are there were drawn for another subject of the class.
    times = draw_in_advance(work.config(prior=True))
    console.rule("tuning every stage")
    tuned = Cascade.load(personalise(work.config(prior=True)), usable_device(None))
    console.rule("tuning the base without prior preservation")
    plain = Cascade.load(personalise(work.config(prior=False)), usable_device(None))
    logs = dict(run_logs(work))
    times |= {f"tuning {run}": training_seconds(log) for run, log in logs.items()}
    with timed(times, "drawing and scoring the comparison"):
        outcome = compare(
            work, (Cascade.load(work.cascade, usable_device(None)), plain, tuned), logs, times
        )
    return outcome


def run_logs(work: Work) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """The statuses of every training run, by stage."""
    for name, suffix in (("with-prior", ""), ("without-prior", " without prior preservation")):
        for stage in stage_configs(work.cascade):
            log = read_log(work.folder / name / "runs" / stage.name / "log.jsonl")
            if log:
                yield f"{stage.name}{suffix}", log


def crops_of_a_cat() -> Iterator[Image.Image]:
    """Five crops of the public-domain cat photo inside scikit-image; the last is held out."""
    from skimage.data import chelsea

    photo = Image.fromarray(chelsea())
    for left, top, side in ((0, 0, 300), (75, 0, 300), (151, 0, 300), (90, 30, 260), (40, 10, 280)):
        yield photo.crop((left, top, left + side, top + side))


@contextmanager
def timed(times: dict[str, float], name: str) -> Iterator[None]:
    """Note how many seconds the block takes, and say what it does."""
    console.rule(name)
    start = time.perf_counter()
    yield
    times[name] = time.perf_counter() - start


def compare(
    work: Work,
    cascades: tuple[Cascade, ...],
    logs: dict[str, list[dict[str, float]]],
    times: dict[str, float],
) -> Outcome:
    """Draw the same seeds with every cascade and score them."""
    frozen, _, tuned = cascades
    configs = [stage.config for stage in tuned.stages]
    subject = configs[0].subject
    assert subject is not None, "a personalised cascade records its subject"
    drawn = dict(zip(KINDS, drawings(cascades, subject), strict=True))
    extractor = EfficientNetLite0(usable_device(None))
    photos = work.photos.images
    in_scenes = scenes(tuned, subject)
    return Outcome(
        subject=subject,
        photos=photos,
        held_out=work.held_out,
        drawn=drawn,
        scenes=in_scenes,
        scene_accuracy=scene_accuracy(work.cascade, in_scenes),
        reconstructions={
            stage.name: reconstructions(work, (frozen, tuned), stage, extractor)
            for stage in configs
            if stage.low_res is not None
        },
        scores={
            stage.name: {
                kind: score_subject(pictures, drawn[KINDS[0]], photos, extractor, stage.name)
                for kind, pictures in drawn.items()
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


def drawings(cascades: tuple[Cascade, ...], subject: SubjectConfig) -> Iterator[Drawn]:
    """The subject's and the class's prompt, drawn by each cascade with the same seeds."""
    with progress_bar(console) as bar:
        for kind, cascade in zip(KINDS, cascades, strict=True):
            yield draw_subject(cascade, subject, SEEDS, stage_steps(bar, f"{kind}: "))


def scenes(cascade: Cascade, subject: SubjectConfig) -> dict[str, Pictures]:
    """The subject in a few other scenes."""
    name, _ = subject_prompts(subject)
    prompts = [scene.format(subject=name) for scene in SCENES]
    return {prompt: cascade.sample(prompt, range(SHOWN)) for prompt in prompts}


def scene_accuracy(cascade: str, drawn: Mapping[str, Pictures]) -> float | None:
    """The share of the scenes' pictures that show their place; None without a judge to tell."""
    folder = cascade_folder(cascade) / FOLDER
    if not folder.is_dir():
        return None
    judge = Judge.load(folder, usable_device(None))
    placed = {prompt: some for prompt, some in drawn.items() if "scene" in judge.stated(prompt)}
    prompts = [prompt for prompt, some in placed.items() for _ in some.tensor]
    return judge.scene_accuracy(torch.cat([some.tensor for some in placed.values()]), prompts)


if __name__ == "__main__":
    answer(lambda: typer.run(main))
