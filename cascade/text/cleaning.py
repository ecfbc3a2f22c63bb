r"""Cleaning of prompts before they are tokenized; a property of a checkpoint.

Every path from a prompt to the encoder goes through `clean`, in training and in sampling alike.

DeepFloyd IF's networks have seen captions without addresses, markup, handles, serial numbers, file
names and the phrases of web shops, and expect prompts treated likewise. The rules are ordered, each
works on what the ones before have left, and some are odd (only the scheme of an unknown address
goes, `b` and `jpg` vanish from the middle of a line): the weights know the odd results, so they are
kept. Markup and broken encodings are defined by the libraries IF uses, Beautiful Soup and ftfy.
"""

import html
import re
import warnings
from collections.abc import Iterable
from functools import lru_cache
from re import Pattern
from typing import Final, TypeAlias, assert_never
from urllib.parse import unquote_plus

from cascade.config.stage import Cleaning
from cascade.errors import UserError

_Rule: TypeAlias = tuple[Pattern[str], str]


def _rules(*pairs: tuple[str, str]) -> tuple[_Rule, ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in pairs)


# Captions whose cleaned text is remembered: a shard's, for each is cleaned to be found, counted and
# embedded, and IF's rules take longer than all the rest of it.
_LATEST: Final = 2**14

_FILE: Final = "(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)"
_DOMAIN: Final = r"[a-z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/\-]*\b/?(?!@)"
_AFTER_SCHEME: Final = ":(?:/{1,3}|[a-z0-9%])"

_ADDRESSES: Final = _rules(
    ("<person>", "person"),  # the mark of a name that a data set has hidden
    (rf"\bhttps?{_AFTER_SCHEME}|\b{_DOMAIN}", ""),
    (rf"\bwww{_AFTER_SCHEME}|\b{_DOMAIN}", ""),
)
_DASHES: Final = (
    "\\-\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40"
    "\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63\uff0d"
)
_QUOTES: Final = dict.fromkeys(map(ord, "`\u00b4\u00ab\u00bb\u201c\u201d\u00a8"), '"') | (
    dict.fromkeys(map(ord, "\u2018\u2019"), "'")
)
_CHARACTERS: Final = _rules(
    (r"@\w+\b", ""),  # handles
    # CJK strokes, phonetic extensions, enclosed letters, squared words, ideographs, hexagrams.
    ("[\u31c0-\u9fff]+", ""),
    (f"[{_DASHES}]+", "-"),
)
_MARKS: Final = _rules(
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),  # a backslash and an n, where a line break was escaped twice
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.{_FILE}", ""),
    ("[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
_JOINTS: Final = re.compile("[-_]")
_SERIALS_AND_SHOPS: Final = _rules(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b{_FILE}(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    ("\\b\\d+\\.?\\d*[x\u0445\u00d7]\\d+\\.?\\d*\\b", ""),  # sizes: 20x30, also in Cyrillic
)
_SPACING: Final = _rules(
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)
_EDGES: Final = _rules(
    (r"\A[\"']([\w\W]+)[\"']\Z", r"\1"),
    (r"\A['_,\-:;]", ""),
    (r"['_,\-:+]\Z", ""),
    (r"\A\.\S+\Z", ""),
)


_SIDE: Final = re.compile(r"\b(left|right)(most|hand|ward|wards)?\b", re.IGNORECASE)


def clean(text: str, cleaning: Cleaning) -> str:
    """Return a prompt as the encoder of a checkpoint expects it.

    Args:
        text: a prompt.
        cleaning: `none` trims and collapses white space, `lower` lower-cases as well, `deepfloyd`
            applies IF's rules, which delete whole words, DreamBooth identifiers such as `xyz123`
            among them; `identifier.py` guards against that.
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
            return _clean_as_if(text)
        case _:
            assert_never(cleaning)


def names_side(prompt: str | None) -> bool:
    """Report whether a prompt speaks of left or right, which a mirrored picture would belie."""
    return prompt is not None and _SIDE.search(prompt) is not None


@lru_cache(maxsize=_LATEST)
def _clean_as_if(text: str) -> str:
    """Apply IF's rules twice, as IF does: the first pass can lay a second match bare."""
    return _clean_once(_clean_once(text))


def _clean_once(text: str) -> str:
    """Apply one pass of IF's rules."""
    text = _apply(_ADDRESSES, unquote_plus(text).strip().lower())
    text = _apply(_CHARACTERS, _without_markup(text)).translate(_QUOTES)
    text = _apply(_MARKS, text)
    if len(_JOINTS.findall(text)) > 3:  # this-is-my-cute-cat
        text = _JOINTS.sub(" ", text)
    text = html.unescape(html.unescape(_repaired(text)))
    for rules in (_SERIALS_AND_SHOPS, _SPACING, _EDGES):
        text = _apply(rules, text)
    return text.strip()


def _apply(rules: Iterable[_Rule], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text


def _without_markup(text: str) -> str:
    if "<" not in text and "&" not in text:
        return text  # no tag and no entity: nothing to parse, and parsing costs more than the rest
    # Imported here, as ftfy below, since most captions need neither.
    from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MarkupResemblesLocatorWarning)
        return str(BeautifulSoup(text, features="html.parser").text)


def _repaired(text: str) -> str:
    """Undo broken encodings (mojibake)."""
    if text.isascii() and text.isprintable() and "&" not in text:
        return text
    import ftfy

    return ftfy.fix_text(text)
