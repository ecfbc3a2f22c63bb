"""Words of a prompt that never reach the network: behind the token limit, or in no vocabulary."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from cascade.config.stage import TextConfig
from cascade.launch import Launch
from cascade.progress import warn
from cascade.text.cleaning import clean
from cascade.text.tokenizer import UNK, Tokenizer

SAMPLED: Final = 10_000
"""Captions of a dataset that are looked at."""
_EACH: Final = 20  # prompts that are told one by one; of more, how many
_EXAMPLES: Final = 3
_WORDS: Final = 8  # of a prompt that are told


@dataclass(frozen=True)
class Lost:
    """What the encoder does not see of a prompt.

    Attributes:
        cut: the words behind the token limit.
        unknown: the words with characters that the vocabulary lacks.
    """

    cut: tuple[str, ...]
    unknown: tuple[str, ...]

    def __bool__(self) -> bool:
        """Whether anything is lost."""
        return bool(self.cut or self.unknown)

    def __str__(self) -> str:
        """Say it in half a sentence."""
        parts = []
        if self.cut:
            parts.append(f"is too long and loses '{_shown(self.cut)}'")
        if self.unknown:
            parts.append(f"has words that the vocabulary lacks, '{_shown(self.unknown)}'")
        return " and ".join(parts)


def lost_words(tokenizer: Tokenizer, prompt: str, text: TextConfig) -> Lost:
    """Find the words of a prompt that are lost."""
    words = clean(prompt, text.cleaning).split()
    kept = len(words)
    if len(tokenizer.ids(" ".join(words))) >= text.max_length:
        fits = (len(tokenizer.ids(" ".join(words[: n + 1]))) < text.max_length for n in range(kept))
        kept = next(n for n, fitting in enumerate(fits) if not fitting)
    unknown = tuple(word for word in words[:kept] if UNK in tokenizer.ids(word))
    return Lost(tuple(words[kept:]), unknown)


def tell_lost(tokenizer: Tokenizer, prompts: Iterable[str], text: TextConfig) -> None:
    """Say on the error stream, once per run, what is lost of prompts; of many, of how many."""
    if not Launch.read().first:
        return
    distinct = list(dict.fromkeys(prompts))
    told = [(prompt, lost) for prompt in distinct if (lost := lost_words(tokenizer, prompt, text))]
    for line in _lines(told, len(distinct), text.max_length):
        warn(line)


def _lines(told: list[tuple[str, Lost]], count: int, max_length: int) -> Iterator[str]:
    limit = f"({max_length} tokens are kept)"
    if count <= _EACH:
        for prompt, lost in told:
            yield f"The prompt '{_shown(prompt.split())}' {lost}{f' {limit}' if lost.cut else ''}."
    elif told:
        cut = sum(bool(lost.cut) for _, lost in told)
        unknown = sum(bool(lost.unknown) for _, lost in told)
        shown = (f"'{_shown(prompt.split())}' {lost}" for prompt, lost in told[:_EXAMPLES])
        yield (
            f"Of {count} captions {cut} are too long {limit} and {unknown} have words that the "
            f"vocabulary lacks, for instance {'; '.join(shown)}."
        )


def _shown(words: Collection[str]) -> str:
    first = list(words)[:_WORDS]
    return " ".join(first) + (" ..." if len(words) > len(first) else "")
