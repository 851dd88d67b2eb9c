"""Usage in PostgreSQL, also in the catalog's database: asyncpg, a bounded pool, exact sums and percentiles.

A server that is frozen, gone or restarted costs a caller one bounded wait, never a hang.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import asyncpg  # type: ignore[import-untyped]

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.core.usage import UsageEvent
from inferhub.stores.usage import questions, schema
from inferhub.stores.usage.base import Dimension, Interval, Page, Step, UsageFilter
from inferhub.stores.usage.rows import COLUMNS, from_row, to_row

CONNECT_TIMEOUT_S = 3.0
STATEMENT_TIMEOUT_S = 10.0
MAX_CONNECTIONS = 4
CHUNK = 1000
"""Rows of one statement: encoding them holds the event loop for a few milliseconds."""

# "inferhub" and the store, as a number; whoever holds this lock changes the schema.
_SCHEMA_LOCK = 0x1F3B_0002
_GONE = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.CannotConnectNowError,
)


def _percentiles(measure: str) -> tuple[str, ...]:
    # PostgreSQL computes equal aggregates once.
    both = f"percentile_disc(ARRAY[0.5, 0.95]) WITHIN GROUP (ORDER BY {measure}) FILTER (WHERE status = 'ok')"
    return (f"({both})[1]", f"({both})[2]")


_DIALECT = questions.Dialect(
    placeholder=lambda number, _: f"${number}",
    day="to_char(to_timestamp(at_ms / 1000) AT TIME ZONE 'UTC', 'YYYY-MM-DD')",
    bucket="(at_ms / {step} * {step})",
    costs=("SUM(cost_usd)",),
    percentiles=(*_percentiles("latency_ms"), *_percentiles("first_token_ms")),
)
_TYPES = {
    "is_stream": "boolean",
    "latency_ms": "double precision",
    "first_token_ms": "double precision",
    "cost_usd": "numeric",
    **dict.fromkeys(
        ("at_ms", "attempts", "total_tokens", *questions.SUMS),
        "bigint",
    ),
}
_ARRAYS = ", ".join(f"${n}::{_TYPES.get(name, 'text')}[]" for n, name in enumerate(COLUMNS, 1))
_INSERT = (
    f"INSERT INTO usage_events ({', '.join(COLUMNS)}) SELECT * FROM unnest({_ARRAYS}) "  # noqa: S608
    "ON CONFLICT (id) DO NOTHING"
)

T = TypeVar("T")


async def open_usage(url: str) -> PostgresUsage:
    """Open `postgresql://…`, migrated where needed. Raises `SetupError` with the remedy."""
    where = _where(url)
    pool = _pool(url)
    store = PostgresUsage(pool, where)
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT_S + STATEMENT_TIMEOUT_S):
            await pool
            async with pool.acquire() as connection, connection.transaction():
                await _migrate(connection, where)
    except BaseException as error:
        pool.terminate()
        if isinstance(error, (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, ValueError)):
            raise _unusable(where, error) from error
        raise
    return store


class PostgresUsage:
    """A `UsageStore`."""

    def __init__(self, pool: asyncpg.Pool, where: str) -> None:
        self._pool = pool
        self._where = where

    async def write(self, events: Sequence[UsageEvent], *, token: str = "") -> None:
        # Two writers that take the same ids in the same order never wait for each other in a circle.
        ordered = sorted(events, key=lambda event: event.id)

        async def insert(connection: Any) -> None:
            async with connection.transaction():
                for start in range(0, len(ordered), CHUNK):
                    rows = map(to_row, ordered[start : start + CHUNK])
                    await connection.execute(_INSERT, *map(list, zip(*rows, strict=True)))

        if events:
            await self._run(insert)

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
        query = questions.Query(_DIALECT)
        found = await self._fetch(query, questions.summary(query, where, by, after, limit))
        return questions.to_page(found, len(by), limit)

    async def events(
        self, where: UsageFilter, *, after: tuple[int, str] | None = None, limit: int = 100
    ) -> tuple[UsageEvent, ...]:
        questions.check_limit(limit)
        query = questions.Query(_DIALECT)
        sql = questions.events(query, where, after, limit, ", ".join(COLUMNS))
        return tuple(map(from_row, await self._fetch(query, sql)))

    async def timeline(
        self, where: UsageFilter, step: Step, *, after_ms: int | None = None, limit: int = 100
    ) -> tuple[Interval, ...]:
        questions.check_step(step)
        questions.check_limit(limit)
        query = questions.Query(_DIALECT)
        found = await self._fetch(query, questions.timeline(query, where, step, after_ms, limit))
        return tuple(map(questions.to_interval, found))

    async def ping(self) -> None:
        await self._run(lambda connection: connection.execute("SELECT 1"))

    async def close(self) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._pool.close()
        except (TimeoutError, *_GONE):
            self._pool.terminate()

    async def _fetch(self, query: questions.Query, sql: str) -> list[Sequence[Any]]:
        rows = await self._run(lambda connection: connection.fetch(sql, *query.values))
        return [tuple(row) for row in rows]

    async def _run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        """Raises `StoreFailed`. `work` may run twice: a server that came back left us dead connections."""
        try:
            async with asyncio.timeout(STATEMENT_TIMEOUT_S):
                try:
                    return await self._once(work)
                except _GONE:
                    await self._pool.expire_connections()
                    return await self._once(work)
        except TimeoutError as error:
            raise StoreFailed(
                f"The usage store {self._where} did not answer in {STATEMENT_TIMEOUT_S:g} s."
            ) from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreFailed(f"The usage store {self._where} failed: {_reason(error)}.") from error

    async def _once(self, work: Callable[[Any], Awaitable[T]]) -> T:
        connection = await self._pool.acquire(timeout=CONNECT_TIMEOUT_S)
        try:
            result = await work(connection)
        except BaseException as error:
            if not isinstance(error, asyncpg.PostgresError):
                # It may be in the middle of an answer that never comes; asking it to cancel could hang too.
                connection.terminate()
            await self._pool.release(connection, timeout=CONNECT_TIMEOUT_S)
            raise
        await self._pool.release(connection, timeout=CONNECT_TIMEOUT_S)
        return result


# --- opening ---------------------------------------------------------------------------------------


def _pool(url: str) -> asyncpg.Pool:
    try:
        return asyncpg.create_pool(
            url,
            min_size=0,
            max_size=MAX_CONNECTIONS,
            timeout=CONNECT_TIMEOUT_S,
            server_settings={"application_name": "inferhub"},
        )
    except (ValueError, OSError, asyncpg.InterfaceError) as error:
        raise _malformed() from error


def _where(url: str) -> str:
    """What messages may name: no user, no password, no parameters."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname or 'localhost'}:{parts.port or 5432}{parts.path}"
    except ValueError:
        raise _malformed() from None


async def _migrate(connection: Any, where: str) -> None:
    # Held to the end of the transaction; other processes that start now wait here.
    await connection.execute("SELECT pg_advisory_xact_lock($1)", _SCHEMA_LOCK)
    await connection.execute("CREATE TABLE IF NOT EXISTS usage_schema (number integer PRIMARY KEY)")
    found = await connection.fetchval("SELECT COALESCE(MAX(number), 0) FROM usage_schema")
    for migration in schema.missing("postgres", found, where):
        for statement in migration.statements:
            await connection.execute(statement)
        await connection.execute("INSERT INTO usage_schema VALUES ($1)", migration.number)


def _malformed() -> SetupError:
    return SetupError(
        "usage_url is no PostgreSQL URL; write postgresql://USER:PASSWORD@HOST:PORT/DATABASE.",
        param="usage_url",
    )


def _unusable(where: str, error: BaseException) -> SetupError:
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        return SetupError(
            f"PostgreSQL at {where} refuses the user or password of usage_url. Correct them.",
            param="usage_url",
        )
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return SetupError(
            f"PostgreSQL has no database {where}. Create it, or name another one in usage_url.",
            param="usage_url",
        )
    if isinstance(error, (OSError, asyncpg.CannotConnectNowError)):
        return SetupError(
            f"No PostgreSQL answers at {where}. Start it, or correct usage_url.",
            param="usage_url",
            code="store_unreachable",
        )
    return SetupError(
        f"PostgreSQL at {where} cannot hold the usage: {_reason(error)}. Mend that, or change usage_url.",
        param="usage_url",
    )


def _reason(error: BaseException) -> str:
    """The server's own short message; details may quote rows, and other texts the connection's parameters."""
    if isinstance(error, asyncpg.PostgresError) and getattr(error, "message", None):
        return f"{str(error.message)[:200]} ({error.sqlstate})"
    return type(error).__name__
