"""Stored responses in PostgreSQL, also in the catalog's database: a bounded pool."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from inferhub.core.errors import SetupError
from inferhub.stores.postgres_pool import PostgresPool, Subject, open_pool
from inferhub.stores.responses.base import Stored

MEASURE_EVERY_S = 60.0
"""Between two looks at how much is stored: the sum reads an index from end to end."""
_REMOVED_AT_ONCE = 64
_SCHEMA = 1

# The lock: "inferhub" and the store, as a number.
_SUBJECT = Subject("responses_url", "stored responses", "responses", lock=0x1F3B_0003)
_TABLES = (
    "CREATE TABLE stored_responses (n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, owner text NOT NULL, "
    "id text NOT NULL, previous_id text NOT NULL, due_ms bigint NOT NULL, size bigint NOT NULL, "
    "value bytea NOT NULL, UNIQUE (owner, id))",
    # It is ciphertext: nothing of it can be made smaller.
    "ALTER TABLE stored_responses ALTER COLUMN value SET STORAGE EXTERNAL",
    "CREATE INDEX stored_responses_due ON stored_responses (due_ms)",
    "CREATE INDEX stored_responses_size ON stored_responses (owner, size)",
    "CREATE TABLE stored_response_items (owner text NOT NULL, item_id text NOT NULL, "
    "response bigint NOT NULL REFERENCES stored_responses ON DELETE CASCADE, "
    "PRIMARY KEY (owner, item_id, response))",
    "CREATE INDEX stored_response_items_response ON stored_response_items (response)",
)
_INSERT = """
WITH put AS (
    INSERT INTO stored_responses (owner, id, previous_id, due_ms, size, value)
    VALUES ($1, $2, $3, $4, $5, $6) RETURNING n)
INSERT INTO stored_response_items (owner, item_id, response)
SELECT $1, item_id, n FROM put, unnest($7::text[]) AS item_id
"""
_DELETE = "DELETE FROM stored_responses WHERE owner = $1 AND id = $2 RETURNING due_ms > $3"
_CHAIN = """
WITH RECURSIVE chain (n, previous_id, depth, total) AS (
    SELECT n, previous_id, 1, size FROM stored_responses WHERE owner = $1 AND id = $2 AND due_ms > $3
    UNION ALL
    SELECT r.n, r.previous_id, depth + 1, total + r.size FROM chain
    JOIN stored_responses AS r ON r.owner = $1 AND r.id = chain.previous_id AND r.due_ms > $3
    WHERE depth < $4 AND total <= $5
)
SELECT r.id, r.previous_id, r.value FROM chain JOIN stored_responses AS r USING (n) ORDER BY depth
"""
_HOLDING = """
SELECT i.item_id, r.id, r.previous_id, r.value
FROM stored_response_items AS i JOIN stored_responses AS r ON r.n = i.response
WHERE i.owner = $1 AND i.item_id = ANY($2::text[]) AND r.due_ms > $3 ORDER BY r.n
"""
_PURGE = (
    "DELETE FROM stored_responses WHERE n IN (SELECT n FROM stored_responses WHERE due_ms <= $1 "
    "LIMIT $2 FOR UPDATE SKIP LOCKED)"
)
# Whoever stores most makes room, so that nobody can push out what others keep; and of that the oldest part,
# so that nobody loses what was stored just now.
_EVICT = """
WITH greedy AS (
    SELECT owner, count(*) AS stored FROM stored_responses GROUP BY owner ORDER BY sum(size) DESC LIMIT 1)
DELETE FROM stored_responses WHERE n IN (
    SELECT n FROM stored_responses WHERE owner = (SELECT owner FROM greedy)
    ORDER BY n LIMIT (SELECT greatest(1, least($1, stored / 8)) FROM greedy) FOR UPDATE SKIP LOCKED)
"""


async def open_responses(
    url: str,
    *,
    max_bytes: int,
    clock: Callable[[], float] = time.time,
    measure_every_s: float = MEASURE_EVERY_S,
) -> PostgresResponses:
    """Open `postgresql://…`, its tables made where needed. Raises `SetupError` with the remedy; its
    `wire_code` is `store_unreachable` where only the server is away."""
    pool = await open_pool(url, _SUBJECT, _migrate)
    return PostgresResponses(pool, max_bytes, clock, measure_every_s)


class PostgresResponses:
    """A `ResponseStore`."""

    def __init__(
        self, pool: PostgresPool, max_bytes: int, clock: Callable[[], float], measure_every_s: float
    ) -> None:
        self._pool = pool
        self._max_bytes = max_bytes
        self._clock = clock
        self._measure_every_s = measure_every_s
        self._measure_at_s = 0.0

    async def put(self, owner: str, stored: Stored, ttl_s: float) -> None:
        now_ms = self._now_ms()
        due_ms = now_ms + max(1, int(ttl_s * 1000))
        row = (owner, stored.id, stored.previous_id, due_ms, len(stored.value), stored.value)

        async def insert(connection: Any) -> None:
            async with connection.transaction():
                await connection.execute(_PURGE, now_ms, _REMOVED_AT_ONCE)
                await connection.execute(_DELETE, owner, stored.id, now_ms)
                await connection.execute(_INSERT, *row, sorted(set(stored.item_ids)))

        await self._pool.run(insert)
        await self._make_room()

    async def chain(
        self, owner: str, response_id: str, *, max_depth: int, max_bytes: int
    ) -> tuple[Stored, ...]:
        asked = (owner, response_id, self._now_ms(), max_depth, max_bytes)
        rows = await self._pool.run(lambda connection: connection.fetch(_CHAIN, *asked))
        return tuple(Stored(*row) for row in rows)

    async def holding(self, owner: str, item_ids: Collection[str]) -> Mapping[str, Stored]:
        asked = (owner, list(item_ids), self._now_ms())
        rows = await self._pool.run(lambda connection: connection.fetch(_HOLDING, *asked))
        return {item_id: Stored(*rest) for item_id, *rest in rows}

    async def delete(self, owner: str, response_id: str) -> bool:
        asked = (owner, response_id, self._now_ms())
        rows = await self._pool.run(lambda connection: connection.fetch(_DELETE, *asked))
        return any(row[0] for row in rows)

    async def ping(self) -> None:
        await self._pool.ping()

    async def close(self) -> None:
        await self._pool.close()

    async def _make_room(self) -> None:
        if time.monotonic() < self._measure_at_s:
            return
        self._measure_at_s = time.monotonic() + self._measure_every_s

        async def evict(connection: Any) -> None:
            while await connection.fetchval("SELECT sum(size) FROM stored_responses") > self._max_bytes:
                if await connection.execute(_EVICT, _REMOVED_AT_ONCE) == "DELETE 0":
                    break

        await self._pool.run(evict)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


async def _migrate(connection: Any, where: str) -> None:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS stored_responses_schema (number integer PRIMARY KEY)"
    )
    found = await connection.fetchval("SELECT COALESCE(MAX(number), 0) FROM stored_responses_schema")
    if found > _SCHEMA:
        raise SetupError(
            f"The stored responses {where} were made by a newer InferHub (schema {found}, this one knows "
            f"{_SCHEMA}). Upgrade InferHub, or choose another responses_url.",
            param="responses_url",
        )
    if found < _SCHEMA:
        for statement in _TABLES:
            await connection.execute(statement)
        await connection.execute("INSERT INTO stored_responses_schema VALUES ($1)", _SCHEMA)
