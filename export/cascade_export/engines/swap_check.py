"""The check that an engine with swapped weights answers as another engine does with them.

A refitted plan can be wrong without an error: TensorRT 11.3 documents biases that are dropped. One
call against the same graph on a CPU says.
"""

import torch

from cascade.errors import UserError
from cascade.text.encoder import TextEmbedding
from cascade_export.engines.base import Engine
from cascade_export.engines.version import StageFiles, Version
from cascade_export.graph.probe import make_case, tensor_deviation

# Two engines that round differently part by 1e-3 in half precision. A layer that keeps another
# fine-tune's weights, or loses a bias, is felt in all of the answer.
_ALLOWED = 0.05


def check_swap(engine: Engine | Version, other: Engine, files: StageFiles) -> None:
    """Compare the answers of both to the same two rows."""
    config = files.config
    generator = torch.Generator().manual_seed(0)
    length, width = config.text.max_length, config.unet.text_width
    embedding = torch.randn(2, length, width, generator=generator)
    text = TextEmbedding(embedding, torch.ones(2, length, dtype=torch.bool))
    case = make_case("swapped", config, text, (config.size, config.size), generator)
    deviation = tensor_deviation(case.answer(engine, engine.device), case.answer(other)).relative
    if not deviation <= _ALLOWED:
        raise UserError(
            f"With {files.weights} the engine answers {deviation:.2g} beside the graph, so it "
            "did not take them; the weights before keep serving. Export them as a bundle."
        )
