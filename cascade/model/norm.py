"""The U-Net's norm: GroupNorm, the conditioning's affine map and the activation in one operation.

Shapes: `B` batch, `C H W` channels, height and width.
"""

from typing import Literal

from torch import Tensor, nn

from cascade.config.unet import Activation
from cascade_kernels.group_norm_film_silu import group_norm_film_silu
from cascade_kernels.names import Backend


class FilmGroupNorm(nn.GroupNorm):
    """activation(group_norm(x) * (1 + scale) + shift), over an image or over two stacked ones."""

    def __init__(
        self, groups: int, channels: int, activation: Activation | Literal["none"]
    ) -> None:
        super().__init__(groups, channels)
        self.activation: Activation | Literal["none"] = activation
        self.backend: Backend = "auto"

    def forward(
        self,
        x: Tensor,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        skip: Tensor | None = None,
        skip_scale: float = 1.0,
    ) -> Tensor:
        """Normalise an image.

        Args:
            x: B C1 H W.
            scale: B C, with `shift`; None without conditioning.
            shift: B C.
            skip: B C2 H W, stacked behind x; C = C1 + C2. None: C = C1.
            skip_scale: factor on `skip`.

        Returns:
            B C H W.
        """
        return group_norm_film_silu(
            x,
            self.weight,
            self.bias,
            self.num_groups,
            self.eps,
            scale,
            shift,
            self.activation,
            skip=skip,
            skip_scale=skip_scale,
            backend=self.backend,
        )
