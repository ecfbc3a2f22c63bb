"""Checks of the machine and of the output folder, made before any long work."""

import importlib.util
from importlib.metadata import version
from pathlib import Path
from typing import Final

import torch

from cascade.errors import UserError
from cascade_export.bundle.gate import gate_device
from cascade_export.bundle.lock import LOCK
from cascade_export.engines import engine_class
from cascade_export.engines.tensorrt.options import PlanOptions
from cascade_export.settings import ExportOptions

EXPORTERS: Final = ("dreamcascade", "torch", "onnx", "onnx-ir", "onnxscript")
_PARTS: Final = {"engines", "report", "stages", "text", LOCK}
"""What an export writes before its manifest."""


def require_export(options: ExportOptions) -> tuple[int, ...]:
    """Check that this machine can export so.

    Returns:
        The compute capabilities to build for; none where no plan is built.

    Raises:
        UserError: a package is missing, or the engine has not the precision or a target.
    """
    require_exporters()
    engine = engine_class(options.engine)
    needless = PlanOptions.model_fields.keys() & options.model_fields_set
    if needless and not engine.runs_plans:
        flag = f"--{min(needless)}".replace("_", "-")
        raise UserError(
            f"The {engine.kind} engine builds no plans and takes any batch; leave {flag} out."
        )
    targets = engine.targets(options.targets, options.numerics)
    engine.require(torch.device(gate_device(options.gate, engine)), options.numerics)
    return targets


def require_exporters() -> None:
    """Check that the packages which write graphs are installed."""
    for module in ("onnx", "onnx_ir", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"Exporting needs the package {module}; install it: "
                "pip install 'dreamcascade[export]'."
            )


def require_output(output: Path) -> None:
    """Check that a bundle can be written: to a new folder, or on from an earlier export."""
    if (output / "bundle.json").exists():
        raise UserError(
            f"{output} is a whole bundle already; choose another output folder, or add a "
            "fine-tune to it with --into."
        )
    if output.exists() and not output.is_dir():
        raise UserError(f"{output} is a file; choose another output folder.")
    others = {path.name for path in output.iterdir()} - _PARTS if output.is_dir() else set()
    if others:
        raise UserError(f"{output} holds {min(others)} already; choose another output folder.")


def exporter_versions() -> dict[str, str]:
    """Return the versions of everything that a graph follows from."""
    return {name: version(name) for name in EXPORTERS}
