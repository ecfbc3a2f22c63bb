"""The T5 tokenizer: a SentencePiece vocabulary, `</s>` behind every prompt, zeros for padding."""

from functools import cached_property
from pathlib import Path
from typing import Final

from sentencepiece import SentencePieceProcessor

from cascade.errors import UserError

PAD: Final = 0
EOS: Final = 1
UNK: Final = 2
SPACE: Final = "\u2581"  # SentencePiece's visible blank; a piece that has it in front begins a word


class Tokenizer:
    """Text to T5 ids and back.

    Ordinary text never yields a special token: `</s>` or `<pad>` written in a prompt are letters.
    """

    def __init__(self, path: Path) -> None:
        """Read a vocabulary.

        Args:
            path: a SentencePiece model, T5's `spiece.model`.

        Raises:
            UserError: there is no such file, it is damaged, or its special ids are not T5's.
        """
        if not path.is_file():
            raise UserError(f"There is no vocabulary {path}; copy spiece.model of the T5 there.")
        self.path = path
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

    @cached_property
    def pieces(self) -> tuple[str, ...]:
        """Every piece of the vocabulary, in the order of the ids."""
        return tuple(self.piece(index) for index in range(len(self)))

    def __len__(self) -> int:
        """The number of pieces; a T5's embedding table may have more rows (extra ids, padding)."""
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

    def decode(self, ids: list[int]) -> str:
        """Return the text of `ids`."""
        return str(self._model.decode(ids))
