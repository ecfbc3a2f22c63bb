"""Whatever an export, its engines and its servers are asked: a wrong value is one sentence."""

import math
from typing import Any

import pytest

from cascade.config.base import Frozen
from cascade.config.engine import EngineOptions
from cascade.errors import UserError
from cascade_bench.settings import SampleBenchConfig, StageBenchConfig, TrainBenchConfig
from cascade_export.settings import ExportConfig, Gate, ServerConfig

CLASSES: tuple[type[Frozen], ...] = (
    ExportConfig,
    Gate,
    EngineOptions,
    ServerConfig,
    TrainBenchConfig,
    SampleBenchConfig,
    StageBenchConfig,
)
NO_NUMBERS = (math.nan, math.inf, -1, -0.5, 10**30, 10**5000, "2", True, b"2", [2], {})
NO_OTHERS: dict[str, tuple[object, ...]] = {
    "engine": ("frob", "", 3, None),
    "precision": ("fp8", None),
    "quantization": ("int4", None),
    "calibration_prompts": ((), "a dog", 3, None, (1,), ("a \udcff",)),
    "targets": ("89", (8.9,), ("sm89",), (True,), None),
    "text_encoder": ("frob", None),
    "retry": ("no", 1, None),
    "gate": (None, {"steps": 0}, 3),
    "prompts": ((), "a dog", 3, None, (1,), ("a \udcff",)),
    "device": (3, ["cpu"]),
    "cascade": (3, None, ["mini"]),
    "output": (3, ["a"]),
    "into": (3, ["a"]),
    "bundle": (3, ["a"]),
    "subject": ("../evil", "", "a\nb", "a" * 101, 3),
    "lora": ("a.safetensors", (3,), None),
    "lora_scale": (math.nan, math.inf, 10**30, "2", True, [2], {}),
    "lora_unet_only": ("no", 1, None),
    "embeddings": (3, ["a"]),
    "encoder_mode": ("float16", None, 3),
    "command": (None, 3),
    "spinning": ("no", None),
    "engines": (3, "fast", None, [2]),
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
        words = {name, {"targets": "target", "encoder_mode": "text encoder"}.get(name, name)}
        assert any(word in told for word in words) or "is no text" in told or "\\udcff" in told, (
            wrong,
            told,
        )
        assert "\n" not in told


@pytest.mark.parametrize("kind", CLASSES)
def test_what_nobody_knows_is_told(kind: type[Frozen]) -> None:
    with pytest.raises(UserError, match="'colour' is not a setting"):
        kind(**{"colour": "red"})  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_setting_says_what_it_is(kind: type[Frozen]) -> None:
    assert [name for name, field in kind.model_fields.items() if not field.description] == []
