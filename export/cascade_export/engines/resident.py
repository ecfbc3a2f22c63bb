"""Engines whose weights are in memory only while there is room for them.

Shapes: `B` rows, `L` text tokens, `D` width of the text encoder, `H W` pixels.
"""

import threading
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from cascade_export.engines.base import Engine, EngineInfo, StageFiles
from cascade_export.engines.residency import Residency


class ResidentEngine:
    """An engine that is opened when it is called, and dropped when another needs its room.

    A call that runs while its engine is dropped ends on its own reference: for that long the
    budget is exceeded.

    Args:
        files: the stage.
        device: where the engine runs.
        open_files: opens the engine.
        residency: shared by all stages.
        lock: shared by all stages; held while engines are opened and dropped, not while they run.
    """

    def __init__(
        self,
        files: StageFiles,
        device: torch.device,
        open_files: Callable[[StageFiles], Engine],
        residency: Residency,
        lock: threading.RLock,
    ) -> None:
        self.device = device
        self._files = files
        self._open = open_files
        self._residency = residency
        self._lock = lock
        self._engine: Engine | None = None
        residency.check(self)

    @property
    def weight_bytes(self) -> int:
        """What the weights take."""
        return self._files.weights.stat().st_size

    @property
    def info(self) -> EngineInfo:
        """What answers now."""
        return self._ready().info

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        text_mask: Tensor,
        low_res: Tensor | None = None,
        aug: Tensor | None = None,
    ) -> Tensor:
        """Predict as the network does; see `cascade.diffusion.denoiser.Network`."""
        return self._ready()(x, t, text, text_mask, low_res, aug)

    def swap(self, weights: Path) -> None:
        """Serve another fine-tune; see `Engine.swap`."""
        with self._lock:
            files = self._files.with_weights(weights)
            if self._engine is not None:
                self._engine.swap(weights)
            self._files = files

    def close(self) -> None:
        """Free the memory."""
        with self._lock:
            self._residency.forget(self)

    def load(self) -> None:
        """Open the engine; `Residency` calls it."""
        self._engine = self._open(self._files)

    def unload(self) -> None:
        """Drop the engine; `Residency` calls it."""
        self._engine = None

    def _ready(self) -> Engine:
        with self._lock:
            self._residency.use(self)
            assert self._engine is not None  # `use` has called `load`
            return self._engine
