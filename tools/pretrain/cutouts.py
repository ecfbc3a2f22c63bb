"""Masks of the objects in labelled photos: what `prepare.py` sets into other scenes.

    python tools/pretrain/cutouts.py --pack tiny64_relevant --output build/pretrain/cutouts

U2-Net-p (Qin et al. 2020), a salient-object network, marks the foreground. Its mask is kept where
it agrees with the photo's object box, which was drawn by a person. A file per pack, `PACK.npz`:

* `index`: int32, N, the photos' places in their pack;
* `masks`: uint8, N 64 64, 255 where the object is.

Masks need a CPU and minutes; kept, they can be carried to where the rest is prepared.
"""

from io import BytesIO
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from boxes import mask_box, overlap
from cascade.cli.mistakes import answer
from cascade.data.saliency import U2NetP
from cascade.errors import UserError
from cascade.files import write_bytes
from packs import Photo, TinyPack, class_filter

COVERED: Final = (0.10, 0.70)  # shares of the picture that make a usable object
AGREEMENT: Final = 0.55  # intersection over union of the mask's box and the photo's
UNSURE: Final = 0.40  # largest share of the mask that is neither object nor background


def main(
    output: Annotated[Path, typer.Option(help="Folder for the masks.")],
    pack: Annotated[list[str], typer.Option(help="Pack by name; may be repeated.")],
    shared: Annotated[
        Path, typer.Option(envvar="DREAMCASCADE_SHARED", help="The shared data folder.")
    ] = Path("../shared"),
    classes: Annotated[
        Path | None, typer.Option(help="File of class ids; others are left out.")
    ] = None,
    per_class: Annotated[int, typer.Option(min=1, help="Photos looked at of each class.")] = 150,
) -> None:
    """Mark the objects of the first photos of every class that is no scenery."""
    segment = U2NetP()
    for name in pack:
        target = output / f"{name}.npz"
        if target.exists():
            Console().print(f"{target} exists; left as it is.")
            continue
        photos = TinyPack(shared / "data" / "packs", name)
        looked = [
            index
            for members in photos.members(class_filter(classes)).values()
            for index in members[:per_class]
        ]
        found = {}
        for index in track(looked, description=f"objects of {name}"):
            photo = photos[index]
            if photo.subject.scenery:
                continue
            mask = np.asarray(segment(photo.image))
            if usable(mask, photo):
                found[index] = mask
        if not found:
            raise UserError(f"No photo of {name} has a usable mask; look at more per class.")
        buffer = BytesIO()
        np.savez_compressed(
            buffer, index=np.array(list(found), np.int32), masks=np.stack(list(found.values()))
        )
        write_bytes(buffer.getvalue(), target)
        Console().print(f"{target}: {len(found)} of {len(looked)} photos have a usable mask")


def usable(mask: NDArray[np.uint8], photo: Photo) -> bool:
    """Tell whether a mask is sure, of a fair size, and where the photo's box says the object is."""
    inside = mask > 127
    covered = inside.mean()
    unsure = ((mask > 50) & (mask < 205)).mean()
    if not COVERED[0] <= covered <= COVERED[1] or unsure > UNSURE * covered:
        return False
    return overlap(mask_box(inside), photo.box) >= AGREEMENT


if __name__ == "__main__":
    answer(lambda: typer.run(main))
