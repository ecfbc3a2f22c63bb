"""The server's log: a JSON object per line. It has neither prompts nor keys."""

import hashlib
import json
import logging
import time
from typing import Any, Final, TextIO

_NAME: Final = "cascade.serve"
_LOG: Final = logging.getLogger(_NAME)


class JsonLines(logging.Formatter):
    """A record as a line: `time`, `level`, `event`, and the fields it was logged with."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def write_lines(stream: TextIO, quiet: bool = False) -> None:
    """Write what this server, and the one below it, log to a stream, and nowhere else.

    Args:
        quiet: warnings and errors alone.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name in (_NAME, "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logging.getLogger("uvicorn.access").disabled = True  # a line of ours says more


def note(event: str, **fields: Any) -> None:
    """Log what has happened."""
    _LOG.info(event, extra={"fields": fields})


def warn(event: str, **fields: Any) -> None:
    """Log what someone should look at."""
    _LOG.warning(event, extra={"fields": fields})


def hashed(text: str | None) -> str | None:
    """Return the beginning of a text's SHA-256, by which equal ones are known."""
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()[:16]
