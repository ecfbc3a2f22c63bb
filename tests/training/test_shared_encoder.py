"""Several processes load one text encoder, and have its embeddings to the bit."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = """
import sys
from pathlib import Path

import torch

from cascade.config.stage import TextConfig
from cascade.config.train import PretrainConfig
from cascade.text.encoder import TextEncoder
from cascade.text.prompts import OnlinePrompts, PromptTable, load_text, open_text
from cascade.training.distributed import process_group
from cascade.training.pretrain import pretrain
from cascade.training.shared_encoder import open_encoder

folder, encoder = map(Path, sys.argv[1:])
loads, load = [], TextEncoder.load
TextEncoder.load = lambda *arguments: loads.append(1) or load(*arguments)
prompts, text, host = ["a dog", "a cat on the beach"], TextConfig(max_length=16), "cpu"
with process_group(5.0, folder) as processes:
    shared = open_encoder(open_text(encoder, None), "auto", torch.device(host), processes)
    table = PromptTable.build(shared, prompts, text)
    store = OnlinePrompts(shared.keep(folder / "kept", prompts, text), text, cache_size=0)
    assert len(loads) == processes.is_main, loads
    alone = load_text(open_text(encoder, None))
    for ours, theirs in (
        (table, PromptTable.build(alone, prompts, text)),
        (store, OnlinePrompts(alone, text)),
    ):
        for asked in ([*prompts, None], prompts[:1]):
            assert torch.equal(ours.rows(asked).embedding, theirs.rows(asked).embedding)
            assert torch.equal(ours.rows(asked).mask, theirs.rows(asked).mask)
    assert (shared.digest, shared.mode, shared.width) == (alone.digest, alone.mode, alone.width)
    try:
        shared.embed(prompts[: 1 + processes.rank], text)
        assert processes.is_main
    except ValueError as error:
        assert "different prompts" in str(error)
    for resident in ("true", "false"):
        loads.clear()
        changes = [f"output={folder / resident}", f"data.resident={resident}"]
        pretrain(PretrainConfig.read(folder / "base16.toml", changes))
        assert len(loads) == processes.is_main, loads
    assert not (folder / "false" / "embeddings").exists()
"""


@pytest.mark.dist
@pytest.mark.slow
def test_the_encoder_is_loaded_once(
    tmp_path: Path, tiny_cascade: Path, training_file: Callable[..., Path]
) -> None:
    training_file(tmp_path, train={"steps": 1, "batch_size": 2})
    (tmp_path / "run.py").write_text(SCRIPT)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [
        *torchrun,
        "--nproc-per-node=2",
        tmp_path / "run.py",
        tmp_path,
        tiny_cascade / "text",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, env=environment, check=True, timeout=300)
