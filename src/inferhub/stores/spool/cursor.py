"""How far one consumer has come in one spool: a small file, replaced as a whole. Used by `drain`."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec

from inferhub.stores.spool.files import Files

_log = logging.getLogger(__name__)


class Position(msgspec.Struct, frozen=True):
    """Everything before `start` was taken; from there to `end` was offered, unless `end` is 0."""

    segment: int = 0
    start: int = 0
    end: int = 0


class Cursor:
    """One that is missing or damaged begins at the oldest record: consumers drop what they know."""

    def __init__(self, folder: Path, name: str, files: Files, *, fsync: bool) -> None:
        self._path = folder / f"cursor-{name}"
        self._files = files
        self._fsync = fsync
        self.position = self._load()

    def save(self, position: Position) -> None:
        """Raises `OSError`; then the position is what it was."""
        data = msgspec.json.encode(position)
        os.close(self._files.write_whole(self._path, data, fsync=self._fsync))
        self.position = position

    def _load(self) -> Position:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Position)
        except FileNotFoundError:
            return Position()
        except (OSError, msgspec.MsgspecError) as error:
            _log.error("%s cannot be read (%s); its consumer begins again", self._path, error)
            return Position()
