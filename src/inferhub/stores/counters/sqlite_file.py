"""Opens the counters' SQLite file: makes it, checks it, refuses what it cannot trust, translates errors.

Called by `sqlite` and its rows. Counters are money: a damaged file is refused, never replaced.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.stores.sqlite_wal import (
    LOCKED,
    Kind,
    make_private,
    marked,
    primary_code,
    refuse_newer,
    switch_to_wal,
)

KIND = Kind("counters_url", "counters", 0x1F4B_C0DE, schema=1)
_WAL_WAIT_S = 10.0

_TABLES = """
CREATE TABLE IF NOT EXISTS gauges (key TEXT PRIMARY KEY, state BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tickets (id TEXT PRIMARY KEY, state BLOB NOT NULL, due_ms INTEGER NOT NULL)
  WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS tickets_due ON tickets (due_ms);
CREATE TABLE IF NOT EXISTS marks (mark TEXT PRIMARY KEY, until_ms INTEGER NOT NULL) WITHOUT ROWID;
"""

_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


def connect(path: Path, timeout_s: float) -> sqlite3.Connection:
    """A connection that may be handed to one other thread. Raises `SetupError` with the remedy."""
    try:
        make_private(path)
        connection = sqlite3.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=False)
    except (OSError, sqlite3.Error) as error:
        raise _unwritable(path, error) from error
    try:
        switch_to_wal(connection, _WAL_WAIT_S)
        connection.execute("PRAGMA synchronous=NORMAL")
        # The same few pages change again and again: copied back rarely, they are copied once for many calls.
        connection.execute("PRAGMA wal_autocheckpoint=8000")
        _prepare(connection, path)
    except sqlite3.Error as error:
        connection.close()
        # At the start everything is for the operator to mend.
        raise (
            _damaged(path, error) if primary_code(error) in _CORRUPT else _unwritable(path, error)
        ) from error
    except BaseException:
        connection.close()
        raise
    return connection


def translate(path: Path, error: sqlite3.Error) -> StoreFailed:
    """What an error of the driver means to a call."""
    code = primary_code(error)
    if code in LOCKED:
        return StoreFailed(f"The counters {path} are locked by another process.")
    if code in _FULL:
        return StoreFailed(f"The counters {path} cannot be written: {error}. Free space on its disk.")
    if code in _CORRUPT:
        return StoreFailed(_damaged(path, error).message)
    return StoreFailed(f"The counters {path} failed: {error}.")


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    finding = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if finding != "ok":
        raise _damaged(path, finding)
    with marked(connection, path, KIND) as found:
        refuse_newer(found, path, KIND)
        for statement in _TABLES.split(";"):
            connection.execute(statement)


def _damaged(path: Path, finding: object) -> SetupError:
    return SetupError(
        f"The counters {path} are damaged: {finding}. Restore the file from a backup, or move it away "
        f"(mv {path} {path}.damaged): all limits and budgets then start from zero.",
        param="counters_url",
    )


def _unwritable(path: Path, error: OSError | sqlite3.Error) -> SetupError:
    reason = error.strerror if isinstance(error, OSError) else error
    return SetupError(
        f"The counters {path} cannot be opened for writing: {reason}. Mend the permissions of the file and "
        "of its folder, or choose another counters_url.",
        param="counters_url",
    )
