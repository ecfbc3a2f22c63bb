"""The text encoder as a graph: ONNX Runtime in the place of transformers.

Shapes: `B` prompts, `L` tokens, `D` the encoder's width.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from cascade.config.engine import EngineOptions
from cascade.files import read_json
from cascade.text.encoder import TextEncoder
from cascade.text.files import EncoderFiles, find_vocabulary
from cascade_export.engines.onnxruntime import open_session, require_package, run
from cascade_export.graph.graph import GRAPH
from cascade_export.graph.weights import WEIGHTS

_CPU = torch.device("cpu")


class GraphTextEncoder(TextEncoder):
    """A `TextEncoder` whose model is a session on the CPU.

    Args:
        folder: `graph.onnx`, `weights.safetensors`, `config.json` and `spiece.model`.
        options: of which it reads what the engine onnxruntime reads.
    """

    def __init__(self, folder: Path, options: EngineOptions) -> None:
        require_package()
        config = read_json(folder / "config.json")
        files = EncoderFiles(folder, config, find_vocabulary(folder), {})
        super().__init__(files, _Session(folder, files.width, options), "float32")

    @property
    def device(self) -> torch.device:
        """Return the device of the session."""
        return _CPU


class _Session(nn.Module):
    """A session that is called as transformers' encoders are."""

    def __init__(self, folder: Path, width: int, options: EngineOptions) -> None:
        super().__init__()
        self.session = open_session(folder / GRAPH, folder / WEIGHTS, _CPU, options)
        self.width = width

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> BaseModelOutput:
        out = torch.empty((*input_ids.shape, self.width))
        run(self.session, {"ids": input_ids, "mask": attention_mask}, out)
        return BaseModelOutput(last_hidden_state=out)
