"""Whatever an export, its engines and its servers are asked: a wrong value is one sentence."""

import math
from typing import Any

import pytest

from cascade.config.base import Frozen
from cascade.config.engine import EngineOptions
from cascade.errors import UserError
from cascade_bench.settings import SampleBenchConfig, StageBenchConfig, TrainBenchConfig
from cascade_export.bundle.gate import Gate
from cascade_export.bundle.request import Request
from cascade_export.triton_server.repository import ServerOptions

CLASSES: tuple[type[Frozen], ...] = (
    Request,
    Gate,
    EngineOptions,
    ServerOptions,
    TrainBenchConfig,
    SampleBenchConfig,
    StageBenchConfig,
)
NO_NUMBERS = (math.nan, math.inf, -1, -0.5, 10**30, 10**5000, "2", True, b"2", [2], {})
NO_OTHERS: dict[str, tuple[object, ...]] = {
    "engine": ("frob", "", 3, None),
    "precision": ("fp8", None),
    "quantisation": ("int4", None),
    "calibration": ((), "a dog", 3, None, (1,), ("a \udcff",)),
    "targets": ("sm89", (8.9,), ("sm89",), (True,), None),
    "text": ("frob", None),
    "retry": ("no", 1, None),
    "gate": (None, {"steps": 0}, 3),
    "prompts": ((), "a dog", 3, None, (1,), ("a \udcff",)),
    "device": (None, 3),
    "command": (None, 3),
    "spinning": ("no", None),
    "compiled": ("yes", 1),
    "against": ("", 3, ("eager",), None),
    "networks": ((), "if-i-m", (3,), None),
    "dry_run": ("no", 1, None),
    "batches": ((), (0,), ("1",), (10**9,), "1", None),
    "first_picture": ("perhaps", None),
    "name": ("../evil", "", "a\nb", "a" * 101, None, 3),
}
FIELDS = [(kind, name) for kind in CLASSES for name in kind.model_fields]


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=[f"{k.__name__}-{n}" for k, n in FIELDS])
def test_a_wrong_value_is_told_by_its_name(kind: type[Frozen], name: str) -> None:
    for wrong in NO_OTHERS.get(name, NO_NUMBERS):
        values: dict[str, Any] = {name: wrong}
        with pytest.raises(UserError) as refused:
            kind(**values)
        told = str(refused.value)
        assert name in told or "is no text" in told or "\\udcff" in told, (wrong, told)
        assert "\n" not in told


@pytest.mark.parametrize("kind", CLASSES)
def test_what_nobody_knows_is_told(kind: type[Frozen]) -> None:
    with pytest.raises(UserError, match="'colour' is not a setting"):
        kind(**{"colour": "red"})  # type: ignore[arg-type]
