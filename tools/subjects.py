"""Personalise several subjects of the DreamBooth data set and tabulate how well it went.

    python tools/subjects.py ../shared/data/subjects dog cat backpack_dog

The folder holds a folder of photos per subject and `prompts_and_classes.txt`, which gives each
subject its class noun. Writes `subjects.json`, `subjects.md` and `subjects.png` beside the runs.
"""

import json
from collections.abc import Iterable
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
from demo import KINDS, demonstrate, prepare
from demo_report import Outcome

HEAD = (
    "stage",
    "cascade",
    "subject similarity",
    "PRES",
    "DIV",
    "DIV of the subject",
    "prior drift",
)


def main(
    data: Annotated[Path, typer.Argument(help="The data set's folder.")],
    names: Annotated[list[str], typer.Argument(help="Subjects, by their folders' names.")],
    output: Annotated[Path, typer.Option(help="Folder for runs and results.")] = Path(
        "runs/subjects"
    ),
    cascade: Annotated[str, typer.Option(help="The cascade to personalise.")] = "mini",
) -> None:
    """Run every subject and write the tables."""
    nouns = class_nouns(data / "prompts_and_classes.txt")
    unknown = [name for name in names if name not in nouns]
    if unknown:
        raise UserError(f"The data set has no subject '{unknown[0]}'; it has {', '.join(nouns)}.")
    outcomes = {
        name: demonstrate(
            prepare(list(read_photos(data / name).images), nouns[name], output, cascade)
        )
        for name in names
    }
    record = {"environment": environment(), "subjects": {n: row(o) for n, o in outcomes.items()}}
    write_bytes((json.dumps(record, indent=2) + "\n").encode(), output / "subjects.json")
    write_bytes(tables(outcomes).encode(), output / "subjects.md")
    write_png(sheet(outcomes), output / "subjects.png")
    Console().print(tables(outcomes))


def class_nouns(path: Path) -> dict[str, str]:
    """Each subject's class noun, as the data set's text file lists them: `name,class`."""
    if not path.is_file():
        raise UserError(f"There is no {path}; give the folder of the DreamBooth data set.")
    pairs = (line.split(",") for line in path.read_text(encoding="utf-8").splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and pair[0] != "subject_name"}


def row(outcome: Outcome) -> dict[str, object]:
    """One subject's figures, ready for JSON."""
    untuned, tuned = outcome.reconstructions
    return {
        "class_noun": outcome.subject.class_noun,
        "identifier": outcome.subject.identifier,
        "photos": len(outcome.photos),
        "ceilings": dict(outcome.ceilings),
        "scores": {
            stage: {kind: asdict(score) for kind, score in kinds.items()}
            for stage, kinds in outcome.scores.items()
        },
        "held_out_reconstruction": {
            "held_out": outcome.held_out is not None,
            "untuned": {"psnr": untuned.psnr, "feature_distance": untuned.feature_distance},
            "tuned": {"psnr": tuned.psnr, "feature_distance": tuned.feature_distance},
        },
        "seconds": dict(outcome.times),
    }


def tables(outcomes: dict[str, Outcome]) -> str:
    """Means over the subjects, and super-resolution per subject, as Markdown."""
    stages = list(next(iter(outcomes.values())).scores)
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    for stage in stages:
        for kind in KINDS:
            scores = [asdict(outcome.scores[stage][kind]) for outcome in outcomes.values()]
            means = {key: fmean(score[key] for score in scores) for key in scores[0]}
            order = ("similarity", "prior_similarity", "diversity", "subject_diversity", "drift")
            lines.append(_line([stage, kind, *(f"{means[key]:.3f}" for key in order)]))
    head = ["held-out photo of", "PSNR untuned", "PSNR tuned", "distance untuned", "distance tuned"]
    lines += ["", _line(head), _line(["---"] * len(head))]
    for name, outcome in outcomes.items():
        untuned, tuned = outcome.reconstructions
        psnrs = [f"{untuned.psnr:.2f}", f"{tuned.psnr:.2f}"]
        distances = [f"{untuned.feature_distance:.3f}", f"{tuned.feature_distance:.3f}"]
        lines.append(_line([name, *psnrs, *distances]))
    return "\n".join(lines) + "\n"


def sheet(outcomes: dict[str, Outcome]) -> Image.Image:
    """Per subject: two photos, two pictures by the untouched cascade, four by the tuned one."""
    rows = []
    for outcome in outcomes.values():
        before, after = (outcome.drawn[kind].instance.tensor for kind in (KINDS[0], KINDS[-1]))
        photos = photos_at(outcome.photos[:2], after.shape[-1])
        rows.append([*photos, *before[:2], *after[:4]])
    columns = ["photo"] * 2 + ["before"] * 2 + ["after"] * 4
    return image_grid(rows, row_labels=list(outcomes), column_labels=columns, cell=128)


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    answer(lambda: typer.run(main))
