"""The demonstration's page: what was measured, as pictures, curves and a table."""

import re
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from PIL import Image

from cascade.evaluate.grid import image_grid
from cascade.evaluate.report import Figure, Report, Section, Table, loss_curves
from cascade.evaluate.subject import photos_at
from cascade.files import write_bytes
from cascade.pipeline import Pictures
from comparison import Outcome
from kinds import AFTER, BEFORE, NO_PRIOR
from tables import percent

SHOWN = 6
# A whole multiple of every usual stage's pictures, which are then shown pixel by pixel.
CELL = 256


def demo_report(outcome: Outcome, command: str, environment: Mapping[str, str]) -> Report:
    """Lay the outcome out as one page."""
    noun = outcome.subject.class_noun
    last = list(outcome.scores)[-1]
    before, after = (outcome.scores[last][kind].similarity for kind in (BEFORE, AFTER))
    return Report(
        title=f"A cascade that knows this {noun}",
        summary=(
            f"{len(outcome.photos)} photos taught the cascade that "
            f"“{outcome.subject.identifier}” means this {noun}: similarity to the photos went from "
            f"{before:.2f} to {after:.2f} (photos among themselves: {outcome.ceilings[last]:.2f}, "
            f"{percent(outcome.of_the_way(last))} of the way)."
        ),
        command=command,
        environment=environment,
        sections=[
            _photos(outcome),
            _before_and_after(outcome),
            _elsewhere(outcome),
            _class(outcome),
            *(_super_resolution(outcome, stage) for stage in outcome.reconstructions),
            _figures(outcome),
            _curves(outcome),
        ],
    )


def write_pictures(report: Report, folder: Path) -> None:
    """Write the report's pictures as JPEG files named after their sections."""
    for section in report.sections:
        name = re.sub("[^a-z0-9]+", "-", section.title.lower()).strip("-")
        for number, figure in enumerate(section.figures, start=1):
            if isinstance(figure.content, Image.Image):
                ending = "" if number == 1 else f"-{number}"
                buffer = BytesIO()
                figure.content.convert("RGB").save(buffer, "JPEG", quality=88, optimize=True)
                write_bytes(buffer.getvalue(), folder / f"{name}{ending}.jpg")


def _photos(outcome: Outcome) -> Section:
    grid = image_grid([list(photos_at(outcome.photos, CELL))], cell=CELL)
    figures = [Figure(grid, "What the cascade was tuned on.")]
    if outcome.masks is not None:
        found = "Each photo, the mask that was found, and what it cuts out."
        figures.append(Figure(outcome.masks, found))
    return Section("The photos", figures=figures)


def _rows(pictures: Mapping[str, Pictures]) -> Image.Image:
    return image_grid(
        [list(drawn.tensor[:SHOWN]) for drawn in pictures.values()],
        row_labels=list(pictures),
        cell=CELL,
    )


def _before_and_after(outcome: Outcome) -> Section:
    prompt, _ = outcome.prompts
    drawn = {kind: pair.instance for kind, pair in outcome.drawn.items()}
    caption = f"“{prompt}”. Each column is one seed, drawn by each cascade."
    steps = ", ".join(f"{name} {log[-1]['step']:.0f}" for name, log in outcome.logs.items())
    text = f"Steps of training: {steps}."
    return Section("The subject, before and after", text, [Figure(_rows(drawn), caption)])


def _class(outcome: Outcome) -> Section:
    _, prompt = outcome.prompts
    compared = (BEFORE, NO_PRIOR, AFTER)
    drawn = {kind: pair.of_class for kind, pair in outcome.drawn.items() if kind in compared}
    text = (
        f"Tuned on few photos, a network forgets that there are others: “{prompt}” becomes the "
        "subject. Prior preservation trains on what the untouched cascade draws for the class, "
        "beside the photos, so that the class stays what it was."
    )
    caption = f"“{prompt}”, without the identifier, same seeds as above."
    return Section(
        "The class, with and without prior preservation", text, [Figure(_rows(drawn), caption)]
    )


def _elsewhere(outcome: Outcome) -> Section:
    columns = {
        kind: len(next(iter(drawn.values())).tensor) for kind, drawn in outcome.elsewhere.items()
    }
    prompts = list(next(iter(outcome.elsewhere.values())))
    grid = image_grid(
        [[one for drawn in outcome.elsewhere.values() for one in drawn[p].tensor] for p in prompts],
        row_labels=prompts,
        column_labels=[kind for kind, count in columns.items() for _ in range(count)],
        cell=CELL,
    )
    caption = "Prompts that name the subject and something the photos do not show."
    names = list(dict.fromkeys(name for found in outcome.accuracy.values() for name in found))
    rows: list[list[str | float]] = [
        [
            kind,
            *(percent(100 * found[name] if name in found else None) for name in names),
            percent(outcome.likeness.get(kind)),
        ]
        for kind, found in outcome.accuracy.items()
    ]
    note = (
        "Share of these pictures in which the judge finds what their prompt states; and, of those "
        "in places, how far the subject alone, cut out of the base's, came from the untouched "
        "cascade's to the photos'."
    )
    tables = [Table(["cascade", *names, "likeness"], rows, note)] if rows else []
    return Section("The subject elsewhere", figures=[Figure(grid, caption)], tables=tables)


def _super_resolution(outcome: Outcome, stage: str) -> Section:
    untuned, tuned = outcome.reconstructions[stage]
    size, low_size = tuned.pictures.shape[-1], tuned.low_res.shape[-1]
    photo = photos_at([outcome.shown_photo], size)[0]
    grid = image_grid(
        [[tuned.low_res[0], untuned.pictures[0], tuned.pictures[0], photo]],
        column_labels=[f"low resolution, {low_size} px", "untuned", "tuned", f"photo, {size} px"],
        cell=2 * CELL,  # larger than elsewhere: detail is the point
    )
    which = "a photo kept out of the tuning" if outcome.held_out else "a photo tuned on"
    table = Table(
        [f"super-resolution {stage}", "PSNR, dB (higher is better)", "feature distance (lower)"],
        [
            ["untuned", untuned.psnr, untuned.feature_distance],
            ["tuned on the photos", tuned.psnr, tuned.feature_distance],
        ],
    )
    caption = f"The same low-resolution picture, made from {which}, enlarged before and after."
    return Section(
        f"Super-resolution to {size} pixels, before and after",
        figures=[Figure(grid, caption)],
        tables=[table],
    )


def _figures(outcome: Outcome) -> Section:
    head = ["stage", "cascade", "subject similarity", "of the way", "PRES", "DIV", "prior drift"]
    rows: list[list[str | float]] = [
        [
            stage,
            kind,
            score.similarity,
            percent(outcome.of_the_way(stage, kind)),
            score.prior_similarity,
            score.diversity,
            score.drift,
        ]
        for stage, kinds in outcome.scores.items()
        for kind, score in kinds.items()
    ]
    ceilings = ", ".join(f"{stage} {value:.3f}" for stage, value in outcome.ceilings.items())
    note = (
        "Cosines of EfficientNet-Lite0 features, photos at the pictures' size. Subject similarity "
        "(higher is better): the subject's prompt against the photos; the photos among themselves "
        f"reach {ceilings}, and the way there begins at the untouched cascade's. PRES (lower): "
        "the class's prompt against the photos. DIV (higher): distance among pictures of the "
        "class's prompt. Prior drift (lower): class pictures against the untouched cascade's of "
        "the same seeds."
    )
    seconds = [(name, round(value)) for name, value in outcome.times.items()]
    tables = [Table(head, rows, note), Table(["part", "seconds"], seconds)]
    return Section("Figures", tables=tables)


def _curves(outcome: Outcome) -> Section:
    figures = [Figure(loss_curves(outcome.logs), "Loss of every run.")]
    prior = {name: log for name, log in outcome.logs.items() if any("loss/prior" in x for x in log)}
    if prior:
        drawing = loss_curves(prior, ("loss/instance", "loss/prior"))
        figures.append(Figure(drawing, "The two terms of DreamBooth's loss."))
    return Section("Loss", figures=figures)
