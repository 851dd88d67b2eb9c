"""The SQLite file of the answers: opened, and replaced when it is damaged, for it is only a cache.

Called by `sqlite`, in its thread. Several processes may find the damage at once: one moves the file away.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import suppress
from pathlib import Path

from filelock import FileLock

from inferhub.core.errors import SetupError
from inferhub.stores.sqlite_wal import Kind, make_private, marked, primary_code, switch_to_wal

_log = logging.getLogger(__name__)

KIND = Kind("cache_url", "answers", 0x1F4B_CACE, schema=1)
_WAL_WAIT_S = 10.0
_LOCK_WAIT_S = 10.0

_TABLES = (
    "CREATE TABLE IF NOT EXISTS answers "
    "(id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, value BLOB NOT NULL, due_ms INTEGER NOT NULL)",
    "CREATE INDEX IF NOT EXISTS answers_due ON answers (due_ms)",
)
_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def is_corrupt(error: sqlite3.Error) -> bool:
    return primary_code(error) in _CORRUPT


def open_file(path: Path, timeout_s: float) -> tuple[sqlite3.Connection, int]:
    """A connection and the file's inode. A damaged file is moved aside. Raises `SetupError`."""
    try:
        inode = inode_of(path)
        try:
            return _connect(path, timeout_s)
        except sqlite3.Error as error:
            if not is_corrupt(error):
                raise
            replace_file(path, inode, error)
            return _connect(path, timeout_s)
    except (OSError, sqlite3.Error) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise SetupError(
            f"The answers {path} cannot be opened for writing: {reason}. Mend the permissions of the file "
            "and of its folder, or choose another cache_url.",
            param="cache_url",
        ) from error


def inode_of(path: Path) -> int:
    """0 where there is no file."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return 0


def replace_file(path: Path, inode: int, finding: object) -> None:
    """Move the damaged file aside, unless another process has put a new one there since `inode` was seen."""
    with FileLock(f"{path}.lock", timeout=_LOCK_WAIT_S):
        if inode_of(path) != inode or inode == 0:
            return
        aside = path.with_name(f"{path.name}.damaged")
        # The newest damaged one is enough to look at.
        path.replace(aside)
        for suffix in ("-wal", "-shm"):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).unlink()
    _log.warning("the cached answers %s were damaged (%s); moved to %s, starting anew", path, finding, aside)


def _connect(path: Path, timeout_s: float) -> tuple[sqlite3.Connection, int]:
    make_private(path)
    inode = inode_of(path)
    # Handed to one other thread after this.
    connection = sqlite3.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=False)
    try:
        switch_to_wal(connection, _WAL_WAIT_S)
        connection.execute("PRAGMA synchronous=NORMAL")
        with marked(connection, path, KIND) as found:
            if found != KIND.schema:
                # Another version's cache is worth nothing to this one, and nothing to keep.
                connection.execute("DROP TABLE IF EXISTS answers")
            for statement in _TABLES:
                connection.execute(statement)
    except BaseException:
        connection.close()
        raise
    return connection, inode
