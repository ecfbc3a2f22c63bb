"""Prompt sources: the table and the cache answer as the encoder does."""

from collections.abc import Sequence

import pytest
import torch

from cascade.config.stage import NullText, TextConfig
from cascade.text.prompts import OnlinePrompts, PromptSource, PromptTable
from cascade.text.t5 import TextEmbedding, TextEncoder

PROMPTS = ["a photo of a dog", "cat", "a red dog on the beach"]


def _sources(encoder: TextEncoder, null: NullText) -> list[PromptSource]:
    return [
        PromptTable.build(encoder, [*PROMPTS, "cat"], TextConfig(max_length=16, null=null)),
        OnlinePrompts(encoder, TextConfig(max_length=16, null=null)),
    ]


@pytest.mark.parametrize("source", [0, 1])
def test_rows_are_the_encoders(encoder: TextEncoder, source: int) -> None:
    text = _sources(encoder, "zeros")[source].rows(["cat", "a photo of a dog", "cat"])
    expected = encoder.embed(["cat", "a photo of a dog", "cat"], TextConfig(max_length=16))
    assert torch.equal(text.mask, expected.mask)
    # Embedded in another batch: fp32 sums in another order.
    torch.testing.assert_close(text.embedding, expected.embedding, rtol=1e-5, atol=1e-6)
    assert torch.equal(text.embedding[0], text.embedding[2])


@pytest.mark.parametrize("source", [0, 1])
def test_zero_null_is_one_visible_zero_token(encoder: TextEncoder, source: int) -> None:
    text = _sources(encoder, "zeros")[source].rows([None, "a photo of a dog"])
    assert text.mask[0].tolist() == [True] + [False] * (text.mask.shape[1] - 1)
    assert (text.embedding[0] == 0).all()
    assert _sources(encoder, "zeros")[source].rows([None]).embedding.shape == (1, 1, encoder.width)


@pytest.mark.parametrize("source", [0, 1])
def test_empty_null_is_the_embedding_of_no_words(encoder: TextEncoder, source: int) -> None:
    text = _sources(encoder, "empty")[source].rows([None])
    assert torch.equal(text.embedding, encoder.embed([""], TextConfig(max_length=16)).embedding)
    assert text.embedding.abs().max() > 0


def test_table_knows_only_its_prompts(encoder: TextEncoder) -> None:
    table = PromptTable.build(encoder, PROMPTS, TextConfig(max_length=16))
    with pytest.raises(KeyError, match="a blue dog"):
        table.rows(["a blue dog"])
    with pytest.raises(ValueError, match="at least one"):
        table.rows([])


def test_table_of_nothing_has_the_null_condition(encoder: TextEncoder) -> None:
    assert PromptTable.build(encoder, [], TextConfig(max_length=16)).rows([None]).mask.all()


def test_cache_embeds_each_prompt_once_and_forgets_the_oldest(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = OnlinePrompts(encoder, TextConfig(max_length=16), cache_size=2)
    asked: list[str] = []
    embed = encoder.embed

    def noted(prompts: Sequence[str], text: TextConfig) -> TextEmbedding:
        asked.extend(prompts)
        return embed(prompts, text)

    monkeypatch.setattr(encoder, "embed", noted)
    online.rows(["cat", "cat", None])
    online.rows(["a photo of a dog", "cat"])
    assert asked == ["cat", "a photo of a dog"]
    # More prompts than the cache holds are still answered; "cat" is then forgotten.
    assert online.rows([*PROMPTS]).mask.shape[0] == 3
    assert asked == ["cat", "a photo of a dog", "a red dog on the beach"]
    online.rows(["a photo of a dog"])
    assert len(asked) == 4
    with pytest.raises(ValueError, match="cache_size"):
        OnlinePrompts(encoder, TextConfig(max_length=16), cache_size=-1)


def test_unmasked_rows_are_the_whole_padded_sequence(encoder: TextEncoder) -> None:
    online = OnlinePrompts(encoder, TextConfig(max_length=16, null="empty", masked=False))
    table = PromptTable.build(
        encoder, PROMPTS, TextConfig(max_length=16, null="empty", masked=False)
    )
    for source in (online, table):
        rows = source.rows([PROMPTS[0], None])
        assert rows.embedding.shape[1] == 16
        assert rows.mask.all()
        # The encoder's answer at the padding is part of it (DeepFloyd IF reads all 77 tokens).
        assert bool((rows.embedding[:, -1] != 0).any())
    masked = PromptTable.build(encoder, PROMPTS, TextConfig(max_length=16, null="empty")).rows(
        [PROMPTS[0]]
    )
    length = masked.embedding.shape[1]
    whole = table.rows([PROMPTS[0]]).embedding[:, :length]
    torch.testing.assert_close(whole, masked.embedding)  # padding is masked inside the encoder
