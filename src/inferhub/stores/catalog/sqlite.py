"""Opens the catalog in an SQLite file: WAL, one writer, query-only readers, migrations, error translation.

Several processes may open one file at once, also for the first time.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from inferhub.core.errors import CatalogCorrupt, InferHubError, SetupError, StoreFailed
from inferhub.stores.catalog import migrations
from inferhub.stores.catalog.sql import SqlCatalog
from inferhub.stores.catalog.sql.session import Database
from inferhub.stores.sqlite_wal import LOCKED, file_of, make_private, primary_code, switch_to_wal

BUSY_TIMEOUT_S = 10.0
READERS = 2

_CORRUPT = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_UNWRITABLE = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}
_FULL = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}


async def open_catalog(url: str) -> SqlCatalog:
    """Open `sqlite:///PATH`, made and migrated where needed. Raises `SetupError` with the remedy."""
    path = file_of(url, "catalog_url")
    await asyncio.to_thread(_prepare, path)
    translate = partial(_translate, path)
    writer = _engine(path, connections=1, setup=("PRAGMA synchronous=NORMAL",))
    reader = _engine(path, connections=READERS, setup=("PRAGMA query_only=ON",))
    # Readers run single statements; the writer takes its lock before it reads, so that two
    # processes never both read and then fail to write.
    reader = reader.execution_options(isolation_level="AUTOCOMMIT")
    event.listen(writer.sync_engine, "begin", _begin_immediate)
    try:
        async with writer.begin() as connection:
            await connection.run_sync(_migrate, path)
    except BaseException as error:
        await writer.dispose()
        await reader.dispose()
        ours = translate(error)
        if ours is not None:
            raise ours from error
        raise
    return SqlCatalog(Database(writer, reader, translate))


def _prepare(path: Path) -> None:
    """Make the file, readable by its owner only, check it, and switch it to WAL."""
    try:
        make_private(path)
    except OSError as error:
        raise SetupError(
            f"The catalog {path} cannot be opened for writing: {error.strerror}. "
            "Choose another data_dir, or mend the permissions.",
            param="catalog_url",
        ) from error
    try:
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            switch_to_wal(connection, BUSY_TIMEOUT_S)
            finding = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise _translate_sqlite(path, error) from error
    if finding != "ok":
        raise _corrupt(path)


def _engine(path: Path, *, connections: int, setup: tuple[str, ...]) -> AsyncEngine:
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=str(path)),
        pool_size=connections,
        max_overflow=0,
        pool_timeout=BUSY_TIMEOUT_S,
        connect_args={"timeout": BUSY_TIMEOUT_S},
        # A failing statement must not put a key's digest into a log.
        hide_parameters=True,
    )
    event.listen(engine.sync_engine, "connect", _on_connect((*setup, "PRAGMA foreign_keys=ON")))
    return engine


def _on_connect(statements: tuple[str, ...]) -> Callable[[Any, Any], None]:
    def run(connection: Any, _record: Any) -> None:
        # Python's driver begins transactions when it sees fit; we say when.
        connection.isolation_level = None
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        cursor.close()

    return run


def _begin_immediate(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _migrate(connection: Connection, path: Path) -> None:
    migrations.bring_up(connection, f"The catalog {path}", "restore a backup of that file")


def _translate(path: Path, error: BaseException) -> InferHubError | None:
    if isinstance(error, PoolTimeout):
        return _busy(path)
    if isinstance(error, DBAPIError) and isinstance(error.orig, sqlite3.Error):
        return _translate_sqlite(path, error.orig)
    if not isinstance(error, SQLAlchemyError):
        return None
    return StoreFailed(f"The catalog {path} failed: {type(error).__name__}.", code="catalog_failed")


def _translate_sqlite(path: Path, error: sqlite3.Error) -> InferHubError:
    code = primary_code(error)
    if code in _CORRUPT:
        return _corrupt(path)
    if code in LOCKED:
        return _busy(path)
    if code in _FULL:
        return SetupError(
            f"The catalog {path} cannot be written: {error}. Free space on its disk; nothing was lost.",
            code="disk_full",
        )
    if code in _UNWRITABLE:
        return SetupError(
            f"The catalog {path} cannot be written: {error}. Mend the permissions of the file and of its "
            "folder, or choose another data_dir.",
            param="catalog_url",
        )
    return StoreFailed(f"The catalog {path} failed: {error}.", code="catalog_failed")


def _busy(path: Path) -> InferHubError:
    return StoreFailed(
        f"The catalog {path} was busy for {BUSY_TIMEOUT_S:g} s; try again.", code="catalog_busy"
    )


def _corrupt(path: Path) -> CatalogCorrupt:
    return CatalogCorrupt(
        f"The catalog {path} is damaged or no SQLite file. Restore it from a backup, or move it and its "
        f"'-wal' and '-shm' companions away to start with an empty one: mv {path} {path}.damaged"
    )
