"""Importing libraries that talk about parts of themselves that are not used here."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# transformers imports torchao wherever it finds it, and torchao tells, each time, which of its
# compiled parts do not fit this machine and which of its classes PyTorch will treat otherwise.
_TALKERS: Final = ("torchao", "torch.utils._pytree")


@contextmanager
def quiet() -> Iterator[None]:
    """Let these libraries tell of nothing but errors while they are imported."""
    loggers = [logging.getLogger(name) for name in _TALKERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
