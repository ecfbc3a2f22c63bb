"""T5's tokenizer: a SentencePiece vocabulary, `</s>` behind every prompt, zeros for padding.

Words may be lost on the way to the network, behind the token limit or in no vocabulary; they are
reported here.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from sentencepiece import SentencePieceProcessor

from cascade.config.stage import TextConfig
from cascade.errors import UserError
from cascade.launch import Launch
from cascade.progress import warn
from cascade.text.cleaning import clean

PAD: Final = 0
EOS: Final = 1
UNK: Final = 2
SPACE: Final = "\u2581"  # SentencePiece's visible blank; a piece that has it in front begins a word

SAMPLED: Final = 10_000
"""Captions of a data set that are looked at."""
_EACH: Final = 20  # prompts that are reported one by one; of more, how many
_EXAMPLES: Final = 3
_WORDS: Final = 8  # of a prompt that are quoted

_Item = TypeVar("_Item")


class Tokenizer:
    """Text to T5 ids.

    Ordinary text never yields a special token: `</s>` or `<pad>` written in a prompt are letters.
    """

    def __init__(self, path: Path) -> None:
        """Read a SentencePiece model, T5's `spiece.model`."""
        if not path.is_file():
            raise UserError(f"There is no vocabulary {path}; copy spiece.model of the T5 there.")
        try:
            self._model = SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError):
            raise UserError(f"{path} is no SentencePiece model; fetch the file again.") from None
        special = (self._model.pad_id(), self._model.eos_id(), self._model.unk_id())
        if special != (PAD, EOS, UNK):
            raise UserError(
                f"{path} has pad, eos, unk = {special} instead of T5's {(PAD, EOS, UNK)}; "
                "use the vocabulary that belongs to the encoder."
            )

    def __len__(self) -> int:
        """Return the number of pieces; a T5's embedding table may have more rows (extra ids)."""
        return int(self._model.get_piece_size())

    def piece(self, index: int) -> str:
        """Return the piece of one id, with `SPACE` in front where it begins a word."""
        return str(self._model.id_to_piece(index))

    def ids(self, text: str) -> list[int]:
        """Return the ids of `text` alone, without `</s>` and without truncation."""
        return [int(index) for index in self._model.encode(text)]

    def encode(self, text: str, max_length: int) -> list[int]:
        """Return the ids of `text` with `</s>`, cut to `max_length` ids, `</s>` included.

        Raises:
            ValueError: `max_length` leaves no room for `</s>`.
        """
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}; one id is needed for </s>.")
        return [*self.ids(text)[: max_length - 1], EOS]


@dataclass(frozen=True)
class LostWords:
    """Words of a prompt that the encoder does not see.

    Attributes:
        cut: those behind the token limit.
        unknown: those with characters that the vocabulary lacks.
    """

    cut: tuple[str, ...]
    unknown: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.cut or self.unknown)

    def __str__(self) -> str:
        """Return half a sentence about them."""
        parts = []
        if self.cut:
            parts.append(f"is too long and loses '{_quoted(self.cut)}'")
        if self.unknown:
            parts.append(f"has words that the vocabulary lacks, '{_quoted(self.unknown)}'")
        return " and ".join(parts)


def lost_words(tokenizer: Tokenizer, prompt: str, text: TextConfig) -> LostWords:
    """Find the words of a prompt that are lost."""
    words = clean(prompt, text.cleaning).split()
    kept = len(words)
    if len(tokenizer.ids(" ".join(words))) >= text.max_length:
        fits = (len(tokenizer.ids(" ".join(words[: n + 1]))) < text.max_length for n in range(kept))
        kept = next(n for n, fitting in enumerate(fits) if not fitting)
    unknown = tuple(word for word in words[:kept] if UNK in tokenizer.ids(word))
    return LostWords(tuple(words[kept:]), unknown)


def report_lost(tokenizer: Tokenizer, prompts: Iterable[str], text: TextConfig) -> None:
    """Warn, once per run, of what is lost of each prompt; where there are many, of how many."""
    if not Launch.read().is_main:
        return
    distinct = list(dict.fromkeys(prompts))
    lossy = [(prompt, lost) for prompt in distinct if (lost := lost_words(tokenizer, prompt, text))]
    for line in _lines(lossy, len(distinct), text.max_length):
        warn(line)


def sampled(items: Sequence[_Item]) -> Sequence[_Item]:
    """Take evenly as many of a dataset's captions as are worth looking at."""
    return items[:: max(1, len(items) // SAMPLED)]


def _lines(lossy: list[tuple[str, LostWords]], count: int, max_length: int) -> Iterator[str]:
    limit = f"({max_length} tokens are kept)"
    if count <= _EACH:
        for prompt, lost in lossy:
            yield f"The prompt '{_quoted(prompt.split())}' {lost}{f' {limit}' if lost.cut else ''}."
    elif lossy:
        cut = sum(bool(lost.cut) for _, lost in lossy)
        unknown = sum(bool(lost.unknown) for _, lost in lossy)
        examples = (f"'{_quoted(prompt.split())}' {lost}" for prompt, lost in lossy[:_EXAMPLES])
        yield (
            f"Of {count} captions {cut} are too long {limit} and {unknown} have words that the "
            f"vocabulary lacks, for instance {'; '.join(examples)}."
        )


def _quoted(words: Collection[str]) -> str:
    first = list(words)[:_WORDS]
    return " ".join(first) + (" ..." if len(words) > len(first) else "")
