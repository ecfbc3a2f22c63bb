"""`cascade train` from packs: the same weights as from what they were packed of."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cascade.config.folders import read_stage_config
from cascade.config.pack import PackConfig
from cascade.config.stage import TextConfig
from cascade.config.train import PretrainConfig
from cascade.data.embedding import PackEmbedding
from cascade.data.place import Place
from cascade.errors import UserError
from cascade.packing.run import pack
from cascade.text.embed import Embedder, Share, fill
from cascade.training.pretrain import pretrain
from cascade.training.report import read_log

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def array(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty captioned pictures of 16 pixels."""
    folder = tmp_path_factory.mktemp("array")
    pictures = np.random.default_rng(0).integers(0, 256, (30, 3, 16, 16), dtype=np.uint8)
    np.save(folder / "images.npy", pictures)
    nouns = ("dog", "cat", "horse") * 10
    lines = [json.dumps([f"a red {noun}", f"{noun} {i}"]) for i, noun in enumerate(nouns)]
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def packed(array: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("packs") / "pack"
    pack(PackConfig(sources=(str(array),), output=output, workers=1))
    return output


@pytest.fixture
def run(tmp_path: Path, tiny_cascade: Path) -> Run:
    """Train the tiny cascade's base for four steps; return its weights' file."""

    def run(output: str, data: dict[str, Any], **changes: Any) -> Path:
        values = {
            "stage": read_stage_config(tiny_cascade / "base16").model_dump(),
            "train": {"steps": 4, "batch_size": 4, "log_every": 1, "checkpoint_every": 2},
            "data": data,
            "text_encoder": tiny_cascade / "text",
            "validation": {"images_per_prompt": 1, "x0_rows": 1},
            "output": tmp_path / output,
        }
        return pretrain(PretrainConfig.model_validate(values | changes)) / "model.safetensors"

    return run


def test_a_pack_trains_what_its_array_trains(run: Run, array: Path, packed: Path) -> None:
    whole = run("array", {"folder": array}).read_bytes()
    assert run("pack", {"folder": packed}).read_bytes() == whole
    assert run("mixed", {"sets": [{"folder": packed}, {"folder": array}]}).read_bytes() != whole


@pytest.mark.dist
def test_workers_train_the_same_and_waiting_is_told(run: Run, packed: Path) -> None:
    whole = run("thread", {"folder": packed}).read_bytes()
    helped = run("workers", {"folder": packed, "workers": 2})
    assert helped.read_bytes() == whole
    assert all(0 <= line["data_wait"] <= 1 for line in read_log(helped.parents[1] / "log.jsonl"))


@pytest.mark.slow
def test_embeddings_beside_the_pictures_come_with_the_rows(
    run: Run, packed: Path, tiny_cascade: Path, tmp_path: Path
) -> None:
    store, conventions = tmp_path / "store", TextConfig(max_length=16, cleaning="lower")
    embedder = Embedder.open(tiny_cascade / "text", conventions, "float32", "cpu", 4)
    place = Place(str(packed), tmp_path / "cache")
    PackEmbedding.plan(store, embedder, [place], "", Share()).work()
    fill(store, embedder, ["a dog"], share=Share(), shard_bytes=10**6)
    text = {"text_encoder": None, "embeddings": store}
    text |= {"validation": {"images_per_prompt": 1, "x0_rows": 1, "prompts": ["a dog"]}}
    losses = [
        [line["loss"] for line in read_log(run(name, data, **text).parents[1] / "log.jsonl")]
        for name, data in (
            ("beside", {"folder": packed}),
            ("helped", {"folder": packed, "workers": 1}),
            ("table", {"folder": packed, "resident": True}),
        )
    ]
    assert losses[0] == losses[1]
    # The very embeddings of the store, padded further.
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)
    (file,) = (store / "pictures").iterdir()
    file.unlink()
    (store / "pictures" / "other-0123456789abcdef.safetensors").touch()
    with pytest.raises(UserError, match=r"1 have no embeddings in .*cascade embed .*--data"):
        run("lacking", {"folder": packed}, **text)


def test_a_run_goes_on_from_a_pack_that_moved(run: Run, packed: Path, tmp_path: Path) -> None:
    train = {"steps": 4, "batch_size": 4, "checkpoint_every": 2, "keep_checkpoints": True}
    half = {**train, "steps": 2}
    run("run", {"folder": packed}, train=half)
    moved = tmp_path / "moved"
    moved.symlink_to(packed)
    whole = run("whole", {"folder": packed}, train=train).read_bytes()
    assert run("run", {"folder": moved, "workers": 0}, train=train).read_bytes() == whole
    with pytest.raises(UserError, match="other settings"):
        run("run", {"folder": packed, "window": 7}, train=train)
