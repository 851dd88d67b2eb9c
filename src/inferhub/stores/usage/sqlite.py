"""Usage in one SQLite file: WAL, plain `sqlite3` in a thread, exact sums and percentiles.

Several processes may open and write one file at once. The event loop never waits for the disk.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.core.usage import UsageEvent
from inferhub.stores.sqlite_wal import file_of, make_private, switch_to_wal
from inferhub.stores.usage import questions, schema
from inferhub.stores.usage.base import Dimension, Interval, Page, Step, UsageFilter
from inferhub.stores.usage.rows import COLUMNS, COST, from_nano_and_atto, from_row, to_nano_and_atto, to_row

BUSY_TIMEOUT_S = 5.0
STATEMENT_TIMEOUT_S = 10.0

_DIALECT = questions.Dialect(
    placeholder=lambda number, _: f"?{number}",
    day="date(at_ms / 1000, 'unixepoch')",
    bucket="(at_ms / {step} * {step})",
    costs=("SUM(cost_nano)", "SUM(cost_atto)"),
)
_STORED = [
    name for column in COLUMNS for name in (("cost_nano", "cost_atto") if column == "cost_usd" else (column,))
]
# Not OR IGNORE: that would pass over a row that breaks any other rule, too.
_INSERT = (
    f"INSERT INTO usage_events ({', '.join(_STORED)}) "  # noqa: S608
    f"VALUES ({', '.join('?' * len(_STORED))}) ON CONFLICT (id) DO NOTHING"
)
# By window functions and not by an aggregate in Python, which would take the interpreter's lock for every
# row of a year's usage and starve the event loop.
_RANKED = """
WITH picked AS (
    SELECT {keys}{measure} AS v FROM usage_events
    WHERE {terms} AND status = 'ok' AND {measure} IS NOT NULL
), ranked AS (
    SELECT {names}v, ROW_NUMBER() OVER ({partition} ORDER BY v) AS r, COUNT(*) OVER ({partition}) AS n
    FROM picked
)
SELECT {names}
    MAX(CASE WHEN r = (n * 50 + 99) / 100 THEN v END),
    MAX(CASE WHEN r = (n * 95 + 99) / 100 THEN v END)
FROM ranked{grouped}
"""
MEASURES = ("latency_ms", "first_token_ms")

T = TypeVar("T")


async def open_usage(url: str) -> SqliteUsage:
    """Open `sqlite:///PATH`, made and migrated where needed. Raises `SetupError` with the remedy."""
    path = file_of(url, "usage_url")
    writer = await asyncio.to_thread(_prepare, path)
    reader = await asyncio.to_thread(_connect, path)
    return SqliteUsage(_Session(path, writer), _Session(path, reader))


class SqliteUsage:
    """A `UsageStore`. One connection writes and another one reads, so a long question delays no batch."""

    def __init__(self, writer: _Session, reader: _Session) -> None:
        self._writer = writer
        self._reader = reader

    async def write(self, events: Sequence[UsageEvent], *, token: str = "") -> None:
        if events:
            await self._writer.run(partial(_insert, tuple(events)))

    async def summary(
        self,
        where: UsageFilter,
        by: Sequence[Dimension],
        *,
        after: tuple[str, ...] | None = None,
        limit: int = 100,
    ) -> Page:
        questions.check_dimensions(by, after)
        questions.check_limit(limit)
        return await self._reader.run(partial(_summary, where, tuple(by), after, limit))

    async def events(
        self, where: UsageFilter, *, after: tuple[int, str] | None = None, limit: int = 100
    ) -> tuple[UsageEvent, ...]:
        questions.check_limit(limit)
        query = questions.Query(_DIALECT)
        sql = questions.events(query, where, after, limit, ", ".join(_STORED))
        found = await self._reader.run(lambda connection: connection.execute(sql, query.values).fetchall())
        return tuple(map(_to_event, found))

    async def timeline(
        self, where: UsageFilter, step: Step, *, after_ms: int | None = None, limit: int = 100
    ) -> tuple[Interval, ...]:
        questions.check_step(step)
        questions.check_limit(limit)
        return await self._reader.run(partial(_timeline, where, step, after_ms, limit))

    async def ping(self) -> None:
        await self._reader.run(lambda connection: connection.execute("SELECT 1 FROM usage_schema").fetchone())

    async def close(self) -> None:
        await self._writer.close()
        await self._reader.close()


class _Session:
    """One connection, used by one thread at a time."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._lock = asyncio.Lock()

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Raises `StoreFailed`. What is cancelled, or takes too long, is interrupted and rolled back."""
        try:
            async with asyncio.timeout(STATEMENT_TIMEOUT_S), self._lock:
                return await self._in_thread(work)
        except TimeoutError as error:
            raise StoreFailed(
                f"The usage store {self._path} did not answer in {STATEMENT_TIMEOUT_S:g} s."
            ) from error
        except sqlite3.Error as error:
            raise StoreFailed(f"The usage store {self._path} failed: {error}.") from error

    async def _in_thread(self, work: Callable[[sqlite3.Connection], T]) -> T:
        future = asyncio.get_running_loop().run_in_executor(None, work, self._connection)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            # The lock is ours until the thread has left the connection.
            while not future.done():
                self._connection.interrupt()
                await asyncio.wait([future], timeout=0.1)
            future.exception()
            raise

    async def close(self) -> None:
        async with self._lock:
            await asyncio.to_thread(self._connection.close)


# --- in the thread ---------------------------------------------------------------------------------


def _insert(events: Sequence[UsageEvent], connection: sqlite3.Connection) -> None:
    rows = list(map(_to_stored, events))
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.executemany(_INSERT, rows)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _to_stored(event: UsageEvent) -> list[Any]:
    row = to_row(event)
    row[COST : COST + 1] = to_nano_and_atto(row[COST])
    return row


def _to_event(stored: Sequence[Any]) -> UsageEvent:
    row = list(stored)
    row[COST : COST + 2] = [from_nano_and_atto(row[COST], row[COST + 1])]
    return from_row(row)


def _summary(
    where: UsageFilter,
    by: tuple[Dimension, ...],
    after: tuple[str, ...] | None,
    limit: int,
    connection: sqlite3.Connection,
) -> Page:
    query = questions.Query(_DIALECT)
    sql = questions.summary(query, where, by, after, limit)
    keys = [query.key(dimension) for dimension in by]
    with _one_moment(connection):
        found = connection.execute(sql, query.values).fetchall()
        ranks = _ranks(where, keys, found[:limit], connection)
    complete = [(*row[:-2], from_nano_and_atto(*row[-2:]), *ranks(row)) for row in found]
    return questions.to_page(complete, len(by), limit)


def _timeline(
    where: UsageFilter, step: Step, after_ms: int | None, limit: int, connection: sqlite3.Connection
) -> tuple[Interval, ...]:
    query = questions.Query(_DIALECT)
    sql = questions.timeline(query, where, step, after_ms, limit)
    with _one_moment(connection):
        found = connection.execute(sql, query.values).fetchall()
        ranks = _ranks(where, [_DIALECT.bucket.format(step=questions.STEP_MS[step])], found, connection)
    return tuple(questions.to_interval((*row, *ranks(row))) for row in found)


@contextmanager
def _one_moment(connection: sqlite3.Connection) -> Iterator[None]:
    """Groups and their percentiles are of the same events."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _ranks(
    where: UsageFilter, keys: Sequence[str], groups: Sequence[tuple[Any, ...]], connection: sqlite3.Connection
) -> Callable[[tuple[Any, ...]], tuple[float | None, ...]]:
    """What gives a row of `groups`, which begins with its keys, its percentiles of every measure."""
    size = len(keys)
    tables: list[dict[tuple[Any, ...], tuple[float, float]]] = []
    for measure in MEASURES if groups else ():
        query = questions.Query(_DIALECT)
        terms = query.where(where)
        if keys:
            first, last = groups[0][:size], groups[-1][:size]
            terms += f" AND {query.compare(keys, '>=', first)} AND {query.compare(keys, '<=', last)}"
        rows = connection.execute(_ranking(keys, measure, terms), query.values)
        tables.append({row[:size]: (row[-2], row[-1]) for row in rows})
    nothing = (None, None)
    return lambda row: tuple(value for table in tables for value in table.get(row[:size], nothing))


def _ranking(keys: Sequence[str], measure: str, terms: str) -> str:
    names = [f"k{index}" for index in range(len(keys))]
    return _RANKED.format(
        keys="".join(f"{key} AS {name}, " for key, name in zip(keys, names, strict=True)),
        names="".join(f"{name}, " for name in names),
        measure=measure,
        terms=terms,
        partition=f"PARTITION BY {', '.join(names)}" if names else "",
        grouped=f" GROUP BY {', '.join(names)}" if names else "",
    )


# --- opening ---------------------------------------------------------------------------------------


def _prepare(path: Path) -> sqlite3.Connection:
    """The writer's connection to a file that exists, is its owner's only, and has today's schema."""
    try:
        make_private(path)
    except OSError as error:
        raise _unusable(path, error.strerror or type(error).__name__) from error
    connection = _connect(path)
    try:
        switch_to_wal(connection, BUSY_TIMEOUT_S)
        _migrate(connection, path)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise _unusable(path, str(error)) from error
        raise
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        # An answered batch is forgotten by the spool, so it must outlive a power cut here.
        connection.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error as error:
        raise _unusable(path, str(error)) from error
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS usage_schema (number INTEGER PRIMARY KEY) STRICT")
        (found,) = connection.execute("SELECT COALESCE(MAX(number), 0) FROM usage_schema").fetchone()
        for migration in schema.missing("sqlite", found, str(path)):
            for statement in migration.statements:
                connection.execute(statement)
            connection.execute("INSERT INTO usage_schema VALUES (?)", (migration.number,))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _unusable(path: Path, reason: str) -> SetupError:
    return SetupError(
        f"The usage store {path} cannot be opened: {reason}. Mend the file and its folder's permissions, or "
        "choose another usage_url; a damaged file can be moved away, or restored from a backup.",
        param="usage_url",
    )
