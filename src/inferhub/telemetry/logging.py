"""Structured logs on stderr: one JSON object a line, or plain text for people. RFC 3339 in UTC.

Only fields named here leave the process: a prompt or key can not slip in through `extra`.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal

FIELDS = (
    "request_id",
    "model",
    "worker",
    "endpoint",
    "path",
    "port",
    "store",
    "tenant",
    "subject",
    "alert",
    "issuer",
    "way",
    "allowed",
)
"""What a log call may pass in `extra`."""


def configure_logging(level: str, style: Literal["json", "text"], *, process: int | None = None) -> None:
    """`process` stands in every line, where several write to the same stderr."""
    constant: dict[str, object] = {} if process is None else {"process": process}
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(constant) if style == "json" else _TextFormatter(constant))
    root = logging.getLogger("inferhub")
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Formatter(logging.Formatter):
    def __init__(self, constant: dict[str, object]) -> None:
        super().__init__()
        self._constant = constant

    def _fields(self, record: logging.LogRecord) -> dict[str, object]:
        return self._constant | {name: record.__dict__[name] for name in FIELDS if name in record.__dict__}


class _JsonFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields(record),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class _TextFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        # A line break in a message must not forge a second line.
        message = record.getMessage().replace("\n", "\\n").replace("\r", "\\r")
        fields = "".join(f" {name}={value}" for name, value in self._fields(record).items())
        line = f"{_time(record)} {record.levelname:<7} {message}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line
