"""The subject where its photos do not show it: pictures, and what can be measured of them."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from rich.console import Console

from cascade.config.folders import cascade_folder
from cascade.config.stage import SubjectConfig
from cascade.data.images import to_tensors
from cascade.data.saliency import U2NetP
from cascade.dreambooth.masks import Mask
from cascade.environment import usable_device
from cascade.evaluate.alone import alone, cut_out
from cascade.evaluate.features import FeatureExtractor
from cascade.evaluate.judge import FOLDER, Judge
from cascade.evaluate.metrics import self_similarity, subject_similarity
from cascade.evaluate.subject import of_the_way
from cascade.pipeline import Cascade, Pictures
from cascade.progress import progress_bar, stage_steps
from kinds import BEFORE

PLACES = (
    "a {subject} on the beach",
    "a {subject} in the snow",
    "a {subject} on a wooden table",
    "a {subject} in space",
    "a {subject} in the jungle",
    "a {subject} with a city in the background",
)
CHANGES = (
    "a cartoon of a {subject}",
    "a flat drawing of a {subject}",
    "a purple {subject}",
    "a green {subject}",
    "a {subject} wearing a top hat",
    "a {subject} wearing sunglasses",
)
Elsewhere = Mapping[str, Mapping[str, Pictures]]
"""Pictures by the kind of cascade, then by prompt; those of `PLACES` first."""


def elsewhere(
    cascades: Mapping[str, Cascade],
    subject: SubjectConfig,
    counts: Mapping[str, int],
    console: Console,
) -> Elsewhere:
    """Draw the subject in places, styles, colours and with accessories.

    Args:
        cascades: by kind.
        subject: whom the prompts name.
        counts: pictures of each prompt, by kind; one without any is left out.
        console: shows progress.
    """
    name = f"{subject.identifier} {subject.class_noun}"
    prompts = [prompt.format(subject=name) for prompt in (*PLACES, *CHANGES)]
    found: dict[str, dict[str, Pictures]] = {}
    with progress_bar(console) as bar:
        for kind, cascade in cascades.items():
            if count := counts[kind]:
                drawn = cascade.sample(
                    [prompt for prompt in prompts for _ in range(count)],
                    [*range(count)] * len(prompts),
                    on_step=stage_steps(bar, f"{kind}, elsewhere: "),
                )
                split = {name: images.split(count) for name, images in drawn.stages.items()}
                found[kind] = {
                    prompt: Pictures({name: parts[number] for name, parts in split.items()})
                    for number, prompt in enumerate(prompts)
                }
    return found


def accuracy(cascade: str, pictures: Elsewhere) -> dict[str, dict[str, float]]:
    """The judge's right answers by kind and by what is stated; nothing without a judge.

    What the thing is says the class noun, which is not asked: the subject is no drawing of it.
    """
    folder = cascade_folder(cascade) / FOLDER
    if not folder.is_dir():
        return {}
    judge = Judge.load(folder, usable_device(None))
    found = {}
    for kind, drawn in pictures.items():
        stated = [judge.stated(prompt) for prompt, some in drawn.items() for _ in some.tensor]
        right = judge.accuracy(torch.cat([some.tensor for some in drawn.values()]), stated)
        found[kind] = {str(name): share for name, share in right.items() if name != "concept"}
    return found


def likeness(
    pictures: Elsewhere,
    photos: Sequence[Image.Image],
    masks: Sequence[Mask],
    stage: str,
    extractor: FeatureExtractor,
) -> dict[str, float | None]:
    """How far the subject alone came in new places, percent of the way, by kind.

    The way leads from what the untouched cascade draws there to the photos among themselves. From
    the photos the subject is cut by the masks of its tuning, from the pictures by what stands out.

    Args:
        pictures: of the subject elsewhere.
        photos: of the subject.
        masks: theirs.
        stage: whose pictures are compared.
        extractor: gives the features.
    """
    find_mask = U2NetP()
    features, size = {}, 0
    for kind, drawn in pictures.items():
        of_kind = torch.cat([some.stages[stage] for some in list(drawn.values())[: len(PLACES)]])
        features[kind], size = extractor(alone(of_kind, find_mask)), of_kind.shape[-1]
    pairs = zip(photos, masks, strict=True)
    real = extractor(to_tensors([cut_out(photo, mask.image, size) for photo, mask in pairs]))
    similar = {kind: subject_similarity(found, real) for kind, found in features.items()}
    top = self_similarity(real)
    return {kind: of_the_way(value, similar[BEFORE], top) for kind, value in similar.items()}
