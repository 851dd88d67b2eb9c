"""What a worker's process says on stderr, into our log under the worker's name.

Used by `process`. The process logs as JSON; whatever else comes was written by an engine or an interpreter.
"""

from __future__ import annotations

import asyncio
import json
import logging

from inferhub.telemetry.logging import FIELDS

_log = logging.getLogger(__name__)
_LEVELS = {name.lower(): level for name, level in logging.getLevelNamesMapping().items()}


async def forward(stderr: asyncio.StreamReader, worker: str) -> None:
    """Until it is closed."""
    while True:
        try:
            line = await stderr.readline()
        except ValueError:  # longer than the reader's limit; the rest follows as the next line
            continue
        if not line:
            return
        text = line.decode(errors="replace").rstrip()
        if text and not _said_again(text, worker):
            _log.info("%s", text, extra={"worker": worker})


def _said_again(text: str, worker: str) -> bool:
    """False where it is no entry of a log of ours."""
    if not text.startswith("{"):
        return False
    try:
        entry = json.loads(text)
        level, logger, message = _LEVELS[entry["level"]], str(entry["logger"]), str(entry["message"])
    except (ValueError, KeyError, TypeError):
        return False
    if "exception" in entry:
        message += f"\n{entry['exception']}"
    extra = {name: entry[name] for name in FIELDS if name in entry}
    # Only names of ours: a logger lives as long as the process.
    source = logging.getLogger(logger) if logger.startswith("inferhub.") else _log
    source.log(level, "%s", message, extra={**extra, "worker": worker})
    return True
