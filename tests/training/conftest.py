"""A network of a few thousand weights, rows drawn from their positions, and a way to train."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from cascade.config.optimizer import OptimizerConfig
from cascade.config.stage import DiffusionConfig, SamplerConfig, StageConfig
from cascade.config.train import TrainConfig
from cascade.config.unet import UNetConfig
from cascade.data.batch import Batch
from cascade.data.stream import Samples, Stream
from cascade.diffusion.noise import derive_seed
from cascade.stage import Stage
from cascade.text.prompts import PromptTable
from cascade.training.distributed import Processes
from cascade.training.loop import Validate, train
from cascade.training.report import read_log
from cascade.training.weights import FreshWeights, Weights

UNET = UNetConfig(
    channels=(8, 16),
    blocks=(1, 1),
    attention=("none", "joint"),
    head_channels=8,
    text_width=16,
    context_width=16,
    time_width=16,
    pool_heads=2,
    norm_groups=4,
)
STAGE = StageConfig(name="base8", size=8, unet=UNET, diffusion=DiffusionConfig(prediction="v"))
ALONE = Processes(0, 1, torch.device("cpu"))


@dataclass(frozen=True)
class Blobs:
    """Rows that are a function of their position: pictures, captions and seeds at random."""

    size: int = 8

    def rows(self, positions: Sequence[int]) -> Batch:
        """See `cascade.data.batch.Samples`."""
        seeds = tuple(derive_seed(0, position) for position in positions)
        images = [
            torch.rand(3, self.size, self.size, generator=torch.Generator().manual_seed(seed))
            for seed in seeds
        ]
        return Batch(
            images=torch.stack(images) * 2 - 1,
            low_res=None,
            prompts=tuple(("a dog", None)[position % 2] for position in positions),
            seeds=seeds,
            weights=torch.ones(len(seeds)),
            terms=("mse",) * len(seeds),
            positions=len(seeds),
        )


@dataclass(frozen=True)
class Spoiled:
    """Rows of which some have a weight that ruins the step."""

    samples: Samples
    positions: Sequence[int]
    weight: float

    def rows(self, positions: Sequence[int]) -> Batch:
        """See `cascade.data.batch.Samples`."""
        batch = self.samples.rows(positions)
        weights = batch.weights.clone()
        for row, position in enumerate(positions):
            if position in self.positions:
                weights[row] = self.weight
        return replace(batch, weights=weights)


class Whole(NamedTuple):
    """The stage that a run published, and its statuses."""

    stage: Stage
    log: list[dict[str, float]]


class Killed(Exception):
    """Stands for a process that ends between two steps without a word."""


@dataclass(frozen=True)
class DiesAt:
    """Good rows up to a position; asked for that one, the run ends as if it were killed."""

    position: int
    samples: Samples

    def rows(self, positions: Sequence[int]) -> Batch:
        """See `cascade.data.batch.Samples`."""
        if self.position in positions:
            raise Killed
        return self.samples.rows(positions)


@pytest.fixture(scope="session")
def stage_config() -> StageConfig:
    """An 8-pixel base stage."""
    return STAGE


@pytest.fixture(scope="session")
def samples() -> Blobs:
    """Rows for it."""
    return Blobs()


@pytest.fixture(scope="session")
def spoiled(samples: Blobs) -> Callable[[Sequence[int], float], Spoiled]:
    """Make rows for it of which those at some positions have a ruinous weight."""
    return partial(Spoiled, samples)


@pytest.fixture(scope="session")
def table() -> PromptTable:
    """Embeddings of the rows' captions."""
    generator = torch.Generator().manual_seed(0)
    return PromptTable({None: torch.zeros(1, 16), "a dog": torch.randn(3, 16, generator=generator)})


@pytest.fixture(scope="session")
def train_config() -> TrainConfig:
    """Six steps of four rows, a status each, a checkpoint every two.

    Adam's eps is large: beside the usual 1e-8, gradients that differ in their last bit around 0
    move weights in opposite directions, and no two ways to sum could be compared.
    """
    return TrainConfig(
        steps=6,
        batch_size=4,
        optimizer=OptimizerConfig(learning_rate=1e-2, eps=1e-2),
        log_every=1,
        checkpoint_every=2,
    )


@pytest.fixture(scope="session")
def run(table: PromptTable, samples: Blobs, train_config: TrainConfig) -> Callable[..., Stage]:
    """Train a stage in one process, with some settings changed; returns what is published."""

    def run(
        folder: Path,
        stage: StageConfig = STAGE,
        rows: Samples = samples,
        validate: Validate | None = None,
        processes: Processes = ALONE,
        deadline: float | None = None,
        weights: Weights | None = None,
        **changes: object,
    ) -> Stage:
        config = TrainConfig.model_validate({**train_config.model_dump(), **changes})
        folder.mkdir(parents=True, exist_ok=True)
        start = FreshWeights(stage, seed=0) if weights is None else weights
        stream = Stream(rows)
        return train(stage, start, stream, table, config, folder, processes, validate, deadline)

    return run


@pytest.fixture(scope="session")
def whole(run: Callable[..., Stage], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A run of the settings as they are, which nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return Whole(run(folder), read_log(folder / "log.jsonl"))


@pytest.fixture(scope="session")
def killed_at(run: Callable[..., Stage], samples: Blobs) -> Callable[..., None]:
    """Begin a run that is killed when it asks for the row of a position."""

    def killed_at(
        position: int,
        folder: Path,
        *arguments: object,
        rows: Samples = samples,
        **changes: object,
    ) -> None:
        with pytest.raises(Killed):
            run(folder, *arguments, rows=DiesAt(position, rows), **changes)

    return killed_at


@pytest.fixture(scope="session")
def learned() -> StageConfig:
    """The stage with DeepFloyd IF's parametrisation, wide enough for 8-bit moments."""
    return STAGE.model_copy(
        update={
            "unet": UNET.model_copy(update={"channels": (16, 32), "learned_variance": True}),
            "diffusion": DiffusionConfig(schedule="squared_cosine", prediction="eps"),
            "sampler": SamplerConfig(steps=4, variance="learned", guidance=2.0),
        }
    )


@pytest.fixture(scope="session")
def same() -> Callable[[Stage, Stage], bool]:
    """Whether two stages have the same weights to the last bit."""

    def same(first: Stage, second: Stage) -> bool:
        ours: dict[str, Tensor] = first.network.state_dict()
        theirs: dict[str, Tensor] = second.network.state_dict()
        return ours.keys() == theirs.keys() and all(
            torch.equal(value, theirs[name]) for name, value in ours.items()
        )

    return same
