"""A fleet that orchestrators share through PostgreSQL, also in the catalog's database.

Opened by `stores.open_fleet`. The server's clock decides. A server that is away when an orchestrator starts
is connected to on first use: an orchestrator works without it, alone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.stores.fleet.base import Sighting, Wanted, rank
from inferhub.stores.postgres_pool import PostgresPool, Subject, open_pool

TIMEOUT_S = 2.0
"""Of any question, a lost connection and opening included."""
PURGE_EVERY_S = 60.0
_SCHEMA = 1

# The lock: "inferhub" and the store, as a number.
_SUBJECT = Subject("fleet_url", "fleet's store", "fleet", lock=0x1F3B_0004)
_TABLES = (
    # What a worker says every second is worth nothing after a crash of the server: it costs no journal. And
    # its place is written over and over: room on each page lets that happen without touching the index.
    "CREATE UNLOGGED TABLE fleet_sightings (id text PRIMARY KEY, incarnation numeric(20) NOT NULL, "
    "seq numeric(20) NOT NULL, heard_at timestamptz NOT NULL, due_at timestamptz NOT NULL, "
    "record bytea NOT NULL) WITH (fillfactor = 50)",
    "CREATE TABLE fleet_wants (holder text PRIMARY KEY, due_at timestamptz NOT NULL, record bytea NOT NULL)",
    "CREATE TABLE fleet_leader (one boolean PRIMARY KEY DEFAULT true CHECK (one), holder text NOT NULL, "
    "due_at timestamptz NOT NULL)",
)
_SAW = """
INSERT INTO fleet_sightings AS known (id, incarnation, seq, record, heard_at, due_at)
SELECT id, incarnation, seq, record, now() - make_interval(secs => age_s),
       now() + make_interval(secs => $6 - age_s)
FROM unnest($1::text[], $2::numeric[], $3::numeric[], $4::bytea[], $5::float8[])
     AS said (id, incarnation, seq, record, age_s)
ON CONFLICT (id) DO UPDATE
SET incarnation = excluded.incarnation, seq = excluded.seq, record = excluded.record,
    heard_at = excluded.heard_at, due_at = excluded.due_at
WHERE (excluded.incarnation, excluded.seq) > (known.incarnation, known.seq) OR known.due_at <= now()
"""
_SIGHTINGS = """
SELECT id, incarnation, seq, record, greatest(0, extract(epoch FROM now() - heard_at))::float8
FROM fleet_sightings WHERE due_at > now()
"""
_FORGET = "DELETE FROM fleet_sightings WHERE id = $1 AND incarnation <= $2"
_WANT = """
INSERT INTO fleet_wants (holder, record, due_at) VALUES ($1, $2, now() + make_interval(secs => $3))
ON CONFLICT (holder) DO UPDATE SET record = excluded.record, due_at = excluded.due_at
"""
_WANTS = "SELECT holder, record FROM fleet_wants WHERE due_at > now() ORDER BY holder"
# Whoever waits for the row looks at it again, so that of many that ask at once one gets it.
_LEAD = """
INSERT INTO fleet_leader AS current (holder, due_at) VALUES ($1, now() + make_interval(secs => $2))
ON CONFLICT (one) DO UPDATE SET holder = excluded.holder, due_at = excluded.due_at
WHERE current.holder = excluded.holder OR current.due_at <= now()
RETURNING true
"""
_RESIGN = "DELETE FROM fleet_leader WHERE holder = $1"
# Past those that somebody is bringing back at this moment: two that wait for each other would both fail.
_PURGE = tuple(
    f"DELETE FROM {table} WHERE {key} IN "  # noqa: S608 - names of our own
    f"(SELECT {key} FROM {table} WHERE due_at <= now() FOR UPDATE SKIP LOCKED)"
    for table, key in (("fleet_sightings", "id"), ("fleet_wants", "holder"))
)

T = TypeVar("T")


async def open_fleet(
    url: str, *, timeout_s: float = TIMEOUT_S, purge_every_s: float = PURGE_EVERY_S
) -> PostgresFleet:
    """Open `postgresql://…`, its tables made where needed. Raises `SetupError` with the remedy, but not where
    only the server is away."""
    fleet = PostgresFleet(url, timeout_s, purge_every_s)
    try:
        await fleet.open()
    except SetupError as error:
        if error.wire_code != "store_unreachable":
            raise
    return fleet


class PostgresFleet:
    """A `FleetStore`. Made by `open_fleet`."""

    def __init__(self, url: str, timeout_s: float, purge_every_s: float) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._purge_every_s = purge_every_s
        self._purge_at_s = 0.0
        self._pool: PostgresPool | None = None
        self._opening = asyncio.Lock()
        self._is_closed = False

    async def open(self) -> PostgresPool:
        """Who comes while it is being opened waits for that try. Raises `SetupError`."""
        async with self._opening:
            if self._pool is None:
                self._pool = await open_pool(self._url, _SUBJECT, _migrate)
            return self._pool

    async def saw(self, sightings: Sequence[Sighting], ttl_s: float) -> None:
        rows = _newest(sightings)
        if not rows:
            return
        columns = (
            [row.id for row in rows],
            [row.incarnation for row in rows],
            [row.seq for row in rows],
            [row.record for row in rows],
            [max(0.0, row.age_s) for row in rows],
        )
        await self._run(lambda connection: connection.execute(_SAW, *columns, ttl_s))
        if time.monotonic() >= self._purge_at_s:
            self._purge_at_s = time.monotonic() + self._purge_every_s
            await self._run(_purge)

    async def sightings(self) -> Sequence[Sighting]:
        rows = await self._run(lambda connection: connection.fetch(_SIGHTINGS))
        return [Sighting(id_, int(life), int(seq), *rest) for id_, life, seq, *rest in rows]

    async def forget(self, id: str, incarnation: int) -> None:  # noqa: A002 - the noun everywhere
        await self._run(lambda connection: connection.execute(_FORGET, id, incarnation))

    async def want(self, wanted: Wanted, ttl_s: float) -> None:
        await self._run(lambda connection: connection.execute(_WANT, wanted.holder, wanted.record, ttl_s))

    async def wants(self) -> Sequence[Wanted]:
        rows = await self._run(lambda connection: connection.fetch(_WANTS))
        return [Wanted(*row) for row in rows]

    async def lead(self, holder: str, ttl_s: float) -> bool:
        leads = await self._run(lambda connection: connection.fetchval(_LEAD, holder, ttl_s))
        return bool(leads)

    async def resign(self, holder: str) -> None:
        await self._run(lambda connection: connection.execute(_RESIGN, holder))

    async def close(self) -> None:
        self._is_closed = True
        if self._pool is not None:
            await self._pool.close()

    async def _run(self, work: Callable[[Any], Awaitable[T]]) -> T:
        if self._is_closed:
            raise StoreFailed("The fleet's store is closed.")
        try:
            async with asyncio.timeout(self._timeout_s):
                pool = self._pool or await self.open()
                return await pool.run(work)
        except TimeoutError as error:
            raise StoreFailed(f"The fleet's store did not answer in {self._timeout_s:g} s.") from error
        except SetupError as error:
            raise StoreFailed(error.message) from error


def _newest(sightings: Sequence[Sighting]) -> list[Sighting]:
    """One for each worker: a statement may touch a row once. In one order for everybody: two orchestrators
    that lock the same rows in different orders would wait for each other."""
    newest: dict[str, Sighting] = {}
    for sighting in sightings:
        known = newest.get(sighting.id)
        if known is None or rank(sighting) > rank(known):
            newest[sighting.id] = sighting
    return [newest[id_] for id_ in sorted(newest)]


async def _purge(connection: Any) -> None:
    for statement in _PURGE:
        await connection.execute(statement)


async def _migrate(connection: Any, where: str) -> None:
    await connection.execute("CREATE TABLE IF NOT EXISTS fleet_schema (number integer PRIMARY KEY)")
    found = await connection.fetchval("SELECT COALESCE(MAX(number), 0) FROM fleet_schema")
    if found > _SCHEMA:
        raise SetupError(
            f"The fleet's store {where} was made by a newer InferHub (schema {found}, this one knows "
            f"{_SCHEMA}). Upgrade InferHub, or choose another fleet_url.",
            param="fleet_url",
        )
    if found < _SCHEMA:
        for statement in _TABLES:
            await connection.execute(statement)
        await connection.execute("INSERT INTO fleet_schema VALUES ($1)", _SCHEMA)
