"""What is done to a prompt before it is tokenised; a property of a checkpoint.

Every path from a prompt to the encoder goes through `clean`, in training and in sampling alike.
"""

from typing import assert_never

from cascade.config.stage import Cleaning
from cascade.errors import UserError
from cascade.text.deepfloyd import clean_once


def clean(text: str, cleaning: Cleaning) -> str:
    """Return `text` as the encoder of a checkpoint expects it.

    Args:
        text: a prompt.
        cleaning: `none` trims and collapses white space, `lower` lower-cases as well, `deepfloyd`
            removes what DeepFloyd IF's captions were stripped of, in two passes: the first can lay
            a second match bare. It deletes whole words, DreamBooth identifiers such as `xyz123`
            among them; `identifier.py` guards against that.

    Raises:
        UserError: the prompt came in bytes that are no text.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"The prompt {text!a} has bytes that are no text; give it in UTF-8."
        ) from None
    match cleaning:
        case "none":
            return " ".join(text.split())
        case "lower":
            return " ".join(text.lower().split())
        case "deepfloyd":
            return clean_once(clean_once(text))
        case _:
            assert_never(cleaning)
