"""The pool over a real server that ends connections under it."""

from __future__ import annotations

from typing import Any

import pytest

from inferhub.core.errors import StoreFailed
from inferhub.stores.postgres_pool import Subject, open_pool
from inferhub.testing.backing import Postgres

SUBJECT = Subject("some_url", "some store", "things", lock=0x1F3B_FFFF)


async def _nothing(connection: Any, where: str) -> None: ...


async def test_a_connection_that_died_under_the_work_costs_no_failure(postgres: Postgres) -> None:
    pool = await open_pool(postgres.fresh(), SUBJECT, _nothing)
    backends: list[int] = []

    async def work(connection: Any) -> int:
        backends.append(await connection.fetchval("SELECT pg_backend_pid()"))
        if len(backends) == 1:
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return len(backends)

    assert await pool.run(work) == 2
    assert len(set(backends)) == 2
    await pool.close()


async def test_the_second_death_is_a_failure_and_the_pool_goes_on(postgres: Postgres) -> None:
    pool = await open_pool(postgres.fresh(), SUBJECT, _nothing)
    with pytest.raises(StoreFailed, match=r"The some store .* failed"):
        await pool.run(lambda one: one.execute("SELECT pg_terminate_backend(pg_backend_pid())"))
    with pytest.raises(StoreFailed, match="42P01"):
        await pool.run(lambda one: one.execute("SELECT * FROM nowhere"))
    await pool.ping()
    await pool.close()
