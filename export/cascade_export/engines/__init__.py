"""Engines: each takes the U-Net's place in the unchanged samplers; one module and one entry each.

Nothing here imports torch, nor an engine before it is asked for.
"""

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Annotated, Final

from pydantic import AfterValidator

from cascade.errors import UserError

if TYPE_CHECKING:
    from cascade_export.engines.base import Engine

ENGINES: Final = {
    "torch": "cascade_export.engines.torch:TorchEngine",
    "onnxruntime": "cascade_export.engines.onnxruntime:OnnxRuntimeEngine",
    "openvino": "cascade_export.engines.openvino:OpenVinoEngine",
    "tensorrt": "cascade_export.engines.tensorrt.engine:TensorRTEngine",
    "tensorrt-rtx": "cascade_export.engines.tensorrt.engine:TensorRTForRTXEngine",
}


def engine_name(name: object) -> str:
    """Check an engine's name.

    Raises:
        UserError: there is no such engine.
    """
    if not isinstance(name, str) or name not in ENGINES:
        raise UserError(f"There is no engine {name!r}; take one of {', '.join(ENGINES)}.")
    return name


EngineName = Annotated[str, AfterValidator(engine_name)]


def engine_class(name: str) -> "type[Engine]":
    """Import an engine's class, which states what the engine can do."""
    found: type[Engine] = resolve_name(ENGINES[engine_name(name)])
    return found
