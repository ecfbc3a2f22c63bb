"""The demonstration: personalise a cascade on a few photos and show what changed.

    python tools/demo.py                                    # a cat that ships with scikit-image
    python tools/demo.py --subject cup                      # a cup that does
    python tools/demo.py --subject my-photos --class dog    # your own

Tunes the cascade as its recipe says, and its base for fewer steps without prior preservation and by
plain DreamBooth; draws all beside the untouched one, and writes `report.html`, one page that needs
no server. Started again it goes on where it was.
"""

import sys
from pathlib import Path
from typing import Annotated

import skimage.data
import typer
from PIL import Image
from rich.console import Console

from cascade.cli.mistakes import answer
from cascade.data.images import Photos, read_photos, write_png
from cascade.environment import environment
from cascade.errors import UserError
from comparison import Comparison, run
from demo_report import demo_report, write_pictures
from kinds import AFTER, BEFORE, NO_PRIOR, PLAIN
from work import prepare

console = Console()
KINDS = {BEFORE: 1, NO_PRIOR: 0, PLAIN: 1, AFTER: 2}
"""What is compared, and how many pictures of each prompt elsewhere are drawn."""
OTHERS_SHARE = 0.5
"""Of the recipe's steps, for what is compared: a reader waits for it. After a quarter of `mini`'s,
plain DreamBooth has not yet forgotten the places, which would flatter it."""
SHIPPED = {"cat": "chelsea", "cup": "coffee"}
"""CC0 photos inside scikit-image: what they show, and their names."""
VIEWS = (
    (0, 0, 1, 1),
    (1 / 15, 0, 1, 1),
    (0, 0, 14 / 15, 1),
    (1 / 30, 1 / 30, 29 / 30, 1),
)
"""Left, top, right and bottom, as shares of the photo."""


def main(
    subject: Annotated[
        str, typer.Option(help=f"{' or '.join(SHIPPED)}, or a folder with 3 to 5 photos.")
    ] = "cat",
    class_noun: Annotated[
        str | None, typer.Option("--class", help="What a folder's photos show.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("runs/demo"),
    cascade: Annotated[str, typer.Option(help="The cascade to personalise.")] = "mini",
) -> None:
    """Run the whole demonstration."""
    photos = photos_of(subject, class_noun, output)
    work = prepare(photos, class_noun or subject, output, cascade)
    outcome = run(Comparison(work, KINDS, others_share=OTHERS_SHARE))
    report = demo_report(outcome, " ".join(["python", *sys.argv]), environment())
    write_pictures(report, output / "pictures")
    report.write(output / "report.html")
    console.print(f"Open {output / 'report.html'} in a browser.")


def photos_of(subject: str, class_noun: str | None, output: Path) -> Photos:
    """A folder's photos, or views of a photo that ships with scikit-image.

    Raises:
        UserError: folder and class go one without the other, or no photos are there.
    """
    if class_noun is not None and subject in SHIPPED:
        raise UserError(
            f"--class says what a folder's photos show; give the folder with --subject, as "
            f"./{subject} if that is its name."
        )
    if class_noun is not None:
        return read_photos(Path(subject))
    if subject not in SHIPPED:
        raise UserError(
            f"Say with --class what the photos in {subject} show; without it --subject is one of "
            f"{', '.join(SHIPPED)}."
        )
    photo = Image.fromarray(getattr(skimage.data, SHIPPED[subject])())
    return read_photos(views(photo, output / SHIPPED[subject]))


def views(photo: Image.Image, folder: Path) -> Path:
    """Write crops of a photo, as if its camera had moved a little; the last will be held out."""
    width, height = photo.size
    for number, (left, top, right, bottom) in enumerate(VIEWS):
        box = (left * width, top * height, right * width, bottom * height)
        write_png(photo.crop(box), folder / f"{number}.png")
    return folder


if __name__ == "__main__":
    answer(lambda: typer.run(main))
