"""The base of engines that load a weights file whole: swapping, closing, leaving memory."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Self

import torch
from torch import Tensor

from cascade.config.engine import EngineOptions
from cascade_export.engines.base import Engine
from cascade_export.engines.offload import Budget
from cascade_export.engines.pins import closed
from cascade_export.engines.version import EngineInfo, StageFiles, Version
from cascade_export.graph.numerics import Numerics

Answer = Callable[[Mapping[str, Tensor]], Tensor]
"""Answers a call, its arguments by the names of the graph's inputs; holds the weights."""


class WeightsEngine(Engine):
    """One stage, opened by `load`.

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
        self._options = options
        self._budget = budget
        super().__init__(self._opened(files))

    @classmethod
    def opener(
        cls, device: torch.device, options: EngineOptions, max_memory: int | None = None
    ) -> Callable[[StageFiles], Self]:
        budget = None if max_memory is None else Budget(max_memory)
        return partial(cls, device=device, options=options, budget=budget)

    @classmethod
    @abstractmethod
    def load(cls, files: StageFiles, device: torch.device, options: EngineOptions) -> Answer:
        """Open a stage."""

    @property
    @abstractmethod
    def version(self) -> str:
        """Return the version of the package that runs it."""

    def _pads(self) -> bool:
        """Return whether texts are padded to the longest that the stage reads."""
        return True

    def _opened(self, files: StageFiles) -> Version:
        info = EngineInfo(
            kind=self.kind,
            version=self.version,
            precision=files.precision,
            device=str(self.device),
            graph=files.graph.sha256,
            weights=files.weights_sha256,
            batch_invariant=self.is_batch_invariant(self.device),
        )
        load = partial(self.load, device=self.device, options=self._options)
        return _Weights(files, info, self.device, self._pads(), load, self._budget)


class _Weights(Version):
    """A weights file, and what is opened of it while it is in memory.

    Args:
        opened: opens a stage.

    Attributes:
        weight_bytes: bytes of the weights.
    """

    def __init__(
        self,
        files: StageFiles,
        info: EngineInfo,
        device: torch.device,
        padded: bool,
        opened: Callable[[StageFiles], Answer],
        budget: Budget | None,
    ) -> None:
        super().__init__(files, info, device, padded)
        self.weight_bytes = files.weights.stat().st_size
        self._open = opened
        self._budget = budget
        self._freed = False
        self._answer: Answer | None = None
        if budget is None:
            self._answer = opened(files)
        else:
            budget.check(self)

    def answer(self, inputs: Mapping[str, Tensor]) -> Tensor:
        return self._current()(inputs)

    def load(self) -> None:
        """Open the weights; the budget calls it."""
        self.files.require_unchanged()
        self._answer = self._open(self.files)

    def unload(self) -> None:
        """Let the weights go; the budget calls it. Calls that run end on their own reference."""
        self._answer = None

    def free(self) -> None:
        if self._budget is None:
            self._freed = True
        else:
            with self._budget.lock:
                self._freed = True
                self._budget.forget(self)
        self._answer = None

    def _current(self) -> Answer:
        if self._budget is None:
            answer = self._answer
        else:
            with self._budget.lock:
                if not self._freed:
                    self._budget.use(self)
                answer = self._answer
        if answer is None:
            raise closed(self.info.kind)
        return answer
