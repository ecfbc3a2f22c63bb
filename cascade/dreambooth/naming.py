"""The subject's name, and the prompts that use it."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from cascade.config.dreambooth import DreamBoothConfig
from cascade.config.stage import SubjectConfig, TextConfig
from cascade.errors import UserError
from cascade.progress import warn
from cascade.text.cleaning import clean
from cascade.text.identifier import check_identifier, find_identifiers, is_common, names
from cascade.text.tokenizer import Tokenizer, lost_words

_ARTICLE: Final = re.compile(r"(a|an|the)\s+", re.IGNORECASE)


def settle_names(
    config: DreamBoothConfig,
    conventions: Sequence[TextConfig],
    known: Sequence[SubjectConfig],
    tokenizer: Tokenizer,
) -> SubjectConfig:
    """Settle identifier and class noun.

    Args:
        tokenizer: the cascade's, which the identifier must survive.
    """
    noun, cleaning = _noun(config.class_noun), conventions[0].cleaning
    taken = {subject.identifier: subject.class_noun for subject in known}
    if config.identifier is None:
        (identifier,) = find_identifiers(
            tokenizer, cleaning, count=1, seed=config.seed, taken=taken
        )
    else:
        identifier = config.identifier.strip()
        if taken.get(identifier, noun) != noun:
            raise UserError(
                f"The cascade calls a {taken[identifier]} '{identifier}' already; give another "
                "--identifier, or none to have one picked."
            )
    for text in conventions:
        check_identifier(tokenizer, text.cleaning, identifier, noun)
    if is_common(tokenizer, cleaning, identifier):
        warn(
            f"The identifier '{identifier}' is a common word; what it has meant mixes with the "
            "subject. 'cascade identifiers' finds rare ones.",
        )
    named = {"identifier": identifier, "class_noun": noun}
    return SubjectConfig.parse(named, "the subject's name")


def _noun(given: str) -> str:
    noun = given.strip()
    if not noun:
        raise UserError("The class noun is empty; give the subject's class, for instance 'dog'.")
    bare = _ARTICLE.sub("", noun, count=1) if _ARTICLE.match(noun) else noun
    if bare != noun:
        raise UserError(f"The class noun '{noun}' begins with an article; give '{bare}'.")
    return noun


def fill(template: str, subject: SubjectConfig) -> str:
    """Put the subject's names into a prompt, in place of {identifier} and {class_noun} alone."""
    values = {"{identifier}": subject.identifier, "{class_noun}": subject.class_noun}
    parts = re.split("|".join(map(re.escape, values)), template)
    if any(brace in part for part in parts for brace in "{}"):
        raise UserError(
            f"The prompt '{template}' has a placeholder that is not known; "
            "use {identifier} and {class_noun}."
        )
    return re.sub("|".join(map(re.escape, values)), lambda found: values[found[0]], template)


def require_named(
    prompt: str, subject: SubjectConfig, conventions: TextConfig, tokenizer: Tokenizer
) -> None:
    """Refuse an instance prompt that does not name the subject."""
    identifier, cleaning = subject.identifier, conventions.cleaning
    if names(tokenizer, cleaning, identifier, prompt):
        return
    before = re.search(rf"([^\W\d_]\w*)\s+{re.escape(subject.class_noun)}\b", prompt)
    guess = before[1] if before and not _ARTICLE.match(f"{before[1]} ") else None
    other = f", or give --identifier {guess} if that is its name" if guess else ""
    raise UserError(
        f"The instance prompt '{prompt}' does not name the subject; put {{identifier}} (here "
        f"'{identifier}') into it as a word of its own{other}."
    )


def require_kept(
    prompts: Iterable[str],
    subject: SubjectConfig,
    conventions: Iterable[TextConfig],
    tokenizer: Tokenizer,
) -> None:
    """Refuse prompts of which the encoder does not see the identifier or the class noun."""
    for text in conventions:
        called = clean(f"{subject.identifier} {subject.class_noun}", text.cleaning).split()
        for prompt in prompts:
            lost = lost_words(tokenizer, prompt, text)
            gone = [word for word in called if word in (*lost.cut, *lost.unknown)]
            if gone:
                raise UserError(
                    f"The prompt '{prompt}' {lost}: the encoder would not see '{gone[0]}'; "
                    "say it shorter, or in words of its vocabulary."
                )
