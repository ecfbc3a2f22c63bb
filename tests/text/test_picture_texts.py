"""Embeddings beside pictures: what a pack's captions are embedded to, and how they are found."""

import os
import pickle
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from cascade.cli.app import app
from cascade.config.stage import TextConfig
from cascade.data.embedding import PackEmbedding
from cascade.data.pack import MANIFEST, PackManifest, ShardEntry
from cascade.data.place import Place
from cascade.data.texts import PICTURES, PictureTexts, bring_store, file_name
from cascade.errors import UserError
from cascade.files import file_digest
from cascade.text.embed import Embedder, Share, fill
from cascade.text.encoder import TextEmbedding, TextEncoder
from cascade.text.store import EmbeddingStore

TEXT = TextConfig(max_length=16, cleaning="lower")
SHARDS = {
    "train-0": [("a photo of a dog", "A dog"), ("cat",), ("a  Photo of a dog", "a blue cat")],
    "train-1": [("cat",), ("a red dog on the beach", "cat", "a hat")],
    "validation-0": [("a wooden floor",)],
}
CAPTIONS = 10

Shards = Mapping[str, Sequence[Sequence[str]]]
Embed = Callable[..., PictureTexts]


def write_pack(folder: Path, shards: Shards = SHARDS) -> PackManifest:
    """Write what of a pack embedding reads: the manifest and the captions of the indexes."""
    folder.mkdir(exist_ok=True)
    entries = []
    for name, records in shards.items():
        index = folder / f"{name}.parquet"
        captions = pa.array([list(captions) for captions in records], pa.list_(pa.string()))
        parquet.write_table(pa.table({"captions": captions}), index)
        entries.append(
            ShardEntry(
                name=name,
                records=len(records),
                size=0,
                sha256=file_digest(index),
                index_sha256=file_digest(index),
            )
        )
    manifest = PackManifest(shards=tuple(entries))
    (folder / MANIFEST).write_text(manifest.model_dump_json())
    return manifest


@pytest.fixture
def embed(encoder_folder: Path, tmp_path: Path) -> Embed:
    """Embed a pack into the store in a temporary folder, and open what it has of it."""

    def embed(
        pack: Path, store: str = "store", prefix: str = "", share: str = "1/1"
    ) -> PictureTexts:
        embedder = Embedder.open(encoder_folder, TEXT, "float32", "cpu", batch_size=2)
        places = [Place(str(pack), tmp_path / "cache")]
        PackEmbedding.plan(tmp_path / store, embedder, places, prefix, Share.parse(share)).work()
        return PictureTexts.open(Place(str(tmp_path / store), tmp_path), str(pack), prefix)

    return embed


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the encoder is asked for."""
    asked: list[str] = []
    original = TextEncoder.embed

    def noted(self: TextEncoder, prompts: Sequence[str], text: TextConfig) -> TextEmbedding:
        asked.extend(prompts)
        return original(self, prompts, text)

    monkeypatch.setattr(TextEncoder, "embed", noted)
    return asked


def _all(manifest: PackManifest, shards: Shards = SHARDS) -> Iterator[tuple[ShardEntry, int, int]]:
    for entry in manifest.shards:
        for record, captions in enumerate(shards[entry.name]):
            for number in range(len(captions)):
                yield entry, record, number


def _files(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (store / PICTURES).iterdir()}


@pytest.mark.parametrize("prefix", ["", "a drawing of "])
def test_every_caption_has_the_row_that_the_encoder_makes(
    embed: Embed, encoder: TextEncoder, tmp_path: Path, prefix: str
) -> None:
    manifest = write_pack(tmp_path / "pack")
    texts = embed(tmp_path / "pack", prefix=prefix)
    texts.require(manifest.shards)
    sent = pickle.loads(pickle.dumps(texts))  # to a worker process
    for entry, record, number in _all(manifest):
        caption = SHARDS[entry.name][record][number]
        row = sent.row(entry, record, number, prefix + caption)
        expected = encoder.embed([prefix + caption], TEXT).embedding[0].bfloat16()
        assert row.dtype == torch.bfloat16
        # In another batch a last bit of float32 may turn a rounding to 8 bits.
        torch.testing.assert_close(row, expected, rtol=2**-7, atol=1e-5)
    assert texts.width == encoder.width


def test_a_text_is_embedded_once_a_shard_and_what_is_there_is_skipped(
    embed: Embed, asked: list[str], tmp_path: Path, heard: pytest.LogCaptureFixture
) -> None:
    write_pack(tmp_path / "pack")
    embed(tmp_path / "pack")
    once = ["a photo of a dog", "A dog", "cat", "a blue cat"]  # of train-0, cleaned
    once += ["cat", "a red dog on the beach", "a hat", "a wooden floor"]
    assert sorted(asked) == sorted(once)
    asked.clear()
    embed(tmp_path / "pack")
    assert not asked
    assert "0 shards to embed (3 are there)" in heard.messages[-1]


def test_of_a_pack_made_anew_only_what_changed_is_embedded(
    embed: Embed, asked: list[str], tmp_path: Path
) -> None:
    before = write_pack(tmp_path / "pack")
    first = embed(tmp_path / "pack")
    old = first.row(before.shards[0], 2, 1, "a blue cat")
    asked.clear()
    changed = {
        **SHARDS,
        "train-0": [("a photo of a dog",), ("a cat in the snow",), *SHARDS["train-0"][2:]],
    }
    after = write_pack(tmp_path / "anew", changed)
    assert after.id != before.id
    texts = embed(tmp_path / "anew")
    assert asked == ["a cat in the snow"]
    texts.require(after.shards)
    for entry, record, number in _all(after, changed):
        texts.row(entry, record, number, changed[entry.name][record][number])
    assert torch.equal(texts.row(after.shards[0], 2, 1, "a blue cat"), old)
    first.require(before.shards)  # what still reads the old pack has it


def test_shares_side_by_side_write_what_one_process_writes(embed: Embed, tmp_path: Path) -> None:
    write_pack(tmp_path / "pack")
    embed(tmp_path / "pack", "alone")
    counts = []
    for part in ("2/2", "1/2"):
        embed(tmp_path / "pack", "shared", share=part)
        counts.append(len(_files(tmp_path / "shared")))
    assert counts == [1, 3]
    assert _files(tmp_path / "shared") == _files(tmp_path / "alone")


def test_what_a_killed_process_left_goes_with_its_share(embed: Embed, tmp_path: Path) -> None:
    manifest = write_pack(tmp_path / "pack")
    embed(tmp_path / "pack")
    folder = tmp_path / "store" / PICTURES
    left = [folder / f".{file_name(shard, '')}.1.partial" for shard in manifest.shards]
    for partial in left:
        partial.touch()
    os.utime(left[0], (0, 0))
    os.utime(left[1], (0, 0))
    embed(tmp_path / "pack", share="1/2")  # the first and the third
    assert [partial.exists() for partial in left] == [False, True, True]  # the third is new


@pytest.mark.parametrize("batch", range(4))
def test_killed_and_started_again_it_writes_the_same(
    embed: Embed,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    batch: int,
) -> None:
    write_pack(tmp_path / "pack")
    embed(tmp_path / "pack", "whole")
    batches = iter(range(1000))
    original = TextEncoder.embed

    def dying(self: TextEncoder, prompts: Sequence[str], text: TextConfig) -> TextEmbedding:
        if next(batches) == batch:
            raise KeyboardInterrupt
        return original(self, prompts, text)

    with monkeypatch.context() as patch:
        patch.setattr(TextEncoder, "embed", dying)
        with pytest.raises(KeyboardInterrupt):
            embed(tmp_path / "pack", "killed")
    done = _files(tmp_path / "killed")
    assert done.items() <= _files(tmp_path / "whole").items()
    assert len(done) == batch // 2  # two batches a shard; of one in work nothing is left
    embed(tmp_path / "pack", "killed")
    assert _files(tmp_path / "killed") == _files(tmp_path / "whole")


def test_the_size_is_told_and_must_fit(
    embed: Embed,
    encoder: TextEncoder,
    monkeypatch: pytest.MonkeyPatch,
    heard: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    write_pack(tmp_path / "pack")
    lines = [text for records in SHARDS.values() for texts in records for text in texts]
    tokens = sum(
        len(encoder.tokenizer.encode(" ".join(text.lower().split()), 16)) for text in lines
    )
    embed(tmp_path / "pack")
    told = f"3 shards to embed (0 are there): about {CAPTIONS} captions, {tokens} tokens, 0.0 MiB."
    assert told in heard.messages
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(UserError, match=f"{CAPTIONS} captions take about .* are free"):
        embed(tmp_path / "pack", "other")
    assert not _files(tmp_path / "other")


def test_a_far_store_and_a_far_pack_are_read_alike(
    embed: Embed, encoder_folder: Path, tmp_path: Path
) -> None:
    memory = fsspec.filesystem("memory")
    manifest = write_pack(tmp_path / "pack")
    memory.put(str(tmp_path / "pack"), "/far-pack", recursive=True)
    cache = tmp_path / "cache"
    embedder = Embedder.open(encoder_folder, TEXT, "float32", "cpu", batch_size=2)
    pack = Place("memory://far-pack", cache)
    PackEmbedding.plan(tmp_path / "store", embedder, [pack], "", Share()).work()
    near = embed(tmp_path / "pack")
    fill(tmp_path / "store", embedder, [], share=Share(), shard_bytes=1)
    memory.put(str(tmp_path / "store"), "/far-store", recursive=True)

    place = Place("memory://far-store", cache)
    far = PictureTexts.open(place, pack.address)
    far.require(manifest.shards)
    for entry, record, number in _all(manifest):
        caption = SHARDS[entry.name][record][number]
        row = far.row(entry, record, number, caption)
        assert torch.equal(row, near.row(entry, record, number, caption))
    store = EmbeddingStore.open(bring_store(place))
    assert "" in store
    assert len(store) == 1  # what lies beside pictures was not fetched for it
    with pytest.raises(UserError, match=r"--output STORE .*, and copy STORE to memory://far-store"):
        PictureTexts.open(place, pack.address, "a ").require(manifest.shards)


def test_another_caption_than_the_embedded_one_is_named(embed: Embed, tmp_path: Path) -> None:
    manifest = write_pack(tmp_path / "pack")
    texts, entry = embed(tmp_path / "pack"), manifest.shards[0]
    for record, number, caption in [(0, 0, "a teapot"), (0, 2, "cat"), (3, 0, "cat")]:
        told = f"has not the embedding of '{caption}' for caption {number} of record {record}"
        with pytest.raises(UserError, match=told):
            texts.row(entry, record, number, caption)


def test_the_command_in_the_error_embeds_what_is_missing(
    embed: Embed, tiny_cascade: Path, tmp_path: Path
) -> None:
    pack, store = tmp_path / "pack", tmp_path / "store"
    write_pack(pack)
    arguments = ["embed", "--cascade", str(tiny_cascade), "--output", str(store)]
    assert CliRunner().invoke(app, [*arguments, "--data", str(pack)]).exception is None
    more = {**SHARDS, "train-2": [("a cat in the snow",)]}
    manifest = write_pack(pack, more)
    texts = PictureTexts.open(Place(str(store), tmp_path), str(pack), "a  photo: ")
    with pytest.raises(UserError, match=r"Of 4 shards of .* 4 have no embeddings"):
        texts.require(manifest.shards)
    with pytest.raises(UserError, match=r"The shard train-2 of .* has no embeddings") as error:
        texts.row(manifest.shards[3], 0, 0, "a  photo: a cat in the snow")
    command = shlex.split(str(error.value).partition("cascade embed ")[2])
    assert CliRunner().invoke(app, ["embed", *command]).exception is None
    texts.require(manifest.shards)
    texts.row(manifest.shards[3], 0, 0, "a  photo: a cat in the snow")


def test_a_changed_index_and_damaged_files_are_named(embed: Embed, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    manifest = write_pack(pack)
    table = pa.table({"captions": pa.array([["a hat"]], pa.list_(pa.string()))})
    parquet.write_table(table, pack / "validation-0.parquet")
    with pytest.raises(UserError, match=r"validation-0\.parquet is not the index"):
        embed(pack)
    manifest = write_pack(pack)
    texts = embed(pack, "damaged")
    file = Path(texts.files.address) / file_name(manifest.shards[0], "")
    whole, tensors = file.read_bytes(), load_file(file)
    file.write_bytes(whole[:-2])
    damages = [{"lengths": tensors["lengths"] + 1}, {"counts": tensors["counts"][1:]}]
    for damage in [{}, *damages, {"keys": tensors["keys"][1:]}]:
        if damage:
            save_file(tensors | damage, file)
        with pytest.raises(UserError, match=f"{file.name} is damaged"):
            texts.row(manifest.shards[0], 0, 0, "a photo of a dog")
    del tensors["counts"]  # a shard of the store itself
    save_file(tensors, file)
    with pytest.raises(UserError, match=f"{file.name} is damaged .*counts"):
        texts.row(manifest.shards[0], 0, 0, "a photo of a dog")
