"""Between two statuses the host runs ahead of the GPU and never waits for it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from cascade.config.data import RowConfig
from cascade.config.stage import StageConfig
from cascade.config.train import TrainConfig
from cascade.data.array import CaptionedArray
from cascade.data.batch import Batch
from cascade.data.captioned import CaptionedSamples, Source
from cascade.data.resident import ResidentSamples
from cascade.data.stream import Samples, Stream
from cascade.text.prompts import PromptSource, PromptTable
from cascade.training.distributed import Processes
from cascade.training.loop import train
from cascade.training.weights import FreshWeights


@dataclass(frozen=True)
class Watched:
    """Rows of four a step; from the second step to the fourth, waiting for the GPU is an error."""

    samples: Samples

    def rows(self, positions: Sequence[int]) -> Batch:
        torch.cuda.set_sync_debug_mode("error" if 4 <= positions[0] < 16 else "default")
        return self.samples.rows(positions)


@pytest.fixture(autouse=True)
def _unwatched() -> Iterator[None]:
    yield
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("resident", [True, False], ids=["resident", "streamed"])
def test_no_step_waits_for_the_gpu(
    tmp_path: Path,
    samples: Samples,
    table: PromptTable,
    stage_config: StageConfig,
    train_config: TrainConfig,
    resident: bool,
) -> None:
    device = torch.device("cuda", 0)
    noise = "device" if resident else "cpu"
    changes = {"log_every": 100, "checkpoint_every": 100, "precision": "bf16", "noise": noise}
    config = TrainConfig.model_validate({**train_config.model_dump(), **changes})
    rows: Samples = samples
    prompts: PromptSource = table
    if resident:
        rows, prompts = _resident(stage_config, table, device)
    weights, stream = FreshWeights(stage_config, seed=0), Stream(Watched(rows), prefetch=False)
    train(stage_config, weights, stream, prompts, config, tmp_path, Processes(0, 1, device))


def _resident(
    stage: StageConfig, table: PromptTable, device: torch.device
) -> tuple[Samples, PromptSource]:
    images = np.random.default_rng(0).integers(0, 256, (30, 3, 8, 8), dtype=np.uint8)
    data = CaptionedArray(images, (("a dog",),) * 30)
    rows = CaptionedSamples((Source(data, 1.0, (8, 8)),), stage, 0, RowConfig())
    embeddings = {prompt: table.rows([prompt]).embedding[0] for prompt in (None, "a dog")}
    return (
        ResidentSamples(rows, device),
        PromptTable(embeddings, device, one_length=True),
    )
