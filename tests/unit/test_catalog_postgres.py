"""The catalog in PostgreSQL when the server is gone, frozen, busy, restarted or was named wrongly."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from sqlalchemy import text

from inferhub.core.audit import Act
from inferhub.core.errors import Conflict, InferHubError, SetupError, StoreFailed
from inferhub.core.tenancy import Role
from inferhub.stores import open_catalog
from inferhub.stores.catalog import postgres as postgres_store
from inferhub.stores.catalog.base import Catalog
from inferhub.stores.catalog.keys import issue
from inferhub.testing.backing import Postgres, running_postgres

PEPPER = b"0123456789abcdef"
ACT = Act("cli", "test.act", "anything")
SECONDS = 15.0
"""More than any call may take against a silent server, with room for a busy machine."""


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """Not the one that others share: it is killed and frozen."""
    with running_postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture
def server(own_server: Postgres) -> Iterator[Postgres]:
    yield own_server
    own_server.thaw()


def with_password(url: str) -> str:
    return url.replace("inferhub@", "inferhub:sekret@", 1)


def words(error: BaseException | None) -> str:
    """What the error and everything behind it say; a traceback has no more."""
    if error is None:
        return ""
    behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return f"{error!r} {error} {words(behind)}"


@pytest.fixture
async def catalog(server: Postgres) -> AsyncIterator[Catalog]:
    catalog = await open_catalog(with_password(server.fresh()))
    yield catalog
    await catalog.close()


async def add_key(catalog: Catalog) -> None:
    await catalog.create_key(issue("a", Role.FREE, PEPPER)[1], ACT)


async def fails(work: Any) -> StoreFailed:
    started = time.monotonic()
    with pytest.raises(StoreFailed) as caught:
        await work
    assert time.monotonic() - started < SECONDS
    assert caught.value.http == 503
    assert "sekret" not in words(caught.value)
    assert re.search(r"127\.0\.0\.1:\d+/fresh_\d+", caught.value.message)
    return caught.value


async def test_a_restart_is_not_noticed(server: Postgres, catalog: Catalog) -> None:
    await asyncio.gather(*(catalog.revision() for _ in range(4)))  # connections to lose
    server.restart()
    assert await catalog.revision() == 0
    await asyncio.gather(*(catalog.keys() for _ in range(8)))
    server.restart()
    await add_key(catalog)
    server.kill()
    await fails(catalog.revision())
    await fails(add_key(catalog))
    server.restart()
    assert await catalog.verify_audit() == 1
    await add_key(catalog)


async def test_a_frozen_server_is_an_error_in_seconds(server: Postgres, catalog: Catalog) -> None:
    await add_key(catalog)
    server.freeze()
    assert "in time" in (await fails(catalog.revision())).message
    await fails(add_key(catalog))
    await asyncio.gather(*(fails(catalog.keys()) for _ in range(8)))
    server.thaw()
    assert len(await catalog.keys()) == 1
    await add_key(catalog)
    assert await catalog.verify_audit() == 2


async def test_a_server_that_freezes_in_the_middle_of_a_change(server: Postgres, catalog: Any) -> None:
    async def change() -> None:
        async with catalog._write(ACT) as connection:
            await connection.execute(text("SELECT 1"))
            server.freeze()

    await fails(change())
    server.thaw()
    await add_key(catalog)
    # The change that was cut off is not there, and its lock is gone.
    assert await catalog.verify_audit() == len(await catalog.keys()) == 1


async def test_a_frozen_server_does_not_hold_up_closing(
    server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    catalog = await open_catalog(server.fresh())
    await asyncio.gather(*(catalog.revision() for _ in range(8)))
    server.freeze()
    await asyncio.wait_for(catalog.close(), SECONDS)
    assert "Traceback" not in caplog.text


async def test_a_lock_that_is_never_given_back_is_not_waited_for_forever(
    server: Postgres,
) -> None:
    url = server.fresh()
    catalog, other = await open_catalog(url), await open_catalog(url)
    async with other._write(None):  # type: ignore[attr-defined]
        error = await fails(add_key(catalog))
    assert error.wire_code == "catalog_busy"
    assert error.retryable
    await add_key(catalog)
    await catalog.close()
    await other.close()


async def test_a_client_that_freezes_in_a_change_is_cut_off(postgres: Postgres) -> None:
    catalog: Any = await open_catalog(postgres.fresh())
    limit = "idle_in_transaction_session_timeout"

    async def dawdle() -> None:
        async with catalog._write(ACT) as connection:
            assert (await connection.execute(text(f"SHOW {limit}"))).scalar_one() == "10s"
            await connection.execute(text(f"SET LOCAL {limit} = '100ms'"))
            async with catalog._database.reader.connect() as other:
                query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'"
                give_up_at = time.monotonic() + 5
                while (await other.execute(text(query))).scalar_one() and time.monotonic() < give_up_at:
                    await asyncio.sleep(0.02)

    with pytest.raises(StoreFailed):
        await dawdle()
    await add_key(catalog)
    assert await catalog.verify_audit() == 1
    await catalog.close()


async def test_it_says_who_it_is_and_bounds_its_connections(postgres: Postgres) -> None:
    catalog: Any = await open_catalog(postgres.fresh())
    await asyncio.gather(*(catalog.revision() for _ in range(40)))
    async with catalog._database.reader.connect() as connection:
        query = "SELECT application_name, count(*) FROM pg_stat_activity WHERE datname = current_database() GROUP BY 1"
        found = [tuple(row) for row in await connection.execute(text(query))]
    assert [name for name, _ in found] == ["inferhub"]
    assert 1 <= found[0][1] <= postgres_store.CONNECTIONS
    await catalog.close()


async def test_a_deadlock_or_a_lost_race_is_a_conflict(postgres: Postgres) -> None:
    catalog: Any = await open_catalog(postgres.fresh())
    for state in ("40001", "40P01", "23505"):
        statement = f"DO $$ BEGIN RAISE EXCEPTION 'made' USING ERRCODE = '{state}'; END $$"
        with pytest.raises(Conflict, match="try again"):
            async with catalog._write(ACT) as connection:
                await connection.exec_driver_sql(statement)
    await add_key(catalog)
    await catalog.close()


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:se/kret@h:1/db",
        "postgresql://me:se#kret@h:1/db",
        "postgresql://me:se?kret@h:1/db",
        "postgresql://me:sekret@h:port/db",
        "postgresql://me:se kret@h p:1/db",
        "postgresql://me:sekret@127.0.0.1:99999999/db",
        "postgresql://me:sekret@127.0.0.1:1/db?sslmode=sekret",
        "postgresql://me:sekret@[h/db",
    ],
)
async def test_a_malformed_address_is_a_setup_error_without_the_password(url: str) -> None:
    with pytest.raises(SetupError, match="postgresql://USER") as caught:
        await open_catalog(url)
    assert caught.value.param == "catalog_url"
    assert "kret" not in words(caught.value)


async def test_a_certificate_that_is_not_there_is_a_setup_error() -> None:
    with pytest.raises(SetupError, match="certificate"):
        await open_catalog("postgresql://127.0.0.1:1/db?sslmode=verify-full&sslrootcert=/nowhere/x")


async def test_nobody_listening_is_said_with_the_place(unused_port: int) -> None:
    with pytest.raises(StoreFailed, match=rf"127\.0\.0\.1:{unused_port}/db cannot be reached") as caught:
        await open_catalog(f"postgresql://me:sekret@127.0.0.1:{unused_port}/db")
    assert "sekret" not in words(caught.value)


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def test_setup_errors_name_the_remedy(postgres: Postgres) -> None:
    url = with_password(postgres.fresh())
    base = url.rpartition("/")[0]
    for wrong, remedy in (
        (f"{base}/nowhere", "createdb"),
        (url.replace("inferhub:", "nobody:", 1), "refuses the login"),
        (f"{url}?no_such_setting=1", "postgresql://USER"),
    ):
        with pytest.raises(SetupError, match=remedy) as caught:
            await open_catalog(wrong)
        assert caught.value.param == "catalog_url"
        assert "sekret" not in caught.value.message
    with pytest.raises(InferHubError) as refused:
        await open_catalog(f"{url}?sslmode=require")  # the test's server has no TLS
    assert "sekret" not in words(refused.value)
    await (await open_catalog(f"{url}?sslmode=disable")).close()
    await (await open_catalog(f"{url}?sslmode=prefer")).close()


async def test_a_database_that_may_not_be_changed(postgres: Postgres) -> None:
    url = postgres.fresh()
    name = url.rpartition("/")[2]
    postgres.execute("CREATE ROLE reader LOGIN", name)
    with pytest.raises(SetupError, match="grant it CREATE"):
        await open_catalog(url.replace("inferhub@", "reader@", 1))
    postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with pytest.raises(SetupError, match="read-only"):
        await open_catalog(url)


async def test_neither_digest_nor_password_reach_a_log(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    url = with_password(postgres.fresh())
    catalog: Any = await open_catalog(url)
    plaintext, key = issue("a", Role.FREE, PEPPER)
    await catalog.create_key(key, ACT)
    with pytest.raises(Conflict) as caught:
        await catalog.create_key(key, ACT)
    said = caplog.text + words(caught.value) + repr(vars(catalog))
    for secret in ("sekret", plaintext, plaintext[16:], key.digest.hex(), repr(key.digest)):
        assert secret not in said
    await catalog.close()
