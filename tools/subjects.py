"""Personalise several subjects of the DreamBooth data set, in several ways, and tabulate that.

    python tools/subjects.py ../shared/data/subjects dog cat backpack_dog --seeds 3

The folder holds a folder of photos per subject and `prompts_and_classes.txt`, which gives each
subject its class noun. Compared are plain DreamBooth, class images in scenes beside it, and the
cascade's whole recipe. Writes `subjects.json`, `subjects.md`, and two sheets beside the runs:
`subjects.png` with the photos, `elsewhere.png` without. Started again it goes on where it was.

The goals are those of `GOALS`, reached by the recipe on two CPU cores.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import stdev
from typing import Annotated, Final, TypeAlias

import typer
from PIL import Image
from rich.console import Console

from cascade.cli.mistakes import answer
from cascade.data.images import read_photos, write_png
from cascade.environment import environment
from cascade.errors import UserError
from cascade.evaluate.grid import image_grid
from cascade.evaluate.subject import photos_at
from cascade.files import write_bytes
from comparison import Comparison, Outcome, run
from elsewhere import CHANGES, PLACES
from kinds import AFTER, BEFORE, CLASS_SCENES, PLAIN
from tables import markdown, mean, percent, whole
from work import prepare

KINDS: Final = {BEFORE: 2, PLAIN: 2, CLASS_SCENES: 2, AFTER: 2}
GOALS: Final = {"scene": 80.0, "likeness": 60.0}  # percent
GOAL_SECONDS: Final = 480
CELL: Final = 128  # pixels of a picture on the sheet of many
SCORES: Final = {"PRES": "prior_similarity", "DIV": "diversity", "prior drift": "drift"}
STATED: Final = ("scene", "style", "colour", "accessory")

Outcomes: TypeAlias = Mapping[str, Sequence[Outcome]]
"""By subject, one of each seed."""


def main(
    data: Annotated[Path, typer.Argument(help="The data set's folder.")],
    names: Annotated[list[str], typer.Argument(help="Subjects, by their folders' names.")],
    output: Annotated[Path, typer.Option(help="Folder for runs and results.")] = Path(
        "runs/subjects"
    ),
    cascade: Annotated[str, typer.Option(help="The cascade to personalise.")] = "mini",
    seeds: Annotated[int, typer.Option(min=1, help="Tunings of each subject.")] = 1,
) -> None:
    """Run every subject and write the tables."""
    nouns = nouns_of(data, names)
    outcomes: dict[str, list[Outcome]] = {name: [] for name in names}
    for seed in range(seeds):
        for name in names:
            work = prepare(read_photos(data / name), nouns[name], output, cascade)
            outcomes[name].append(run(Comparison(work, KINDS, seed)))
            write(outcomes, output)  # what is known so far
    Console(markup=False, highlight=False, soft_wrap=True).print(tables(outcomes))


def write(outcomes: Outcomes, output: Path) -> None:
    """Write figures, tables and sheets of the subjects that have ended."""
    ended = {name: found for name, found in outcomes.items() if found}
    figures = {name: [row(outcome) for outcome in found] for name, found in ended.items()}
    record = {"environment": environment(), "subjects": figures}
    write_bytes((json.dumps(record, indent=2) + "\n").encode(), output / "subjects.json")
    write_bytes(tables(ended).encode(), output / "subjects.md")
    write_png(sheet(ended), output / "subjects.png")
    write_png(sheet_elsewhere(ended), output / "elsewhere.png")


def nouns_of(data: Path, names: Sequence[str]) -> dict[str, str]:
    """The class nouns of these subjects of a data set.

    Raises:
        UserError: it is none, or lacks a subject.
    """
    nouns = class_nouns(data / "prompts_and_classes.txt")
    unknown = [name for name in names if name not in nouns]
    if unknown:
        raise UserError(f"The data set has no subject '{unknown[0]}'; it has {', '.join(nouns)}.")
    return {name: nouns[name] for name in names}


def class_nouns(path: Path) -> dict[str, str]:
    """Each subject's class noun, as the data set's text file lists them: `name,class`."""
    if not path.is_file():
        raise UserError(f"There is no {path}; give the folder of the DreamBooth data set.")
    pairs = (line.split(",") for line in path.read_text(encoding="utf-8").splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[0] != "subject_name"}


def row(outcome: Outcome) -> dict[str, object]:
    """One run's figures, ready for JSON."""
    return {
        "class_noun": outcome.subject.class_noun,
        "identifier": outcome.subject.identifier,
        "photos": len(outcome.photos),
        "ceilings": dict(outcome.ceilings),
        "percent_of_the_way": {
            stage: {kind: outcome.of_the_way(stage, kind) for kind in kinds if kind != BEFORE}
            for stage, kinds in outcome.scores.items()
        },
        "scores": {
            stage: {kind: asdict(score) for kind, score in kinds.items()}
            for stage, kinds in outcome.scores.items()
        },
        "accuracy": {kind: dict(found) for kind, found in outcome.accuracy.items()},
        "likeness": dict(outcome.likeness),
        "reconstruction_of_a_held_out_photo": outcome.held_out is not None,
        "reconstructions": {
            stage: {
                kind: {"psnr": found.psnr, "feature_distance": found.feature_distance}
                for kind, found in zip(("untuned", "tuned"), pair, strict=True)
            }
            for stage, pair in outcome.reconstructions.items()
        },
        "seconds": dict(outcome.times),
    }


def tables(outcomes: Outcomes) -> str:
    """The goals per subject, the kinds of tuning, and super-resolution per subject."""
    return "\n\n".join((goals(outcomes), kinds(outcomes), *super_resolution(outcomes))) + "\n"


def figures_of(outcome: Outcome, kind: str) -> dict[str, float | None]:
    """What is told of a kind of cascade, at the last stage; shares in percent."""
    stage = list(outcome.scores)[-1]
    scores = asdict(outcome.scores[stage][kind])
    found = outcome.accuracy.get(kind, {})
    return {
        **{name: 100 * found[name] if name in found else None for name in STATED},
        "likeness": outcome.likeness.get(kind),
        "of the way": outcome.of_the_way(stage, kind),
        **{name: scores[key] for name, key in SCORES.items()},
    }


def goals(outcomes: Outcomes) -> str:
    """How well every subject was learned by the recipe, and what that took."""
    everything = [outcome for found in outcomes.values() for outcome in found]
    figures = [figures_of(outcome, AFTER) for outcome in everything]
    timed = parts(everything)
    head = ["subject", *figures[0], *(f"{part}, s" for part in timed), "together, s"]
    named = {**outcomes, "mean": everything}
    rows = [goal_row(name, found, timed) for name, found in named.items()]
    reached = [
        f"{sum((one[name] or 0) >= goal for one in figures)} reached {goal:.0f} % of {name}"
        for name, goal in GOALS.items()
    ]
    soon = sum(spent(outcome) <= GOAL_SECONDS for outcome in everything)
    return (
        f"{markdown(head, rows)}\n\n"
        f"Of {len(everything)} runs {', '.join(reached)}, and {soon} took {GOAL_SECONDS} s or "
        f"less. {', '.join(STATED)}: share of pictures in which the judge finds what the prompt "
        "states. Likeness: how far the subject alone, cut out of the base's pictures in new "
        "places, came from the untouched cascade's to the photos'; of the way: the same of the "
        "last stage's whole pictures of the subject's own prompt."
    )


def goal_row(name: str, outcomes: Sequence[Outcome], timed: Sequence[str]) -> list[str]:
    """The means over some runs, and the seconds of these parts."""
    every = [figures_of(outcome, AFTER) for outcome in outcomes]
    figures = [told(key, [one[key] for one in every]) for key in every[0]]
    seconds = [whole(mean(o.times.get(part) for o in outcomes)) for part in timed]
    return [name, *figures, *seconds, whole(mean(spent(outcome) for outcome in outcomes))]


def told(key: str, values: Sequence[float | None]) -> str:
    """The mean of a figure over runs."""
    average = mean(values)
    if key not in SCORES:
        return percent(average)
    return whole(None) if average is None else f"{average:.3f}"


def parts(outcomes: Iterable[Outcome]) -> list[str]:
    """What a personalisation spends its time on, as `run` names it; comparisons left out."""
    names = dict.fromkeys(name for outcome in outcomes for name in outcome.times)
    stages = {f"tuning {stage}" for outcome in outcomes for stage in outcome.scores}
    return [name for name in names if name in stages or name in ("class images", "scenes")]


def spent(outcome: Outcome) -> float:
    """Seconds of drawing in advance and of tuning every stage."""
    return sum(outcome.times[part] for part in parts([outcome]))


def kinds(outcomes: Outcomes) -> str:
    """Every kind of cascade: mean over the runs, and standard deviation among them."""
    everything = [outcome for found in outcomes.values() for outcome in found]
    rows = []
    for kind in next(iter(everything)).drawn:
        every = [figures_of(outcome, kind) for outcome in everything]
        cells = []
        for key in every[0]:
            known = [one[key] for one in every]
            spread = [value for value in known if value is not None]
            cells.append(told(key, known) + (f" ± {_spread(key, spread)}" if spread[1:] else ""))
        rows.append([kind, *cells])
    return markdown(["cascade", *figures_of(everything[0], BEFORE)], rows)


def _spread(key: str, values: Sequence[float]) -> str:
    return f"{stdev(values):.3f}" if key in SCORES else f"{stdev(values):.0f}"


def super_resolution(outcomes: Outcomes) -> list[str]:
    """For every super-resolution stage a photo of each subject, enlarged before and after."""
    head = ["PSNR untuned, dB", "PSNR tuned, dB", "distance untuned", "distance tuned"]
    firsts = {name: found[0] for name, found in outcomes.items()}
    found = []
    for stage in next(iter(firsts.values())).reconstructions:
        rows = []
        for name, outcome in firsts.items():
            pair = outcome.reconstructions[stage]
            psnrs = [f"{one.psnr:.2f}" for one in pair]
            rows.append([name, *psnrs, *(f"{one.feature_distance:.3f}" for one in pair)])
        found.append(markdown([f"held-out photo at {stage}", *head], rows))
    return found


def sheet(outcomes: Outcomes) -> Image.Image:
    """Per subject: two photos, two pictures by the untouched cascade, four by the tuned one."""
    rows = []
    for outcome, *_ in outcomes.values():
        before, after = (outcome.drawn[kind].instance.tensor for kind in (BEFORE, AFTER))
        photos = photos_at(outcome.photos[:2], after.shape[-1])
        rows.append([*photos, *before[:2], *after[:4]])
    columns = ["photo"] * 2 + ["before"] * 2 + ["after"] * 4
    return image_grid(rows, row_labels=list(outcomes), column_labels=columns)


def sheet_elsewhere(outcomes: Outcomes) -> Image.Image:
    """Per subject a picture of every prompt elsewhere, by plain DreamBooth and by the recipe."""
    rows, labels = [], []
    for name, (outcome, *_) in outcomes.items():
        # The tables alone tell of the others.
        for kind in (kind for kind in (PLAIN, AFTER) if kind in outcome.elsewhere):
            rows.append([some.tensor[0] for some in outcome.elsewhere[kind].values()])
            labels.append(f"{name}, {kind}")
    columns = [prompt.format(subject="…") for prompt in (*PLACES, *CHANGES)]
    return image_grid(rows, row_labels=labels, column_labels=columns, cell=CELL)


if __name__ == "__main__":
    answer(lambda: typer.run(main))
