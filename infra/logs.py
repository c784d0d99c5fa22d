"""Logs as JSON lines on standard output: facts with a time, a level, the correlation id and the position."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from events.values import time_text

correlation_id: ContextVar[str | None] = ContextVar("correlation_id", default=None)
"""Of the request that is being worked on."""

# What every record has; anything else was given as ``extra`` and is a fact to log.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self.service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time_text(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "service": self.service,
            "logger": record.name,
            "event": record.getMessage(),
        }
        if (correlation := correlation_id.get()) is not None:
            line["correlation_id"] = correlation
        line.update((name, value) for name, value in vars(record).items() if name not in _STANDARD)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        try:
            return to_json(line, serialize_unknown=True).decode()
        except PydanticSerializationError:  # a text that has no UTF-8: half of a surrogate pair
            return json.dumps(line, default=str)


def configure(service: str, level: str) -> None:
    """Send the logs of this process, its libraries' included, to standard output as JSON lines."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # They log each request, each statement or each retry: facts that belong to metrics.
    for name in ("uvicorn.access", "httpx", "aiormq", "aio_pika", "psycopg.pool", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # What these log as errors, with tracebacks, is raised too, and told by whoever decides what it means.
    for name in ("aiormq.connection", "aiormq.channel"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
