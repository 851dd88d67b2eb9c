"""Opens the counters' SQLite file: makes it, checks it, refuses what it cannot trust, translates errors.

Called by `sqlite` and its rows. Counters are money: a damaged file is refused, never replaced.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.stores.sqlite_wal import LOCKED, primary_code, switch_to_wal

SCHEMA = 1
_APPLICATION_ID = 0x1F4B_C0DE
"""Says that a file is one of these, so that nobody's other database is written into."""
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


def file_of(url: str) -> Path:
    """The path in `sqlite:///PATH`, taken literally."""
    path = url.removeprefix("sqlite:///")
    if path in (url, "", ":memory:"):
        raise SetupError(
            f"counters_url {url[:80]!r} names no file; write sqlite:///ABSOLUTE/PATH.", param="counters_url"
        )
    return Path(path).expanduser().absolute()


def connect(path: Path, timeout_s: float) -> sqlite3.Connection:
    """A connection that may be handed to one other thread. Raises `SetupError` with the remedy."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
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
    connection.execute("BEGIN IMMEDIATE")
    try:
        has_tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] > 0
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        schema = connection.execute("PRAGMA user_version").fetchone()[0]
        if has_tables and owner != _APPLICATION_ID:
            raise SetupError(
                f"{path} is another database, not InferHub's counters. Choose another counters_url.",
                param="counters_url",
            )
        if schema > SCHEMA:
            raise SetupError(
                f"The counters {path} were made by a newer InferHub (schema {schema}, this one knows "
                f"{SCHEMA}). Upgrade InferHub, or choose another counters_url.",
                param="counters_url",
            )
        for statement in _TABLES.split(";"):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={SCHEMA}")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


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
