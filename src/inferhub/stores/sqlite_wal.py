"""What every SQLite file of ours needs when it is opened: its path, its owner, its mark, write-ahead mode.

Used by the SQLite answers of all the stores.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from inferhub.core.errors import SetupError

LOCKED = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
"""Another connection has what we want; waiting helps."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file is, for its mark and for messages."""

    setting: str
    content: str
    application_id: int
    """Says that a file is one of these, so that nobody's other database is written into."""
    schema: int


def file_of(url: str, setting: str) -> Path:
    """The path in `sqlite:///PATH`, taken literally. Raises `SetupError`."""
    path = url.removeprefix("sqlite:///")
    if path in (url, "", ":memory:"):
        raise SetupError(f"{setting} names no file; write sqlite:///ABSOLUTE/PATH.", param=setting)
    return Path(path).expanduser().absolute()


def make_private(path: Path) -> None:
    """The file and its folder, its owner's only where they are new. Raises `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


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


@contextmanager
def marked(connection: sqlite3.Connection, path: Path, kind: Kind) -> Iterator[int]:
    """A transaction in which the tables are made, given the schema found (0: none); then the mark is set.

    Raises `SetupError` where the file is somebody else's.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        has_tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0] > 0
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        if has_tables and owner != kind.application_id:
            raise SetupError(
                f"{path} is another database, not InferHub's {kind.content}. Choose another {kind.setting}.",
                param=kind.setting,
            )
        yield connection.execute("PRAGMA user_version").fetchone()[0]
        connection.execute(f"PRAGMA application_id={kind.application_id}")
        connection.execute(f"PRAGMA user_version={kind.schema}")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def refuse_newer(found: int, path: Path, kind: Kind) -> None:
    """Raises `SetupError`."""
    if found > kind.schema:
        raise SetupError(
            f"The {kind.content} {path} were made by a newer InferHub (schema {found}, this one knows "
            f"{kind.schema}). Upgrade InferHub, or choose another {kind.setting}.",
            param=kind.setting,
        )


def used_bytes(connection: sqlite3.Connection) -> int:
    """Of the file, without its free pages."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * size)
