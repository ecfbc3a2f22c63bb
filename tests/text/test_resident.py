"""The table of every caption answers as the encoder does, in one shape."""

import pytest
import torch

from cascade.config.stage import NullText, TextConfig
from cascade.text.prompts import PromptTable
from cascade.text.resident import ResidentPrompts, table_bytes
from cascade.text.t5 import TextEncoder

PROMPTS = ["a photo of a dog", "cat", "a red dog on the beach", "cat"]
CPU = torch.device("cpu")


def _built(
    encoder: TextEncoder,
    prompts: list[str],
    null: NullText = "zeros",
    masked: bool = True,
    dtype: torch.dtype = torch.float32,
) -> ResidentPrompts:
    text = TextConfig(max_length=16, null=null, masked=masked)
    return ResidentPrompts.build(encoder, prompts, text, dtype, CPU)


@pytest.mark.parametrize("null", ["zeros", "empty"])
@pytest.mark.parametrize("masked", [True, False])
def test_rows_are_those_of_the_prompt_table(
    encoder: TextEncoder, null: NullText, masked: bool
) -> None:
    asked = ["cat", None, *PROMPTS]
    rows = _built(encoder, PROMPTS, null, masked).rows(asked)
    expected = PromptTable.build(
        encoder, PROMPTS, TextConfig(max_length=16, null=null, masked=masked)
    ).rows(asked)
    assert torch.equal(rows.mask, expected.mask)  # the longest prompt is asked for
    # Embedded in another batch: fp32 sums in another order.
    torch.testing.assert_close(rows.embedding, expected.embedding, rtol=1e-5, atol=1e-6)
    assert torch.equal(rows.embedding[0], rows.embedding[5])


def test_every_batch_has_one_shape(encoder: TextEncoder) -> None:
    table = _built(encoder, PROMPTS)
    shapes = {table.rows(asked).embedding.shape[1:] for asked in (["cat"], [None], PROMPTS)}
    assert len(shapes) == 1
    short = table.rows(["cat"])
    assert int(short.mask.sum()) < short.mask.shape[1]
    assert not short.embedding[~short.mask].any()


def test_many_captions_take_several_batches(encoder: TextEncoder) -> None:
    prompts = [f"a photo of dog {number}" for number in range(300)]
    table = _built(encoder, prompts)
    rows = table.rows(prompts)
    expected = encoder.embed(prompts[290:], TextConfig(max_length=16))
    length = expected.mask.shape[1]
    assert torch.equal(rows.mask[290:, :length], expected.mask)
    # As above.
    torch.testing.assert_close(
        rows.embedding[290:, :length], expected.embedding, rtol=1e-5, atol=1e-6
    )
    again = _built(encoder, prompts).rows(prompts[7:9])
    assert torch.equal(again.embedding, rows.embedding[7:9])


def test_a_table_in_bfloat16_answers_in_float32(encoder: TextEncoder) -> None:
    whole, half = (
        _built(encoder, PROMPTS, dtype=dtype).rows(PROMPTS).embedding
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert half.dtype == torch.float32
    assert torch.equal(half, whole.bfloat16().float())
    assert table_bytes(PROMPTS, 16, encoder.width, torch.bfloat16) == 4 * 16 * 16 * 2


def test_it_knows_only_its_prompts(encoder: TextEncoder) -> None:
    table = _built(encoder, PROMPTS)
    with pytest.raises(KeyError, match="a blue dog"):
        table.rows(["a blue dog"])
    with pytest.raises(ValueError, match="at least one"):
        table.rows([])
    assert _built(encoder, []).rows([None]).mask.all()
