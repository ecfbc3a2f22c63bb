"""Stores of embeddings: what goes in comes out, interrupted or not; nothing else is accepted."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from cascade.config.stage import NullText, TextConfig
from cascade.errors import UserError
from cascade.launch import NEEDED
from cascade.text.captions import read_captions
from cascade.text.embed import Embedder, Share, fill
from cascade.text.encoder import TextEmbedding, TextEncoder
from cascade.text.files import EncoderFiles
from cascade.text.prompts import OnlinePrompts, PromptTable, open_text
from cascade.text.store import KEY_BYTES, EmbeddingStore, Index

CAPTIONS = ["a photo of a dog", "cat", "a red dog on the beach", "a  Photo of a dog", "a blue cat"]
DISTINCT = 5  # two captions are one once they are cleaned, and there is the empty one

Fill = Callable[..., EmbeddingStore]
TEXT = TextConfig(max_length=16, cleaning="lower")
UNMASKED = TEXT.model_copy(update={"masked": False})


@pytest.fixture
def filled(encoder_folder: Path, tmp_path: Path) -> Fill:
    """Fill a store in a temporary folder and open it."""

    def filled(
        captions: Sequence[str] = CAPTIONS, name: str = "store", **changes: object
    ) -> EmbeddingStore:
        settings: dict[str, object] = {
            "text": TEXT,
            "mode": "float32",
            "device": "cpu",
            "batch_size": 2,
            "share": Share(),
            "shard_bytes": 1,  # every batch is a shard
        } | changes
        sharing = {key: settings.pop(key) for key in ("share", "shard_bytes")}
        embedder = Embedder.open(encoder_folder, **settings)  # type: ignore[arg-type]
        fill(tmp_path / name, embedder, captions, **sharing)  # type: ignore[arg-type]
        return EmbeddingStore.open(tmp_path / name)

    return filled


def _rounded(
    encoder: TextEncoder, prompts: Sequence[str], conventions: TextConfig = TEXT
) -> TextEmbedding:
    text = encoder.embed(prompts, conventions)
    return TextEmbedding(text.embedding.bfloat16().float(), text.mask)


def test_answers_as_the_encoder_in_bfloat16(filled: Fill, encoder: TextEncoder) -> None:
    store = filled()
    assert len(store) == DISTINCT
    assert store.width == encoder.width
    text = store.embed(CAPTIONS, TEXT)
    expected = _rounded(encoder, CAPTIONS)
    assert text.embedding.dtype == torch.float32
    assert torch.equal(text.mask, expected.mask)
    # Embedded in another batch: a last bit of float32 may turn a rounding to 8 bits.
    torch.testing.assert_close(text.embedding, expected.embedding, rtol=2**-7, atol=1e-5)
    assert torch.equal(text.embedding[0], text.embedding[3])


def test_rows_are_stored_unpadded_in_bfloat16(filled: Fill, encoder: TextEncoder) -> None:
    store = filled(shard_bytes=1 << 20)
    (shard,) = store.folder.glob("*.safetensors")
    lengths = [len(encoder.tokenizer.encode(text.lower(), 16)) for text in ["", *CAPTIONS[1:]]]
    with safe_open(shard, framework="pt") as file:
        rows = file.get_tensor("rows")
    assert rows.dtype == torch.bfloat16
    assert rows.shape == (sum(lengths), encoder.width)


@pytest.mark.parametrize("null", ["zeros", "empty"])
def test_sources_on_a_store_agree(filled: Fill, null: NullText) -> None:
    store = filled()
    asked = ["cat", None, "a photo of a dog"]
    text = TEXT.model_copy(update={"null": null})
    stored = OnlinePrompts(store, text, cache_size=0).rows(asked)
    table = PromptTable.build(store, CAPTIONS, text).rows(asked)
    assert torch.equal(stored.embedding, table.embedding)
    assert torch.equal(stored.mask, table.mask)
    assert bool(stored.embedding[1].any()) == (null == "empty")


def test_unmasked_embeddings_are_stored_with_their_padding(
    filled: Fill, encoder: TextEncoder
) -> None:
    store = filled(text=UNMASKED)
    text = store.embed(["cat"], UNMASKED)
    assert text.mask.shape == (1, 16)
    assert text.mask.all()
    expected = _rounded(encoder, ["cat"], UNMASKED).embedding
    torch.testing.assert_close(text.embedding, expected, rtol=2**-7, atol=1e-5)


def test_a_missing_caption_is_named_with_the_command_that_adds_it(
    filled: Fill, encoder_folder: Path
) -> None:
    store = filled()
    command = f"cascade embed --encoder {encoder_folder} --output {store.folder} --cleaning lower"
    with pytest.raises(UserError, match=f"no embedding of 'a teapot'; .*: {command}"):
        store.row("a teapot")
    both = "'a teapot' and 1 more; .* --caption 'a teapot' --caption 'a hat'$"
    with pytest.raises(UserError, match=both):
        store.require(["cat", "a teapot", "a hat", "a teapot"])
    store.require(CAPTIONS)
    with pytest.raises(UserError, match="a teapot"):
        OnlinePrompts(store, TEXT).rows(["a teapot"])


@pytest.mark.parametrize(
    ("convention", "value"), [("cleaning", "none"), ("max_length", 12), ("masked", False)]
)
def test_other_conventions_are_refused(filled: Fill, convention: str, value: object) -> None:
    store = filled()
    other = TEXT.model_copy(update={convention: value})
    with pytest.raises(UserError, match=f"{convention} = .* but the stage reads"):
        store.embed(["cat"], other)
    with pytest.raises(UserError, match=f"was made with another {convention}"):
        filled(text=other)
    with pytest.raises(UserError, match="was made with another quantised"):
        filled(mode="int8")


def test_another_encoder_is_refused(filled: Fill, encoder_folder: Path, tmp_path: Path) -> None:
    store = filled()
    assert open_text(encoder_folder, store.folder) is not None
    assert open_text(tmp_path / "gone", store.folder) is not None
    assert open_text(None, store.folder).tokenizer.encode("a cat", 16)
    other = shutil.copytree(encoder_folder, tmp_path / "other")
    with (other / "spiece.model").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match="other vocabulary"):
        open_text(other, store.folder)
    shutil.copy(encoder_folder / "spiece.model", other)
    data = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(data[:-4] + b"\0\0\0\0")
    with pytest.raises(UserError, match="other weights"):
        open_text(other, store.folder)
    with pytest.raises(UserError, match="give its folder, or a store"):
        open_text(None, None)
    with pytest.raises(UserError, match="no store of embeddings"):
        open_text(None, tmp_path)


def _noting(monkeypatch: pytest.MonkeyPatch, last: int | None = None) -> list[str]:
    """Note what is embedded, and interrupt after so many batches."""
    asked: list[str] = []
    batches = iter(range(1000))
    embed = TextEncoder.embed

    def noted(self: TextEncoder, prompts: Sequence[str], text: TextConfig) -> TextEmbedding:
        if next(batches) == last:
            raise KeyboardInterrupt
        asked.extend(prompts)
        return embed(self, prompts, text)

    monkeypatch.setattr(TextEncoder, "embed", noted)
    return asked


@pytest.mark.parametrize("shard_bytes", [1, 1 << 20])
def test_an_interrupted_run_goes_on(
    filled: Fill, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shard_bytes: int
) -> None:
    with monkeypatch.context() as patch:
        before = _noting(patch, last=2)
        with pytest.raises(KeyboardInterrupt):
            filled(shard_bytes=shard_bytes)
    (tmp_path / "store" / ".x.safetensors.1.partial").write_bytes(b"half a shard")
    assert len(EmbeddingStore.open(tmp_path / "store")) == len(before) == 4
    after = _noting(monkeypatch)
    store = filled(shard_bytes=shard_bytes)
    assert len(after) == 1
    assert sorted(store.conventions.key(text) for text in before + after) == sorted(
        {store.conventions.key(text) for text in ["", *CAPTIONS]}
    )
    store.require(CAPTIONS)
    nothing = _noting(monkeypatch)
    assert len(filled(shard_bytes=shard_bytes)) == DISTINCT
    assert not nothing


def test_shares_are_disjoint_and_whole(filled: Fill, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = _noting(monkeypatch)
    # Keys depend on the encoder's bytes: of so many no share is empty, whatever they are.
    captions = [f"a {colour} dog {number}" for colour in ("red", "blue") for number in range(50)]
    done = [len(filled(captions, share=Share.parse(f"{part}/3"))) for part in (1, 2, 3)]
    assert done[0] < done[1] < done[2] == len(captions) + 1 == len(asked)
    for text in ("0/3", "4/3", "1", "a/b", "1/0"):
        with pytest.raises(UserError, match="is no share"):
            Share.parse(text)


def test_shares_follow_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Share.of_process() == Share(0, 1)
    launched = dict.fromkeys(NEEDED, "1") | {"WORLD_SIZE": "5", "RANK": "2"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    assert Share.of_process() == Share(2, 5)


@pytest.mark.dist
@pytest.mark.slow
def test_processes_fill_one_store_at_the_same_time(
    filled: Fill, encoder_folder: Path, tmp_path: Path
) -> None:
    captions = [f"a dog {number}" for number in range(40)]
    (tmp_path / "captions.txt").write_text("\n".join(captions))
    arguments = [sys.executable, "-m", "cascade", "embed", "--encoder", str(encoder_folder)]
    arguments += ["--captions", str(tmp_path / "captions.txt"), "--output", str(tmp_path / "store")]
    arguments += ["--max-length", "16", "--cleaning", "lower", "--shard", "1/2"]
    other = subprocess.Popen(arguments)
    filled(captions, share=Share.parse("2/2"), shard_bytes=1 << 20)
    assert other.wait(timeout=120) == 0
    store = EmbeddingStore.open(tmp_path / "store")
    store.require(captions)
    assert len(store) == 41
    assert len(store.shards) == 2


def test_a_caption_stored_twice_is_one(filled: Fill, encoder: TextEncoder, tmp_path: Path) -> None:
    one, other = filled(["cat"], "one"), filled(["cat", "a dog"], "other")
    for shard in other.shards:
        shutil.copy(shard, one.folder)
    both = EmbeddingStore.open(one.folder)
    assert torch.equal(both.row("cat"), one.row("cat"))
    both.require(["a dog"])


def test_damaged_files_are_named(filled: Fill, tmp_path: Path) -> None:
    store = filled(name="shard")
    store.shards[0].write_bytes(store.shards[0].read_bytes()[:-10])
    copy = shutil.copytree(store.folder, tmp_path / "copy")  # not opened before
    with pytest.raises(UserError, match=f"{store.shards[0].name} is damaged"):
        EmbeddingStore.open(copy)
    note = filled(name="note").folder / "store.json"
    for damage in ("{", "[]", json.dumps({"conventions": {}, "encoder": ""})):
        note.write_text(damage)
        with pytest.raises(UserError, match=r"store\.json is damaged"):
            EmbeddingStore.open(note.parent)


def test_a_folder_with_other_things_is_refused(filled: Fill, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "dog.png").touch()
    with pytest.raises(UserError, match="no store of embeddings and not empty"):
        filled(name="photos")


def test_size_is_told_and_must_fit(
    filled: Fill,
    encoder: TextEncoder,
    monkeypatch: pytest.MonkeyPatch,
    heard: pytest.LogCaptureFixture,
) -> None:
    filled(["cat"])
    filled()
    new = ["a photo of a dog", "a red dog on the beach", "a blue cat"]
    tokens = sum(len(encoder.tokenizer.encode(text, 16)) for text in new)
    told = f"3 captions to embed (2 are there): about {tokens} tokens, 0.0 MiB."
    assert told in heard.messages
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(UserError, match="GiB are free"):
        filled(["a hat in the snow"])


def test_captions_of_every_kind(encoder_folder: Path, tmp_path: Path) -> None:
    lines = tmp_path / "captions.txt"
    lines.write_text("a dog\n\n  a cat \n", encoding="utf-8")
    assert list(read_captions(lines)) == ["a dog", "a cat"]
    objects = ['"a"', '["b", "c"]', '{"caption": "d"}', '{"text": "e", "id": 1}']
    objects += ['{"captions": ["f"]}']
    (tmp_path / "captions.jsonl").write_text("\n".join(objects))
    assert list(read_captions(tmp_path / "captions.jsonl")) == list("abcdef")
    assert list(read_captions(tmp_path)) == list("abcdef")
    for wrong in ("3", "{", '{"url": "x"}', "[1]", "[]"):
        (tmp_path / "wrong.jsonl").write_text(f'"a"\n{wrong}\n')
        with pytest.raises(UserError, match=r"Line 2 of .* holds no caption"):
            list(read_captions(tmp_path / "wrong.jsonl"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match="not UTF-8"):
        list(read_captions(tmp_path / "latin.txt"))
    with pytest.raises(UserError, match="no captions at"):
        list(read_captions(tmp_path / "nowhere.txt"))


def test_every_path_cleans_alike(encoder: TextEncoder, filled: Fill, repository: Path) -> None:
    dirty, bare = "A dog <b>by</b> @someone xyz123 photo.jpg", "a dog by"
    store = filled(["", dirty], text=TextConfig(max_length=16, cleaning="deepfloyd"))
    assert torch.equal(store.row(dirty), store.row(bare))
    texts = [
        embedder.embed([prompt], TextConfig(max_length=16, cleaning="deepfloyd"))
        for embedder in (encoder, store)
        for prompt in (dirty, bare)
    ]
    for text in texts:
        assert torch.equal(text.mask, texts[0].mask)
    assert torch.equal(texts[0].embedding, texts[1].embedding)
    # Whatever turns prompts into ids does so in one of two places, which both clean first.
    encoding = {
        path.relative_to(repository).as_posix()
        for path in (repository / "cascade").rglob("*.py")
        if "tokenizer.encode(" in path.read_text(encoding="utf-8")
    }
    assert encoding == {"cascade/text/encoder.py", "cascade/text/embed.py"}
    for name in encoding:
        code = (repository / name).read_text(encoding="utf-8")
        assert code.count("tokenizer.encode(") == code.count("tokenizer.encode(clean(")


def test_files_are_found_without_loading(encoder_folder: Path, encoder: TextEncoder) -> None:
    files = open_text(encoder_folder, None)
    assert isinstance(files, EncoderFiles)
    assert files.width == encoder.width


def _key(high: int, low: int) -> bytes:
    return high.to_bytes(8) + low.to_bytes(8)


def test_keys_that_share_a_half_are_told_apart(tmp_path: Path) -> None:
    largest = 2**64 - 1
    stored = [
        [(0, 0), (5, 7), (largest, largest)],
        [(5, 8), (2**63, 1), (2**63 + 1, 1), (5, 6)],
    ]
    paths = []
    for number, keys in enumerate(stored):
        data = b"".join(_key(*key) for key in keys)
        tensors = {
            "keys": torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, KEY_BYTES),
            "lengths": torch.arange(1, len(keys) + 1, dtype=torch.int32),
        }
        paths.append(tmp_path / f"{number}.safetensors")
        save_file(tensors, paths[-1])
    index = Index.read(paths)
    assert len(index.keys) == 7
    for number, keys in enumerate(stored):
        for place, key in enumerate(keys):
            start = place * (place + 1) // 2  # rows 1 + 2 + ... before it
            assert index.find(_key(*key)) == (number, start, place + 1)
    for absent in ((5, 9), (4, 7), (2**63, 2), (1, 0), (largest, 0)):
        assert index.find(_key(*absent)) is None


def test_nothing_is_found_in_nothing() -> None:
    assert Index.read([]).find(_key(1, 2)) is None
