"""Words that settings and kernels share; imports nothing, so that settings load without torch."""

from typing import Literal

Backend = Literal["auto", "triton", "reference"]
"""An operation's path: a kernel where it was measured to be fastest, always, or never."""

BackwardPath = Literal["auto", "own", "cudnn", "flash"]
"""Who computes the image's part of an attention's gradients: what was measured to be fastest, the
kernels of this project, or one of PyTorch's."""

ThresholdKind = Literal["none", "static", "dynamic"]
