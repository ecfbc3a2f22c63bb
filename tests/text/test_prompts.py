"""Prompt sources answer as the encoder does."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from cascade.config.folders import read_stage_config
from cascade.config.stage import NullText, TextConfig
from cascade.sampling import prompt_tables
from cascade.text.encoder import TextEmbedding, TextEncoder
from cascade.text.prompts import OnlinePrompts, PromptSource, PromptTable

TEXT = TextConfig(max_length=16)
PROMPTS = ["a photo of a dog", "cat", "a red dog on the beach", "cat"]
CPU = torch.device("cpu")
ONE_LENGTH = "table of one length"
SOURCES: dict[str, Callable[[TextEncoder, TextConfig], PromptSource]] = {
    "table": lambda encoder, text: PromptTable.build(encoder, PROMPTS, text),
    ONE_LENGTH: lambda encoder, text: PromptTable.build(
        encoder, PROMPTS, text, device=CPU, one_length=True
    ),
    "online": OnlinePrompts,
}
every_source = pytest.mark.parametrize("source", SOURCES)


def _text(null: NullText, masked: bool = True) -> TextConfig:
    return TextConfig(max_length=16, null=null, masked=masked)


@every_source
def test_rows_are_the_encoders(encoder: TextEncoder, source: str) -> None:
    asked = [*PROMPTS, PROMPTS[0]]
    text = SOURCES[source](encoder, TEXT).rows(asked)
    expected = encoder.embed(asked, TEXT)
    assert torch.equal(text.mask, expected.mask)
    # Embedded in another batch: fp32 sums in another order.
    torch.testing.assert_close(text.embedding, expected.embedding, rtol=1e-5, atol=1e-6)
    assert torch.equal(text.embedding[0], text.embedding[-1])
    assert not text.embedding[~text.mask].any()


@every_source
def test_zero_null_is_one_visible_zero_token(encoder: TextEncoder, source: str) -> None:
    rows = SOURCES[source](encoder, _text("zeros")).rows
    text = rows([None, "a photo of a dog"])
    assert text.mask[0].tolist() == [True] + [False] * (text.mask.shape[1] - 1)
    assert (text.embedding[0] == 0).all()
    assert int(rows([None]).mask.sum()) == 1


@every_source
def test_empty_null_is_the_embedding_of_no_words(encoder: TextEncoder, source: str) -> None:
    text = SOURCES[source](encoder, _text("empty")).rows([None])
    expected = encoder.embed([""], TEXT).embedding
    assert torch.equal(text.embedding[:, : expected.shape[1]], expected)
    assert expected.abs().max() > 0


@every_source
@pytest.mark.parametrize("null", ["empty", "zeros"])
def test_unmasked_rows_are_the_whole_padded_sequence(
    encoder: TextEncoder, source: str, null: NullText
) -> None:
    rows = SOURCES[source](encoder, _text(null, masked=False)).rows([PROMPTS[0], None])
    assert rows.embedding.shape[1] == 16
    assert rows.mask.all()
    assert bool(rows.embedding[1].any()) == (null == "empty")
    # The encoder's answer at the padding is part of it (DeepFloyd IF reads all 77 tokens).
    assert bool((rows.embedding[0, -1] != 0).any())
    masked = encoder.embed([PROMPTS[0]], TEXT).embedding[0]  # padding is masked inside the encoder
    torch.testing.assert_close(rows.embedding[0, : len(masked)], masked)


def test_batches_are_as_long_as_their_longest_prompt_or_the_table_s(encoder: TextEncoder) -> None:
    batches: list[list[str | None]] = [["cat"], [None], [*PROMPTS]]
    lengths = {
        source: [make(encoder, TEXT).rows(batch).embedding.shape[1] for batch in batches]
        for source, make in SOURCES.items()
    }
    assert lengths[ONE_LENGTH] == [lengths["table"][-1]] * 3
    longest = [encoder.embed([text or "" for text in some], TEXT).mask.shape[1] for some in batches]
    assert lengths["table"] == lengths["online"] == longest


@pytest.mark.parametrize("source", ["table", ONE_LENGTH])
def test_a_table_knows_only_its_prompts(encoder: TextEncoder, source: str) -> None:
    table = SOURCES[source](encoder, TEXT)
    with pytest.raises(KeyError, match="a blue dog"):
        table.rows(["a blue dog"])
    with pytest.raises(ValueError, match="at least one"):
        table.rows([])


def test_a_table_of_nothing_has_the_null_text(encoder: TextEncoder) -> None:
    assert PromptTable.build(encoder, [], TEXT).rows([None]).mask.all()


def test_many_captions_take_several_batches_and_the_same_again(encoder: TextEncoder) -> None:
    prompts = [f"a photo of dog {number}" for number in range(70)]
    rows = PromptTable.build(encoder, prompts, TEXT).rows(prompts)
    expected = encoder.embed(prompts, TEXT)
    assert torch.equal(rows.mask, expected.mask)
    # As above.
    torch.testing.assert_close(rows.embedding, expected.embedding, rtol=1e-5, atol=1e-6)
    again = PromptTable.build(encoder, prompts, TEXT).rows(prompts)
    assert torch.equal(again.embedding, rows.embedding)


def test_a_table_in_bfloat16_answers_in_float32(encoder: TextEncoder) -> None:
    whole, half = (
        PromptTable.build(encoder, PROMPTS, TEXT, dtype).rows(PROMPTS).embedding
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.float32
    assert torch.equal(half, whole.bfloat16().float())


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
    assert online.rows(PROMPTS).mask.shape[0] == 4
    assert asked == ["cat", "a photo of a dog", "a red dog on the beach"]
    online.rows(["a photo of a dog"])
    assert len(asked) == 4


def test_for_sampling_a_prompt_is_embedded_as_if_there_were_no_others(
    encoder: TextEncoder, tiny_cascade: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = read_stage_config(tiny_cascade / "base16")
    sizes: list[int] = []
    embed = encoder.embed

    def noted(prompts: Sequence[str], text: TextConfig) -> TextEmbedding:
        sizes.append(len(prompts))
        return embed(prompts, text)

    monkeypatch.setattr(encoder, "embed", noted)
    together = prompt_tables(encoder, PROMPTS, [stage])[stage.text]
    assert set(sizes) == {1}
    online = OnlinePrompts(encoder, stage.text)
    for prompt in PROMPTS:
        alone = prompt_tables(encoder, [prompt], [stage])[stage.text].rows([prompt]).embedding
        assert torch.equal(together.rows([prompt]).embedding, alone)
        assert torch.equal(online.rows([prompt]).embedding, alone)


def test_threads_share_a_cache_and_the_encoder_works_for_one_of_them_at_a_time(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    online = OnlinePrompts(encoder, TEXT, cache_size=2)
    expected = {prompt: online.rows([prompt]).embedding for prompt in PROMPTS}
    embed, busy = encoder.embed, threading.Lock()
    wrong: list[str] = []

    def one_at_a_time(prompts: Sequence[str], text: TextConfig) -> TextEmbedding:
        if busy.locked():
            wrong.append("two at a time")
        with busy:
            return embed(prompts, text)

    monkeypatch.setattr(encoder, "embed", one_at_a_time)

    def ask(first: int) -> None:
        for turn in range(20):
            prompt = PROMPTS[(first + turn) % len(PROMPTS)]
            if not torch.equal(online.rows([prompt]).embedding, expected[prompt]):
                wrong.append(prompt)

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
