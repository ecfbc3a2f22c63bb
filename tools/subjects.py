"""Personalise several subjects of the DreamBooth data set and tabulate how well it went.

    python tools/subjects.py ../shared/data/subjects dog cat backpack_dog

The folder holds a folder of photos per subject and `prompts_and_classes.txt`, which gives each
subject its class noun. Writes `subjects.json`, `subjects.md` and `subjects.png` beside the runs.

The goal is that every subject comes `GOAL_PERCENT` of the way from what the untouched cascade draws
to the photos themselves, within `GOAL_SECONDS` of class images and tuning on two CPU cores.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Annotated

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
from demo import demonstrate, prepare
from demo_report import AFTER, BEFORE, Outcome
from tables import markdown, mean, percent, whole

GOAL_PERCENT, GOAL_SECONDS = 60, 300
SCORES = {
    "subject similarity": "similarity",
    "PRES": "prior_similarity",
    "DIV": "diversity",
    "DIV of the subject": "subject_diversity",
    "prior drift": "drift",
}


def main(
    data: Annotated[Path, typer.Argument(help="The data set's folder.")],
    names: Annotated[list[str], typer.Argument(help="Subjects, by their folders' names.")],
    output: Annotated[Path, typer.Option(help="Folder for runs and results.")] = Path(
        "runs/subjects"
    ),
    cascade: Annotated[str, typer.Option(help="The cascade to personalise.")] = "mini",
) -> None:
    """Run every subject and write the tables."""
    nouns = nouns_of(data, names)
    outcomes = {
        name: demonstrate(prepare(read_photos(data / name), nouns[name], output, cascade))
        for name in names
    }
    record = {"environment": environment(), "subjects": {n: row(o) for n, o in outcomes.items()}}
    write_bytes((json.dumps(record, indent=2) + "\n").encode(), output / "subjects.json")
    write_bytes(tables(outcomes).encode(), output / "subjects.md")
    write_png(sheet(outcomes), output / "subjects.png")
    Console(markup=False, highlight=False, soft_wrap=True).print(tables(outcomes))


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
    """One subject's figures, ready for JSON."""
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


def tables(outcomes: dict[str, Outcome]) -> str:
    """The goal per subject, means over the subjects, and super-resolution per subject."""
    return "\n\n".join((goal(outcomes), means(outcomes), *super_resolution(outcomes))) + "\n"


def goal(outcomes: dict[str, Outcome]) -> str:
    """How far every subject came at every stage, and what that took."""
    everything = list(outcomes.values())
    stages = list(everything[0].scores)
    head = [f"{stage}: {what}" for stage in stages for what in ("of the way", "prior drift")]
    times = [f"{part}, s" for part in (*parts(stages), "together")]
    rows = [goal_row(name, [outcome]) for name, outcome in outcomes.items()]
    rows.append(goal_row("mean", everything))
    far = sum((outcome.of_the_way(stages[-1]) or 0) >= GOAL_PERCENT for outcome in everything)
    soon = sum(spent(outcome) <= GOAL_SECONDS for outcome in everything)
    return (
        f"{markdown(['subject', *head, 'in the scene', *times], rows)}\n\n"
        f"{far} of {len(everything)} subjects came {GOAL_PERCENT} % of the way or more at "
        f"{stages[-1]}; {soon} took {GOAL_SECONDS} s or less. In the scene: the share of pictures "
        "in which the judge finds the place that the prompt names. A dash among the seconds: the "
        "class images were there, drawn for another subject of the class."
    )


def goal_row(name: str, outcomes: Sequence[Outcome]) -> list[str]:
    """The means over some subjects, or the figures of one."""
    figures = []
    stages = list(outcomes[0].scores)
    for stage in stages:
        share = mean(outcome.of_the_way(stage) for outcome in outcomes)
        drift = fmean(outcome.scores[stage][AFTER].drift for outcome in outcomes)
        figures += [percent(share), f"{drift:.3f}"]
    followed = mean(outcome.accuracy.get(AFTER, {}).get("scene") for outcome in outcomes)
    figures.append(percent(None if followed is None else 100 * followed))
    for part in parts(stages):
        figures.append(whole(mean(outcome.times.get(part) for outcome in outcomes)))
    return [name, *figures, f"{fmean(spent(outcome) for outcome in outcomes):.0f}"]


def parts(stages: Sequence[str]) -> list[str]:
    """What a personalisation spends its time on, as `demonstrate` names it."""
    return ["class images", *(f"tuning {stage}" for stage in stages)]


def spent(outcome: Outcome) -> float:
    """Seconds of class images and of tuning every stage."""
    return sum(outcome.times.get(part, 0.0) for part in parts(list(outcome.scores)))


def means(outcomes: dict[str, Outcome]) -> str:
    """Every cascade's scores at every stage, as means over the subjects."""
    rows = []
    for stage, kinds in next(iter(outcomes.values())).scores.items():
        for kind in kinds:
            scores = [outcome.scores[stage][kind] for outcome in outcomes.values()]
            share = mean(outcome.of_the_way(stage, kind) for outcome in outcomes.values())
            figures = [
                f"{fmean(asdict(score)[key] for score in scores):.3f}" for key in SCORES.values()
            ]
            rows.append([stage, kind, percent(share), *figures])
    return markdown(["stage", "cascade", "of the way", *SCORES], rows)


def super_resolution(outcomes: dict[str, Outcome]) -> list[str]:
    """For every super-resolution stage a photo of each subject, enlarged before and after."""
    head = ["PSNR untuned, dB", "PSNR tuned, dB", "distance untuned", "distance tuned"]
    found = []
    for stage in next(iter(outcomes.values())).reconstructions:
        rows = []
        for name, outcome in outcomes.items():
            pair = outcome.reconstructions[stage]
            psnrs = [f"{one.psnr:.2f}" for one in pair]
            rows.append([name, *psnrs, *(f"{one.feature_distance:.3f}" for one in pair)])
        found.append(markdown([f"held-out photo at {stage}", *head], rows))
    return found


def sheet(outcomes: dict[str, Outcome]) -> Image.Image:
    """Per subject: two photos, two pictures by the untouched cascade, four by the tuned one."""
    rows = []
    for outcome in outcomes.values():
        before, after = (outcome.drawn[kind].instance.tensor for kind in (BEFORE, AFTER))
        photos = photos_at(outcome.photos[:2], after.shape[-1])
        rows.append([*photos, *before[:2], *after[:4]])
    columns = ["photo"] * 2 + ["before"] * 2 + ["after"] * 4
    return image_grid(rows, row_labels=list(outcomes), column_labels=columns)


if __name__ == "__main__":
    answer(lambda: typer.run(main))
