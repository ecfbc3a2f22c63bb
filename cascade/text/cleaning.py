"""What is done to a prompt before it is tokenised; a property of a checkpoint.

`deepfloyd` is for checkpoints trained on captions cleaned as DeepFloyd IF's were: lower case,
without addresses, markup, handles, brackets and serial numbers, and cleaned twice because the
first pass can lay a second match bare. It deletes whole words, DreamBooth identifiers such as
`xyz123` among them; `identifier.py` guards against that. It is written from that behaviour, not
from IF's program, so unusual captions (shop slang, file names) may come out differently.
"""

import html
import re
import unicodedata
from typing import Final, Literal, TypeAlias, assert_never

Cleaning: TypeAlias = Literal["none", "lower", "deepfloyd"]

_ADDRESS: Final = re.compile(r"(?:https?://|www\.)\S+|\b[\w-]+\.(?:com|net|org|co|ru)\b\S*")
_MARKUP: Final = re.compile(r"<[^<>]+>")
_HANDLE: Final = re.compile(r"@\w+")
_NUMBER_SIGN: Final = re.compile(r"#\d+")
# Words that look like serial numbers: jc6640, and any that changes between letters and digits at
# least twice, such as jc6640vc, 66vc23, p3r5on.
_SERIAL: Final = re.compile(
    r"\b[a-zA-Z]{1,3}\d{3,15}\b|\b(?:[a-zA-Z]+\d+[a-zA-Z]+|\d+[a-zA-Z]+\d+)[a-zA-Z\d]*\b"
)
_MARKS: Final = frozenset("#@&*~|/\\()[]{}<>®™©•·º½¾¿¡§")
# Curly, angular and accent-like quotation marks.
_QUOTES: Final = dict.fromkeys(map(ord, "\u2018\u2019"), "'") | dict.fromkeys(
    map(ord, "\u201c\u201d\u00ab\u00bb\u00b4\u00a8`"), '"'
)
_EDGE: Final = " \"'_,-:;+"


def clean(text: str, cleaning: Cleaning) -> str:
    """Return `text` as the encoder of a checkpoint expects it.

    Args:
        text: a prompt.
        cleaning: `none` trims and collapses white space, `lower` lower-cases as well, `deepfloyd`
            removes what DeepFloyd IF's captions were stripped of.
    """
    match cleaning:
        case "none":
            return " ".join(text.split())
        case "lower":
            return " ".join(text.lower().split())
        case "deepfloyd":
            return _strip(_strip(text))
        case _:
            assert_never(cleaning)


def _strip(text: str) -> str:
    text = html.unescape(html.unescape(text)).lower()
    for pattern in (_ADDRESS, _MARKUP, _HANDLE, _NUMBER_SIGN):
        text = pattern.sub(" ", text)
    text = "".join(map(_plain, unicodedata.normalize("NFKC", text.translate(_QUOTES))))
    text = _SERIAL.sub(" ", text)
    return " ".join(text.split()).strip(_EDGE)


def _plain(character: str) -> str:
    """One character's stand-in: a hyphen for every dash, a blank for marks that say nothing."""
    if character in _MARKS:
        return " "
    return "-" if unicodedata.category(character) == "Pd" else character
