"""diffusers' network with a stage's weights, to time it beside ours.

Shapes: `B` rows, `L` text tokens, `D` width of the text encoder, `H W` pixels.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from cascade.config.stage import StageConfig
from cascade.errors import UserError
from cascade.formats.export import check_expressible
from cascade.formats.keys import entries
from cascade.formats.unet import unet_to_diffusers
from cascade_export.graph.numerics import Precision
from cascade_export.graph.precision import DTYPES


class DiffusersNetwork:
    """diffusers' `UNet2DConditionModel` as a `cascade.diffusion.denoiser.Network`.

    Args:
        config: of a stage of DeepFloyd IF's kind.
        weights: a safetensors file with our names.
        precision: what to cast the weights to.
        device: where they go.

    Raises:
        UserError: diffusers is not installed, or has no network of this kind.
    """

    def __init__(
        self, config: StageConfig, weights: Path, precision: Precision, device: torch.device
    ) -> None:
        check_expressible(config)
        try:
            from diffusers import UNet2DConditionModel
        except ImportError:
            raise UserError(
                "To compare with diffusers, install it: pip install diffusers; or leave it out of "
                "--against."
            ) from None
        self.device = device
        self._dtype = DTYPES[precision]
        ours = load_file(weights)
        theirs = {
            name: part
            for entry in entries(config.unet)
            for name, part in entry.split(ours[entry.ours]).items()
        }
        settings = unet_to_diffusers(config.unet, config.size)
        kind: Any = UNet2DConditionModel  # published without types
        network = kind.from_config(settings)
        network.load_state_dict(theirs)
        self._network = network.to(device, self._dtype).eval()

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
        """Predict as the network does; every token is read, which is IF's convention."""
        image = x if low_res is None else torch.cat([x, low_res], dim=1)
        out = self._network(
            image.to(self._dtype),
            t,
            encoder_hidden_states=text.to(self._dtype),
            class_labels=aug,
            return_dict=False,
        )[0]
        answer: Tensor = out.float()
        return answer
