"""Words that settings and kernels share; imports nothing, so that settings load without torch."""

from typing import Literal

Backend = Literal["auto", "triton", "reference"]
"""An operation's path: a kernel where it was measured to be fastest, always, or never."""

ThresholdKind = Literal["none", "static", "dynamic"]
