"""What every SQLite file of ours needs when it is opened: write-ahead mode, and the code behind an error.

Used by the SQLite answers of all the stores.
"""

from __future__ import annotations

import sqlite3
import time

LOCKED = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
"""Another connection has what we want; waiting helps."""


def primary_code(error: sqlite3.Error) -> int:
    """One of `sqlite3.SQLITE_…` without its details; an error that has none is `SQLITE_ERROR`."""
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def switch_to_wal(connection: sqlite3.Connection, wait_s: float) -> None:
    """Raises `sqlite3.OperationalError`."""
    # SQLite does not wait by itself when two processes switch a new file at once.
    give_up_at = time.monotonic() + wait_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if primary_code(error) not in LOCKED or time.monotonic() > give_up_at:
                raise
            time.sleep(0.02)
