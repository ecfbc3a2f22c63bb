"""Identifiers for DreamBooth: rare tokens on which the base model has only a weak prior.

DreamBooth section 3.2: draw tokens of at most three letters from T5's ids 5000 to 10000, uniformly
and without replacement, and turn them back into text. What the paper leaves out is checked here:
the text must come through the checkpoint's cleaning and come back as the same token in a prompt.
"""

import random
import re
from collections.abc import Collection
from typing import Final

from cascade.config.stage import Cleaning
from cascade.errors import UserError
from cascade.text.cleaning import clean
from cascade.text.tokenizer import SPACE, UNK, Tokenizer

T5_RARE: Final = (5000, 10000)  # DreamBooth section 3.2, both ends included
LONGEST: Final = 3  # tokens of an identifier, DreamBooth section 3.2: k = {1, .., 3}
_LETTERS: Final = re.compile(r"[^\W\d_]{1,3}")


def rare_range(tokenizer: Tokenizer) -> tuple[int, int]:
    """Return the first and the last id to draw identifiers from.

    The paper's range needs a vocabulary of T5's size. SentencePiece orders pieces by frequency,
    so the last tenth of a smaller vocabulary holds its rarest ones.
    """
    size = len(tokenizer)
    return T5_RARE if size > T5_RARE[1] else (size - size // 10, size - 1)


def find_identifiers(
    tokenizer: Tokenizer,
    cleaning: Cleaning,
    count: int,
    seed: int,
    lowest: int | None = None,
    highest: int | None = None,
    taken: Collection[str] = (),
) -> list[str]:
    """Draw `count` distinct identifiers, each a single token in the prompt "a {identifier} dog".

    Args:
        lowest: first id to draw from; `rare_range` when omitted.
        highest: last id to draw from; `rare_range` when omitted.
        taken: identifiers that name other subjects already.
    """
    first, last = rare_range(tokenizer)
    first, last = first if lowest is None else lowest, last if highest is None else highest
    if not 0 <= first <= last < len(tokenizer):
        raise UserError(
            f"The ids {first} to {last} are not in the vocabulary of {len(tokenizer)} pieces; "
            "give a range inside it."
        )
    usable = [
        text
        for index in range(first, last + 1)
        if (text := _identifier(tokenizer, cleaning, index)) and text not in taken
    ]
    if len(usable) < count:
        raise UserError(
            f"The ids {first} to {last} hold {len(usable)} usable identifiers, {count} were asked "
            "for; ask for fewer."
        )
    return random.Random(seed).sample(usable, count)


def check_identifier(
    tokenizer: Tokenizer, cleaning: Cleaning, identifier: str, class_noun: str
) -> None:
    """Check that `identifier` reaches the encoder unharmed in "a {identifier} {class_noun}".

    One to three known tokens are fine; see `is_common` for ordinary words.
    """
    hint = "take one that 'cascade identifiers' finds"
    if not identifier.strip():
        raise UserError(f"The identifier is empty; {hint}.")
    if clean(identifier, cleaning) == clean(class_noun, cleaning):
        raise UserError(f"The identifier '{identifier}' is the class noun itself; {hint}.")
    cleaned, bare = clean(identifier, cleaning), identifier.strip()
    prompt = clean(f"a {bare} {class_noun}", cleaning)
    noun = clean(class_noun, cleaning)
    if not cleaned or prompt != f"a {cleaned} {noun}":
        raise UserError(
            f"The checkpoint's text cleaning '{cleaning}' deletes or mangles the identifier "
            f"'{bare}': 'a {bare} {class_noun}' becomes '{prompt}'; {hint}."
        )
    ids = tokenizer.ids(cleaned)
    names = " ".join(tokenizer.piece(index) for index in ids)
    if UNK in ids:
        raise UserError(
            f"The identifier '{bare}' has characters the vocabulary does not know ({names}); "
            f"{hint}."
        )
    if len(ids) > LONGEST:
        raise UserError(
            f"The identifier '{bare}' is split into {len(ids)} pieces ({names}), at most {LONGEST} "
            f"work; {hint}."
        )


def is_common(tokenizer: Tokenizer, cleaning: Cleaning, identifier: str) -> bool:
    """Report whether an identifier is one frequent piece, so likely an ordinary word."""
    ids = tokenizer.ids(clean(identifier, cleaning))
    return len(ids) == 1 and ids[0] < rare_range(tokenizer)[0]


def names(tokenizer: Tokenizer, cleaning: Cleaning, identifier: str, prompt: str) -> bool:
    """Report whether the identifier's tokens stand in a prompt, one after another."""
    wanted = tokenizer.ids(clean(identifier, cleaning))
    ids = tokenizer.ids(clean(prompt, cleaning))
    return any(ids[i : i + len(wanted)] == wanted for i in range(len(ids) - len(wanted) + 1))


def _identifier(tokenizer: Tokenizer, cleaning: Cleaning, index: int) -> str | None:
    """Return the text of one piece if it can serve as an identifier."""
    piece = tokenizer.piece(index)
    text = piece.removeprefix(SPACE)
    if not piece.startswith(SPACE) or not _LETTERS.fullmatch(text):
        return None
    if clean(text, cleaning) != text:
        return None
    before, after = tokenizer.ids("a"), tokenizer.ids("dog")
    in_context = tokenizer.ids(clean(f"a {text} dog", cleaning))
    return text if in_context == [*before, index, *after] else None
