"""The base of engines that load a weights file whole: swapping, closing, leaving memory."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from cascade.config.engine import EngineOptions
from cascade_export.engines.base import Engine, EngineInfo, StageFiles
from cascade_export.engines.offload import Budget
from cascade_export.graph.numerics import Numerics

Loaded = TypeVar("Loaded")


class WeightsEngine(Engine, Generic[Loaded]):
    """One stage, opened by `_load` and called by `_run`.

    Args:
        budget: shared by a cascade's stages, whose weights leave it in turns; without one they are
            loaded at once and stay.
    """

    def __init__(
        self,
        files: StageFiles,
        device: torch.device,
        options: EngineOptions,
        budget: Budget | None = None,
    ) -> None:
        self.require(device, Numerics(precision=files.precision))
        self.device = device
        self._files = files
        self._options = options
        self._budget = budget
        self._closed = False
        self._loaded: Loaded | None = None
        if budget is None:
            self.load()
        else:
            budget.check(self)

    @classmethod
    def open_all(
        cls,
        stages: Sequence[StageFiles],
        device: torch.device,
        options: EngineOptions,
        max_memory: int | None = None,
    ) -> Sequence[Self]:
        budget = None if max_memory is None else Budget(max_memory)
        return [cls(files, device, options, budget) for files in stages]

    @abstractmethod
    def _load(self, files: StageFiles) -> Loaded:
        """Open the stage."""

    @abstractmethod
    def _run(self, loaded: Loaded, inputs: Mapping[str, Tensor]) -> Tensor:
        """Call what `_load` has opened."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Return the version of the package that runs it."""

    @property
    def batch_invariant(self) -> bool:
        """Return `EngineInfo.batch_invariant`."""
        return False

    @property
    def weight_bytes(self) -> int:
        """Return the bytes of the weights."""
        return self._files.weights.stat().st_size

    @property
    def info(self) -> EngineInfo:
        files = self._files
        return EngineInfo(
            kind=self.kind,
            version=self.version,
            precision=files.precision,
            device=str(self.device),
            graph=files.graph.sha256,
            weights=files.weights_sha256,
            batch_invariant=self.batch_invariant,
        )

    def _answer(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self._run(self._current(), inputs)

    def swap(self, weights: Path) -> None:
        files = self._files.with_weights(weights)
        if self._budget is None:
            self._loaded, self._files = self._load(files), files
            return
        with self._budget.lock:
            if self._loaded is not None:
                self._loaded = self._load(files)
            self._files = files

    def close(self) -> None:
        """Free the memory; calls that run already end on their own reference."""
        self._closed = True
        if self._budget is not None:
            self._budget.forget(self)
        self.unload()

    def load(self) -> None:
        """Open the engine; its budget calls it."""
        self._loaded = self._load(self._files)

    def unload(self) -> None:
        """Drop the engine; its budget calls it."""
        self._loaded = None

    def _current(self) -> Loaded:
        if self._closed:
            raise closed(self.kind)
        if self._budget is None:
            loaded = self._loaded
        else:
            with self._budget.lock:
                self._budget.use(self)
                loaded = self._loaded
        assert loaded is not None  # it is loaded unless it was closed
        return loaded


def closed(kind: str) -> RuntimeError:
    """Return what to raise when an engine is called after `close`."""
    return RuntimeError(f"the {kind} engine was closed; open it again")
