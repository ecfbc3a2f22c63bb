"""Libraries that talk to their own developers, about parts of themselves not used here."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# transformers imports torchao wherever it finds it, and torchao tells, each time, which of its
# compiled parts do not fit this machine and which of its classes PyTorch will treat otherwise.
_IMPORTED: Final = ("torchao", "torch.utils._pytree")


@contextmanager
def quiet(*talkers: str) -> Iterator[None]:
    """Let loggers tell of nothing but errors.

    Args:
        talkers: their names, "" being the root's; by default who talks while it is imported.
    """
    loggers = [logging.getLogger(name) for name in talkers or _IMPORTED]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
