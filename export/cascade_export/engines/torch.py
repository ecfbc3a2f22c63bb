"""PyTorch itself as an engine, eager or compiled: the yardstick of the others, on any device.

Shapes: `B` rows, `L` text tokens, `D` width of the text encoder, `H W` pixels.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cascade.diffusion.denoiser import Network
from cascade.stage import skeleton
from cascade_export.engines.base import (
    EngineInfo,
    EngineOptions,
    StageFiles,
    closed,
    fixed_length,
)
from cascade_export.graph.precision import DEFAULT_ISLANDS, cast


class _Loaded(NamedTuple):
    network: Network
    info: EngineInfo


class TorchEngine:
    """A stage's network with a bundle's weights, cast to the bundle's precision.

    Args:
        files: the stage; its graph is not read.
        device: where the weights go.
        options: `compiled` takes a minute or so at the first call of each shape.
    """

    def __init__(self, files: StageFiles, device: torch.device, options: EngineOptions) -> None:
        options.check("torch")
        self.device = device
        self._files = files
        self._options = options
        self._loaded: _Loaded | None = self._load(files)

    @property
    def info(self) -> EngineInfo:
        """What answers now."""
        return self._current().info

    @torch.inference_mode()
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
        network = self._current().network
        if self._options.compiled:  # one length of text, one compilation
            text, text_mask = fixed_length(text, text_mask, self._files.config.text.max_length)
        return network(x, t, text, text_mask, low_res, aug)

    def swap(self, weights: Path) -> None:
        """Serve another fine-tune; see `Engine.swap`."""
        files = self._files.with_weights(weights)
        self._loaded, self._files = self._load(files), files

    def close(self) -> None:
        """Free the memory."""
        self._loaded = None

    def _current(self) -> _Loaded:
        loaded = self._loaded
        if loaded is None:
            raise closed("torch")
        return loaded

    def _load(self, files: StageFiles) -> _Loaded:
        network: nn.Module = cast(
            skeleton(files.config), files.precision, (*DEFAULT_ISLANDS, *files.islands)
        )
        tensors = load_file(files.weights, str(self.device))
        network.load_state_dict(tensors, assign=True)
        network.eval().requires_grad_(False)
        info = EngineInfo(
            kind="torch",
            version=torch.__version__,
            precision=files.precision,
            device=str(self.device),
            graph=files.graph.sha256,
            weights=files.weights_sha256,
            batch_invariant=False,
        )
        return _Loaded(torch.compile(network) if self._options.compiled else network, info)
