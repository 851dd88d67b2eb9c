"""Usage in PostgreSQL, also in the catalog's database: a bounded pool, exact sums and percentiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inferhub.core.usage import UsageEvent
from inferhub.stores.postgres_pool import PostgresPool, Subject, open_pool
from inferhub.stores.usage import questions, schema
from inferhub.stores.usage.base import Dimension, Interval, Page, Step, UsageFilter
from inferhub.stores.usage.rows import COLUMNS, from_row, to_row

CHUNK = 1000
"""Rows of one statement: encoding them holds the event loop for a few milliseconds."""

# The lock: "inferhub" and the store, as a number.
_SUBJECT = Subject("usage_url", "usage store", "usage", lock=0x1F3B_0002)


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


async def open_usage(url: str) -> PostgresUsage:
    """Open `postgresql://…`, migrated where needed. Raises `SetupError` with the remedy."""
    return PostgresUsage(await open_pool(url, _SUBJECT, _migrate))


class PostgresUsage:
    """A `UsageStore`."""

    def __init__(self, pool: PostgresPool) -> None:
        self._pool = pool

    async def write(self, events: Sequence[UsageEvent], *, token: str = "") -> None:
        # Two writers that take the same ids in the same order never wait for each other in a circle.
        ordered = sorted(events, key=lambda event: event.id)

        async def insert(connection: Any) -> None:
            async with connection.transaction():
                for start in range(0, len(ordered), CHUNK):
                    rows = map(to_row, ordered[start : start + CHUNK])
                    await connection.execute(_INSERT, *map(list, zip(*rows, strict=True)))

        if events:
            await self._pool.run(insert)

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
        await self._pool.ping()

    async def close(self) -> None:
        await self._pool.close()

    async def _fetch(self, query: questions.Query, sql: str) -> list[Sequence[Any]]:
        rows = await self._pool.run(lambda connection: connection.fetch(sql, *query.values))
        return [tuple(row) for row in rows]


async def _migrate(connection: Any, where: str) -> None:
    await connection.execute("CREATE TABLE IF NOT EXISTS usage_schema (number integer PRIMARY KEY)")
    found = await connection.fetchval("SELECT COALESCE(MAX(number), 0) FROM usage_schema")
    for migration in schema.missing("postgres", found, where):
        for statement in migration.statements:
            await connection.execute(statement)
        await connection.execute("INSERT INTO usage_schema VALUES ($1)", migration.number)
