"""A line of JSON on stderr for everything that happens."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

_logger = logging.getLogger("fxmerge.serving")


def start(*, quiet: bool = False) -> None:
    """Write lines to stderr from now on, errors alone if `quiet`."""
    handler = _Stderr()
    handler.setFormatter(_Lines())
    for name in ("fxmerge.serving", "uvicorn.error", "grpc"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.ERROR if quiet else logging.INFO if name == "fxmerge.serving" else logging.WARNING)


def log(event: str, *, level: str = "info", **fields: Any) -> None:
    """One line: when, how bad, what, and what it is about."""
    _logger.log(getattr(logging, level.upper()), event, extra={"fields": fields})


class _Stderr(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # whoever read the lines went away: the server goes on
            print(self.format(record), file=sys.stderr, flush=True)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": when, "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)
