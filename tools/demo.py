"""The demonstration: personalise a cascade on a few photos and show what changed.

    python tools/demo.py                                    # a cat that ships with scikit-image
    python tools/demo.py --subject my-photos --class dog    # your own

Tunes the cascade as its recipe says, and its base without prior preservation and by plain
DreamBooth; draws all beside the untouched one, and writes `report.html`, one page that needs no
server. Started again it goes on where it was.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer
from PIL import Image
from rich.console import Console

from cascade.cli.mistakes import answer
from cascade.data.images import read_photos, write_png
from cascade.environment import environment
from cascade.errors import UserError
from comparison import Comparison, prepare, run
from demo_report import demo_report, write_pictures
from kinds import AFTER, BEFORE, NO_PRIOR, PLAIN

console = Console()
KINDS = {BEFORE: 1, NO_PRIOR: 0, PLAIN: 2, AFTER: 3}
"""What is compared, and how many pictures of each prompt elsewhere are drawn."""


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
    outcome = run(Comparison(prepare(photos, class_noun or "cat", output, cascade), KINDS))
    report = demo_report(outcome, " ".join(["python", *sys.argv]), environment())
    write_pictures(report, output / "pictures")
    report.write(output / "report.html")
    console.print(f"Open {output / 'report.html'} in a browser.")


def views_of_a_cat(folder: Path) -> Path:
    """Write crops of the CC0 photo of a cat inside scikit-image; the last will be held out."""
    from skimage.data import chelsea

    photo = Image.fromarray(chelsea())
    boxes = ((0, 0, 451, 300), (30, 0, 451, 300), (0, 0, 421, 300), (15, 10, 440, 300))
    for number, box in enumerate(boxes):
        write_png(photo.crop(box), folder / f"{number}.png")
    return folder


if __name__ == "__main__":
    answer(lambda: typer.run(main))
