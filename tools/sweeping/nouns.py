"""Whether a classifier sees in a picture what its prompt names.

Shapes: `B` pictures, `C H W` pixels in [-1, 1].
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from cascade.evaluate.features import EfficientNetLite0

# The DreamBooth data set's nouns among the 1000 classes of ILSVRC 2012, by their numbers; "toy",
# "can" and "cartoon" have none.
CLASSES: Mapping[str, tuple[int, ...]] = {
    "backpack": (414,),
    "boot": (514,),  # cowboy boot
    "bowl": (659, 809),  # mixing bowl, soup bowl
    "candle": (470,),
    "cat": tuple(range(281, 286)),
    "clock": (409, 530, 892),  # analog, digital, wall clock
    "dog": tuple(range(151, 269)),
    "glasses": (836, 837),  # sunglass, sunglasses
    "sneaker": (770,),  # running shoe
    "stuffed animal": (850,),  # teddy
    "teapot": (849,),
    "vase": (883,),
}


def share_seen(pictures: Tensor, noun: str, classifier: EfficientNetLite0) -> float | None:
    """Return the share of pictures B C H W whose likeliest class has the noun.

    Returns:
        A share in [0, 1], or None where the classifier does not know the noun.
    """
    if noun not in CLASSES:
        return None
    seen = classifier.logits(classifier(pictures)).argmax(1)
    return float(torch.isin(seen, torch.tensor(CLASSES[noun])).double().mean())
