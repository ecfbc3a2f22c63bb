"""Engines: each takes the U-Net's place in the unchanged samplers."""

from cascade_export.engines.base import Engine, EngineInfo, EngineKind, EngineOptions, StageFiles
from cascade_export.engines.opening import default_device, open_engine, open_engines

__all__ = [
    "Engine",
    "EngineInfo",
    "EngineKind",
    "EngineOptions",
    "StageFiles",
    "default_device",
    "open_engine",
    "open_engines",
]
