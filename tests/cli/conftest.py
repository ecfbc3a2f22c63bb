"""Commands run in this process take Ctrl-C as the console does; what they would start is noted."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cascade.config.dreambooth import DreamBoothConfig


@pytest.fixture(autouse=True)
def _interruptible() -> Iterator[None]:
    """Take Ctrl-C as a program does; whoever started the tests may have had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[DreamBoothConfig]:
    """What `cascade dreambooth` would have started."""
    configs: list[DreamBoothConfig] = []

    def personalise(config: DreamBoothConfig) -> Path:
        configs.append(config)
        return config.output_dir

    monkeypatch.setattr("cascade.dreambooth.personalise.personalise", personalise)
    return configs
