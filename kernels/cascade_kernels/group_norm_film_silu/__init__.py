"""GroupNorm, an affine map from the conditioning (FiLM) and the activation, at once."""

from cascade_kernels.group_norm_film_silu.inputs import Activation
from cascade_kernels.group_norm_film_silu.op import decompositions, group_norm_film_silu

__all__ = ["Activation", "decompositions", "group_norm_film_silu"]
