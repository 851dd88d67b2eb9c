"""Usage stores whose server is killed, frozen, restarted, mistaken or of the future; on servers of their own."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import pytest

from inferhub.core.errors import InferHubError, SetupError, StoreFailed
from inferhub.core.usage import UsageEvent
from inferhub.stores import open_usage, postgres_pool
from inferhub.stores.usage import clickhouse as clickhouse_store
from inferhub.stores.usage import schema
from inferhub.stores.usage.base import UsageFilter, UsageStore
from inferhub.testing.backing import Backing, ClickHouse, Postgres, running_clickhouse, running_postgres
from inferhub.testing.servers import wait_for

ALL = UsageFilter(0, 4_000_000_000_000)
# A frozen server costs at most this, on a machine that is busy with other things, too.
PATIENCE_S = 40.0


def event(number: int) -> UsageEvent:
    return UsageEvent(
        id=f"call_{number:024x}",
        request_id="r",
        at_ms=1_767_225_600_000 + number,
        tenant_id="ten_a",
        project_id="prj_a",
        key_id="key_a",
        modality="chat",
        model="gpt",
        requested_model="gpt",
        cost_usd=Decimal("0.000000000000000007"),
    )


async def count(store: UsageStore) -> int:
    rows = (await store.summary(ALL, ())).rows
    assert not rows or rows[0].cost_usd == rows[0].calls * Decimal("0.000000000000000007")
    return rows[0].calls if rows else 0


@pytest.fixture(scope="module", params=["postgres", "clickhouse"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backing]:
    start = {"postgres": running_postgres, "clickhouse": running_clickhouse}[request.param]
    with start(tmp_path_factory.mktemp(f"own-{request.param}")) as running:
        yield running


async def test_a_restarted_server_takes_the_next_write(server: Backing) -> None:
    store = await open_usage(server.fresh())
    await store.write([event(1)])
    # All of its connections are open, and dead afterwards.
    await asyncio.gather(*(count(store) for _ in range(4)))
    await asyncio.to_thread(server.kill)
    with pytest.raises(StoreFailed):
        await store.write([event(2)])
    with pytest.raises(StoreFailed):
        await store.ping()
    await asyncio.to_thread(server.restart)
    await store.write([event(2)])
    assert await count(store) == 2
    await asyncio.to_thread(server.restart)
    await store.write([event(3)])
    assert await count(store) == 3
    await store.close()


async def test_a_frozen_server_fails_every_question_in_time(
    server: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (postgres_pool, clickhouse_store):
        monkeypatch.setattr(module, "STATEMENT_TIMEOUT_S", 1.5)
    store = await open_usage(server.fresh())
    await store.write([event(1)])
    await asyncio.to_thread(server.freeze)
    try:
        started_s = time.monotonic()
        questions = [store.write([event(2)]), store.ping(), store.summary(ALL, ("day",)), store.events(ALL)]
        results = await asyncio.gather(*questions, *(store.ping() for _ in range(8)), return_exceptions=True)
        assert all(isinstance(result, StoreFailed) for result in results), results
        assert time.monotonic() - started_s < PATIENCE_S
    finally:
        await asyncio.to_thread(server.thaw)
    monkeypatch.undo()
    await store.write([event(2), event(3)])
    assert await count(store) == 3
    await store.close()


async def test_a_cancelled_write_leaves_the_store_usable(server: Backing) -> None:
    store = await open_usage(server.fresh())
    many = [event(number) for number in range(3000)]
    for delay_s in (0.0, 0.005, 0.02, 0.05):
        task = asyncio.create_task(store.write(many))
        await asyncio.sleep(delay_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await store.write(many)
    assert await count(store) == 3000
    await store.close()


async def test_a_killed_server_has_all_of_a_batch_or_none(server: Backing) -> None:
    store = await open_usage(server.fresh())
    chance = random.Random(1)
    size, written = 4000, 0
    for attempt in range(4):
        batch = [event(number) for number in range(attempt * size, (attempt + 1) * size)]
        task = asyncio.create_task(store.write(batch, token=str(attempt)))
        await asyncio.sleep(chance.uniform(0.01, 0.3))
        await asyncio.to_thread(server.kill)
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.to_thread(server.restart)
        found = await count(store)
        assert found in (written, written + size)
        await store.write(batch, token=str(attempt))
        written += size
        assert await count(store) == written
    await store.close()


WRITER = """
import asyncio, sys
sys.path[:0] = sys.argv[2:]
from test_usage_faults import event
from inferhub.stores import open_usage, postgres_pool
async def main():
    store = await open_usage(sys.argv[1])
    batch = [event(number) for number in range(40_000)]
    print("go", flush=True)
    await store.write(batch)
    print("done", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def started_writer(url: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, url, str(Path(__file__).parent)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("wal_bytes", [1, 2_000_000, 8_000_000])
async def test_a_killed_writer_leaves_all_of_a_batch_in_sqlite_or_none(
    tmp_path: Path, wal_bytes: int
) -> None:
    url = f"sqlite:///{tmp_path}/usage.db"
    wal = tmp_path / "usage.db-wal"
    await (await open_usage(url)).close()
    with started_writer(url) as writer:
        assert writer.stdout is not None
        try:
            assert await asyncio.to_thread(writer.stdout.readline) == "go\n"
            await asyncio.to_thread(
                wait_for, lambda: wal.exists() and wal.stat().st_size >= wal_bytes, 60.0, "the file to grow"
            )
        finally:
            os.kill(writer.pid, signal.SIGKILL)
        has_finished = writer.stdout.read() == "done\n"
    store = await open_usage(url)
    found = await count(store)
    assert found in ((40_000,) if has_finished else (0, 40_000))
    await store.write([event(number) for number in range(40_000)])
    assert await count(store) == 40_000
    await store.close()


async def test_a_locked_file_is_reported_and_works_again(tmp_path: Path) -> None:
    store = await open_usage(f"sqlite:///{tmp_path}/usage.db")
    with sqlite3.connect(tmp_path / "usage.db", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreFailed, match="locked"):
            await store.write([event(1)])
        assert await count(store) == 0
        other.execute("ROLLBACK")
    other.close()
    await store.write([event(1)])
    assert await count(store) == 1
    await store.close()


async def test_a_long_question_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await open_usage(f"sqlite:///{tmp_path}/usage.db")
    await store.write([event(number) for number in range(20_000)])
    monkeypatch.setattr("inferhub.stores.usage.sqlite.STATEMENT_TIMEOUT_S", 0.001)
    with pytest.raises(StoreFailed, match="did not answer"):
        await store.summary(ALL, ("key", "model", "day", "status"))
    monkeypatch.undo()
    assert await count(store) == 20_000
    await store.close()


# --- opening ---------------------------------------------------------------------------------------

SECRET = "hunter2-canary"


async def refusal(url: str) -> str:
    """What is said of `url`, with everything that a log would show of it."""
    with pytest.raises(SetupError) as caught:
        await open_usage(url)
    assert caught.value.param == "usage_url"
    error: BaseException | None = caught.value
    assert isinstance(error, InferHubError)
    said = error.message
    while error is not None:
        assert SECRET not in f"{error} {error!r}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return said


@pytest.mark.parametrize(
    "url",
    [
        "usage.db",
        f"mysql://root:{SECRET}@localhost/usage",
        f"postgres:{SECRET}@localhost",
        "sqlite://usage.db",
        "sqlite:///",
        f"postgresql://u:{SECRET}@localhost:port/x",
        f"clickhouse://u:{SECRET}@localhost:99999/x",
        f"clickhouse://u:{SECRET}@localhost/x?secure={SECRET}",
        f"clickhouse://:{SECRET}@/x",
    ],
)
async def test_a_url_that_is_none_is_refused(url: str) -> None:
    assert "usage_url" in await refusal(url)


@pytest.mark.parametrize("scheme", ["postgresql", "clickhouse", "clickhouses"])
async def test_a_server_that_is_not_there_is_named_without_its_password(scheme: str) -> None:
    with pytest.raises(SetupError, match=r"127\.0\.0\.1:9/x") as caught:
        await open_usage(f"{scheme}://me:{SECRET}@127.0.0.1:9/x")
    assert caught.value.wire_code == "store_unreachable"
    await refusal(f"{scheme}://me:{SECRET}@127.0.0.1:9/x")


async def test_a_frozen_server_fails_the_opening_in_time(
    server: Backing, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (postgres_pool, clickhouse_store):
        monkeypatch.setattr(module, "CONNECT_TIMEOUT_S", 0.5)
        monkeypatch.setattr(module, "STATEMENT_TIMEOUT_S", 1.0)
    url = server.fresh()
    await asyncio.to_thread(server.freeze)
    try:
        async with asyncio.timeout(PATIENCE_S):
            assert "answers at" in await refusal(url)
    finally:
        await asyncio.to_thread(server.thaw)


async def test_a_wrong_password_is_named(postgres: Postgres) -> None:
    postgres.execute(f"CREATE ROLE locked_out LOGIN PASSWORD '{SECRET}-right'")
    rules = postgres.execute("SHOW hba_file")
    lines = "host all locked_out 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust"
    postgres.execute(f"COPY (SELECT unnest(string_to_array(E'{lines}', E'\\n'))) TO '{rules}'")
    postgres.execute("SELECT pg_reload_conf()")
    place = postgres.fresh().partition("@")[2]

    async def said() -> str:
        try:
            return await refusal(f"postgresql://locked_out:{SECRET}@{place}")
        except pytest.fail.Exception:
            # The new rules are not read yet.
            return ""

    async with asyncio.timeout(30):
        while "refuses the user or password" not in await said():
            await asyncio.sleep(0.05)


async def test_a_missing_database_is_named(postgres: Postgres, clickhouse: ClickHouse) -> None:
    for server in (postgres, clickhouse):
        url = server.fresh().rpartition("/")[0] + "/nowhere"
        assert "has no database" in await refusal(url)
        assert "/nowhere" in await refusal(url)


@pytest.mark.parametrize("kind", ["sqlite", "postgres", "clickhouse"])
async def test_a_newer_schema_is_refused(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    url = f"sqlite:///{tmp_path}/usage.db"
    if kind != "sqlite":
        url = request.getfixturevalue(kind).fresh()
    await (await open_usage(url)).close()
    insert = "INSERT INTO usage_schema (number) VALUES (999)"
    if kind == "sqlite":
        with sqlite3.connect(tmp_path / "usage.db") as file:
            file.execute(insert)
        file.close()
    elif kind == "postgres":
        request.getfixturevalue(kind).execute(insert, url.rpartition("/")[2])
    else:
        request.getfixturevalue(kind).execute(
            insert.replace("usage_schema", url.rpartition("/")[2] + ".usage_schema")
        )
    said = await refusal(url)
    assert "schema 999" in said
    assert "Upgrade InferHub" in said


async def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    path.write_bytes(b"these are not the bytes of a database" * 100)
    assert str(path) in await refusal(f"sqlite:///{path}")
    assert path.read_bytes().startswith(b"these")


async def test_the_file_is_its_owners_only(tmp_path: Path) -> None:
    await (await open_usage(f"sqlite:///{tmp_path}/data/usage.db")).close()
    assert (tmp_path / "data" / "usage.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("dialect", ["sqlite", "postgres", "clickhouse"])
def test_migrations_are_numbered_without_gaps(dialect: schema.Dialect) -> None:
    found = schema.migrations(dialect)
    assert [one.number for one in found] == list(range(1, len(found) + 1))
    assert all(one.statements for one in found)


@pytest.mark.parametrize("module", ["clickhouse", "postgres", "sqlite"])
def test_a_store_loads_neither_the_others_nor_numpy(module: str) -> None:
    program = f"import sys, inferhub.stores.usage.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    strangers = {"numpy", "pandas", "pyarrow", "polars", "sqlalchemy", "asyncpg", "clickhouse_connect"}
    own = {"postgres": {"asyncpg"}, "clickhouse": {"clickhouse_connect"}}.get(module, set())
    assert loaded & strangers == own
