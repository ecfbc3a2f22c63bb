"""PyTorch itself as an engine, eager or compiled: the baseline of the others, on any device."""

from collections.abc import Mapping

import torch
from safetensors.torch import load_file
from torch import Tensor

from cascade.config.engine import EngineOptions
from cascade.diffusion.denoiser import Network
from cascade.stage import meta_network
from cascade_export.engines.base import EVERY_PRECISION
from cascade_export.engines.version import StageFiles
from cascade_export.engines.weights_engine import Answer, WeightsEngine
from cascade_export.graph.precision import DEFAULT_ISLANDS, cast


class TorchEngine(WeightsEngine):
    """A stage's network with a bundle's weights, cast to the bundle's precision.

    Its graph is not read. Compiling takes a minute or so at the first call of each shape.
    """

    kind = "torch"
    precisions = dict.fromkeys(("cpu", "cuda", "mps", "xpu"), EVERY_PRECISION)
    options = frozenset({"compiled"})
    version = torch.__version__

    def _pads(self) -> bool:
        return self._options.compiled  # one length of text, one compilation

    @classmethod
    def load(cls, files: StageFiles, device: torch.device, options: EngineOptions) -> Answer:
        kept = (*DEFAULT_ISLANDS, *files.islands)
        network = cast(meta_network(files.config), files.precision, kept)
        network.load_state_dict(load_file(files.weights, str(device)), assign=True)
        network.eval().requires_grad_(False)
        called: Network = torch.compile(network) if options.compiled else network

        @torch.inference_mode()
        def answer(inputs: Mapping[str, Tensor]) -> Tensor:
            return called(**inputs)

        return answer
