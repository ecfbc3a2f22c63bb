"""The demonstration: personalise a cascade on a few photos and show what changed.

    python tools/demo.py                                    # a cat that ships with scikit-image
    python tools/demo.py --subject cup                      # a cup that does
    python tools/demo.py --subject my-photos --class dog    # your own

Tunes the cascade as its recipe says, and its base for fewer steps without prior preservation and
by plain DreamBooth; scores all beside the untouched one and writes `subject.html`, a page that
needs no server. Each command is printed; started again, all go on where they were.
"""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import skimage.data
import typer
from PIL import Image

from cascade.cli.console import run_command
from cascade.config.folders import cascade_folder, read_manifest
from cascade.config.recipes import RECIPES
from cascade.data.images import read_photos, write_png
from cascade.dreambooth.masks import mask_beside
from cascade.errors import UserError

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
    output: Annotated[Path, typer.Option(help="Folder for everything.")] = Path("runs/demo"),
    cascade: Annotated[str, typer.Option(help="The cascade to personalise.")] = "mini",
) -> None:
    """Run the whole demonstration."""
    folder = output / Path(subject).resolve().name
    photos, held_out = set_apart(photos_of(subject, class_noun, folder / "all"), folder / "photos")
    tuned = []
    for kind, flags in kinds(cascade).items():
        tuned.append(str(folder / kind))
        given = {"instance-data-dir": photos, "class-noun": class_noun or subject}
        given |= {"cascade": cascade, "class-data-dir": folder / "class-images"}
        given |= {"output-dir": folder / kind, "num-validation-images": 0}
        run("dreambooth", *words(given), *flags)
    found: dict[str, object] = {"before": cascade, "photos": photos, "output": folder}
    run("evaluate", "subject", *tuned, *words(found | ({"held-out": held_out} if held_out else {})))
    typer.echo(f"Open {folder / 'subject.html'} in a browser.")


def kinds(cascade: str) -> dict[str, list[str]]:
    """Name the kinds of tuning that are compared, with what each leaves out of the recipe."""
    home = cascade_folder(cascade)
    manifest = read_manifest(home)
    recipe, base = RECIPES[manifest.recipe], manifest.stages[0]
    steps = max(1, round(OTHERS_SHARE * recipe.base.steps))
    shorter = ["--stages", base, "--max-train-steps", str(steps)]
    # As many of the class alone as the recipe draws, by turns with the others.
    images = recipe.prior.images if recipe.prior else 0
    if recipe.prior and (recipe.prior.in_scenes or recipe.prior.variations):
        images = -(-images // 2)
    alone = ["--no-class-scenes", "--class-variations", "", "--num-class-images", str(images)]
    return {
        "without-prior-preservation": ["--no-prior-preservation", *shorter],
        "plain-dreambooth": ["--masks", "none", *alone, *shorter],
        "after": [],
    }


def photos_of(subject: str, class_noun: str | None, folder: Path) -> Path:
    """Return a folder of photos: the given one, or views of a photo that scikit-image ships."""
    if class_noun is not None and subject in SHIPPED:
        raise UserError(
            f"--class says what a folder's photos show; give the folder with --subject, as "
            f"./{subject} if that is its name."
        )
    if class_noun is not None:
        return Path(subject)
    if subject not in SHIPPED:
        raise UserError(
            f"Say with --class what the photos in {subject} show; without it --subject is one of "
            f"{', '.join(SHIPPED)}."
        )
    # As if the camera had moved a little.
    photo = Image.fromarray(getattr(skimage.data, SHIPPED[subject])())
    width, height = photo.size
    for number, (left, top, right, bottom) in enumerate(VIEWS):
        box = (left * width, top * height, right * width, bottom * height)
        write_png(photo.crop(box), folder / f"{number}.png")
    return folder


def set_apart(photos: Path, folder: Path) -> tuple[Path, Path | None]:
    """Copy the photos and the masks beside them, but for the last of four or more.

    Returns:
        The folder of the copies, and the photo that was kept out.
    """
    paths = read_photos(photos).paths
    held_out = paths[-1] if len(paths) >= 4 else None
    shutil.rmtree(folder, ignore_errors=True)  # photos of an earlier choice
    folder.mkdir(parents=True)
    for photo in paths[:-1] if held_out else paths:
        # As they are: their transparency, and the masks beside them, say where the subject is.
        for file in (photo, mask_beside(photo)):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
    return folder, held_out


def words(flags: dict[str, object]) -> list[str]:
    """Spell flags for a command line."""
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


def run(*command: str) -> None:
    """Print a command of `cascade` and run it."""
    typer.secho(shlex.join(["cascade", *command]), bold=True)
    done = subprocess.run([sys.executable, "-m", "cascade", *command], check=False)
    if done.returncode:
        raise SystemExit(done.returncode)


if __name__ == "__main__":
    run_command(lambda: typer.run(main))
