"""The demonstration's page: what was measured, as pictures, curves and a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from cascade.config.stage import SubjectConfig
from cascade.evaluate.grid import image_grid
from cascade.evaluate.report import Figure, Report, Section, Table, loss_curves
from cascade.evaluate.subject import Drawn, Reconstruction, SubjectScores, photos_at
from cascade.pipeline import Pictures

SHOWN = 6


@dataclass(frozen=True)
class Outcome:
    """Everything the demonstration found.

    Attributes:
        subject: identifier and class noun.
        photos: those tuned on.
        held_out: a photo kept out of the tuning, if there were enough.
        drawn: pictures of the subject's and the class's prompt, by the kind of cascade.
        scenes: pictures of the tuned cascade by prompt.
        reconstructions: a photo enlarged by the untuned and by the tuned super-resolution stage.
        scores: by stage, then by the kind of cascade.
        ceilings: the photos' own similarity, by stage.
        logs: training logs by run.
        times: seconds by part.
    """

    subject: SubjectConfig
    photos: Sequence[Image.Image]
    held_out: Image.Image | None
    drawn: Mapping[str, Drawn]
    scenes: Mapping[str, Pictures]
    reconstructions: tuple[Reconstruction, Reconstruction]
    scores: Mapping[str, Mapping[str, SubjectScores]]
    ceilings: Mapping[str, float]
    logs: Mapping[str, Sequence[Mapping[str, float]]]
    times: Mapping[str, float]


def demo_report(outcome: Outcome, command: str, environment: Mapping[str, str]) -> Report:
    """Lay the outcome out as one page."""
    noun = outcome.subject.class_noun
    last = list(outcome.scores)[-1]
    before, after = (outcome.scores[last][kind] for kind in (_first(outcome), _final(outcome)))
    return Report(
        title=f"A cascade that knows this {noun}",
        summary=(
            f"{len(outcome.photos)} photos taught the cascade that "
            f"“{outcome.subject.identifier}” means this {noun}: similarity to the photos rose from "
            f"{before.similarity:.2f} to {after.similarity:.2f} "
            f"(photos among themselves: {outcome.ceilings[last]:.2f})."
        ),
        command=command,
        environment=environment,
        sections=[
            _photos(outcome),
            _before_and_after(outcome),
            _class(outcome),
            _scenes(outcome),
            _super_resolution(outcome),
            _figures(outcome),
            _curves(outcome),
        ],
    )


def _first(outcome: Outcome) -> str:
    return next(iter(outcome.drawn))


def _final(outcome: Outcome) -> str:
    return list(outcome.drawn)[-1]


def _photos(outcome: Outcome) -> Section:
    photos = photos_at(outcome.photos, 192)
    grid = image_grid([list(photos)])
    return Section("The photos", figures=[Figure(grid, "What the cascade was tuned on.")])


def _rows(pictures: Mapping[str, Pictures]) -> Image.Image:
    return image_grid(
        [list(drawn.tensor[:SHOWN]) for drawn in pictures.values()], row_labels=list(pictures)
    )


def _before_and_after(outcome: Outcome) -> Section:
    prompt = f"a {outcome.subject.identifier} {outcome.subject.class_noun}"
    drawn = {kind: pair.instance for kind, pair in outcome.drawn.items()}
    caption = f"“{prompt}”. Each column is one seed, drawn by three cascades."
    return Section("The subject, before and after", figures=[Figure(_rows(drawn), caption)])


def _class(outcome: Outcome) -> Section:
    prompt = f"a {outcome.subject.class_noun}"
    drawn = {kind: pair.of_class for kind, pair in outcome.drawn.items()}
    text = (
        f"Tuned on few photos, a network forgets that there are others: “{prompt}” becomes the "
        "subject. Prior preservation trains on what the untouched cascade draws for the class, "
        "beside the photos, so that the class stays what it was."
    )
    caption = f"“{prompt}”, without the identifier, same seeds as above."
    return Section(
        "The class, with and without prior preservation", text, [Figure(_rows(drawn), caption)]
    )


def _scenes(outcome: Outcome) -> Section:
    caption = "Prompts that name the subject and something the photos do not show."
    return Section("Other prompts", figures=[Figure(_rows(outcome.scenes), caption)])


def _super_resolution(outcome: Outcome) -> Section:
    untuned, tuned = outcome.reconstructions
    size = tuned.pictures.shape[-1]
    photo = photos_at([outcome.held_out or outcome.photos[0]], size)[0]
    final = outcome.drawn[_final(outcome)].instance
    small = list(final.stages.values())[-2]
    columns = ["low resolution", "untuned", "tuned", "photo"]
    low: Tensor = photos_at([outcome.held_out or outcome.photos[0]], small.shape[-1])[0]
    grid = image_grid(
        [[low, untuned.pictures[0], tuned.pictures[0], photo]], column_labels=columns, cell=2 * size
    )
    which = "a photo kept out of the tuning" if outcome.held_out else "a photo tuned on"
    table = Table(
        ["super-resolution stage", "PSNR, dB (higher is better)", "feature distance (lower)"],
        [
            ["untuned", untuned.psnr, untuned.feature_distance],
            ["tuned on the photos", tuned.psnr, tuned.feature_distance],
        ],
    )
    caption = f"The same low-resolution picture, made from {which}, enlarged before and after."
    return Section("Super-resolution, before and after", "", [Figure(grid, caption)], [table])


def _figures(outcome: Outcome) -> Section:
    head = ["stage", "cascade", "subject similarity", "PRES", "DIV", "prior drift"]
    rows: list[list[str | float]] = [
        [stage, kind, score.similarity, score.prior_similarity, score.diversity, score.drift]
        for stage, kinds in outcome.scores.items()
        for kind, score in kinds.items()
    ]
    ceilings = ", ".join(f"{stage} {value:.3f}" for stage, value in outcome.ceilings.items())
    note = (
        "Cosines of EfficientNet-Lite0 features, photos at the pictures' size. Subject similarity "
        "(higher is better): the subject's prompt against the photos; the photos among themselves "
        f"reach {ceilings}. PRES (lower): the class's prompt against the photos. DIV (higher): "
        "distance among pictures of the class's prompt. Prior drift (lower): class pictures "
        "against the untouched cascade's of the same seeds."
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
