"""What an export is asked for, and whether it can be had here: checked before any long work."""

import importlib.util
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Final

import torch
from pydantic import Field

from cascade.config.base import AtOnce, Frozen
from cascade.environment import usable_device
from cascade.errors import UserError
from cascade_export.bundle.gate import Gate, Prompts
from cascade_export.engines import EngineName, engine_class
from cascade_export.graph.numerics import Numerics, Precision, Quantization, TextForm
from cascade_export.parity.check import PROMPTS

EXPORTERS: Final = ("dreamcascade", "torch", "onnx", "onnx-ir", "onnxscript")
_PARTS: Final = {"engines", "report", "stages", "text"}  # what an export writes before its manifest


class Request(Frozen):
    """What to export.

    Attributes:
        engine: the kind to prove, and for TensorRT's to build.
        calibration: prompts whose pictures set the quantisation's scales.
        targets: compute capabilities of the plans, such as 89; the engine's own choice if empty.
        text: leave the text encoder to transformers, or make a graph of it (in fp32).
        max_batch: most pictures at a time that a plan takes.
        retry: where the gate fails, keep the first module that departs in fp32 and try again.
    """

    engine: EngineName = "onnxruntime"
    precision: Precision = "fp32"
    quantisation: Quantization = "none"
    calibration: Prompts = PROMPTS
    targets: tuple[Annotated[int, Field(strict=True)], ...] = ()
    text: TextForm = "torch"
    max_batch: AtOnce = 4
    retry: Annotated[bool, Field(strict=True)] = False
    gate: Gate = Gate()

    def check(self) -> tuple[int, ...]:
        """Make sure that this machine can export so.

        Returns:
            The compute capabilities to build for; none where no plan is built.

        Raises:
            UserError: a package is missing, or the engine has not the precision or a target.
        """
        require_exporters()
        if self.quantisation != "none" and self.precision == "bf16":
            raise UserError("A bf16 graph cannot be calibrated; quantise an fp32 or fp16 one.")
        engine = engine_class(self.engine)
        targets = engine.targets(self.targets, self.numerics)
        engine.require(torch.device(usable_device(self.gate.device)), self.numerics)
        return targets

    @property
    def numerics(self) -> Numerics:
        """What the graphs compute in."""
        return Numerics(precision=self.precision, quantization=self.quantisation)


def require_exporters() -> None:
    """Make sure that the packages which write graphs are installed.

    Raises:
        UserError: one is missing.
    """
    for module in ("onnx", "onnx_ir", "onnxscript", "onnxruntime"):
        if importlib.util.find_spec(module) is None:
            raise UserError(
                f"Exporting needs the package {module}; install it: "
                "pip install 'dreamcascade[export]'."
            )


def require_place(output: Path) -> None:
    """Make sure that a bundle can be written: to a new folder, or on from an earlier export.

    Raises:
        UserError: something else lies there.
    """
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
    """Versions of everything that a graph follows from."""
    return {name: version(name) for name in EXPORTERS}
