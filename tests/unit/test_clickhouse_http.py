"""The HTTP interface over ClickHouse's engine does what a server does, and refuses what a server refuses."""

# ruff: noqa: S608 - statements of a test's own
from __future__ import annotations

import asyncio
import gzip
import signal
from pathlib import Path
from typing import Any

import aiohttp
import clickhouse_connect
import pytest
from clickhouse_connect.driver.exceptions import DatabaseError

from inferhub.testing import clickhouse_http
from inferhub.testing.backing import ClickHouse, running_clickhouse
from inferhub.testing.servers import wait_for

PATIENCE_S = 60.0


async def ask(
    clickhouse: ClickHouse, sql: str = "", data: bytes | None = None, **options: Any
) -> tuple[int, str]:
    """(status, text), with any further `params` and `headers`."""
    params = {**({"query": sql} if sql else {}), **options.pop("params", {})}
    async with (
        aiohttp.ClientSession() as session,
        session.post(clickhouse.http_url + "/", params=params, data=data, **options) as response,
    ):
        return response.status, await response.text()


async def test_a_deduplication_token_holds_for_its_insert_only(clickhouse: ClickHouse) -> None:
    client = await clickhouse_connect.get_async_client(dsn=clickhouse.fresh())
    await client.command(
        "CREATE TABLE t (n UInt8) ENGINE = MergeTree ORDER BY n SETTINGS non_replicated_deduplication_window = 100"
    )
    for token in ("a", "a", "b", None, None):
        settings = {"insert_deduplication_token": token} if token else {}
        await client.insert("t", [[7]], column_names=["n"], settings=settings)
    # Without a token the block's own hash decides: the first of the two is new, the second is not.
    assert await client.command("SELECT count() FROM t") == 3
    assert await client.command("SELECT getSetting('insert_deduplication_token')") == ""
    await client.close()


async def test_database_and_settings_end_with_their_request(clickhouse: ClickHouse) -> None:
    name = clickhouse.fresh().rpartition("/")[2]
    question = "SELECT currentDatabase(), toInt8(getSetting('max_threads') = 3)"
    given = {"database": name, "max_threads": "3"}
    assert await ask(clickhouse, question, params=given) == (200, f"{name}\t1\n")
    assert await ask(clickhouse, question) == (200, "default\t0\n")


@pytest.mark.parametrize(
    ("sql", "data"),
    [
        ("INSERT INTO {t} FORMAT TSV", b"1\n2\n"),
        ("", b"INSERT INTO {t} FORMAT TSV\n1\n2\n"),
        ("", b"insert into `{d}`.`t` (`n`) settings max_threads = 2 format TSV\n1\n2\n"),
        ("INSERT INTO {t} VALUES", b"(1),(2)"),
        ("", b"INSERT INTO {t} SELECT number + 1 FROM numbers(2);"),
        ("INSERT INTO {t} FORMAT JSONEachRow", b'{"n": 1} {"n": 2}'),
    ],
)
async def test_every_way_to_insert(clickhouse: ClickHouse, sql: str, data: bytes) -> None:
    name = clickhouse.fresh().rpartition("/")[2]
    clickhouse.execute(f"CREATE TABLE {name}.t (n UInt8) ENGINE = MergeTree ORDER BY n")
    body = data.replace(b"{t}", f"{name}.t".encode()).replace(b"{d}", name.encode())
    assert await ask(clickhouse, sql.replace("{t}", f"{name}.t"), body) == (200, "")
    assert clickhouse.execute(f"SELECT groupArray(n) FROM {name}.t") == b"[1,2]\n"


async def test_rows_that_look_like_a_format_are_rows(clickhouse: ClickHouse) -> None:
    name = clickhouse.fresh().rpartition("/")[2]
    clickhouse.execute(f"CREATE TABLE {name}.t (s String) ENGINE = MergeTree ORDER BY s")
    clickhouse.execute(f"INSERT INTO {name}.t VALUES ('a; FORMAT TSV \n b')")
    assert clickhouse.execute(f"SELECT s FROM {name}.t") == b"a; FORMAT TSV \\n b\n"


@pytest.mark.parametrize(
    ("sql", "status", "code"),
    [
        ("SELEC 1", 400, 62),
        ("SELECT * FROM nowhere", 404, 60),
        ("SELECT nothing", 404, 47),
        ("SELECT throwIf(1)", 500, 395),
        ("SELECT 1; SELECT 2", 400, 62),
        ("INSERT INTO nowhere FORMAT TSV", 404, 60),
    ],
)
async def test_errors_are_clickhouses_own(clickhouse: ClickHouse, sql: str, status: int, code: int) -> None:
    got, text = await ask(clickhouse, sql)
    assert got == status
    assert text.startswith(f"Code: {code}. DB::Exception: ")


async def test_what_is_not_served_is_refused(clickhouse: ClickHouse) -> None:
    assert (await ask(clickhouse, "SELECT 1", params={"no_such_setting": "1"}))[1].startswith("Code: 115.")
    assert (await ask(clickhouse, "SELECT 1", params={"x = 1, y": "1"}))[1].startswith("Code: 36.")
    assert (await ask(clickhouse, "SELECT 1", params={"database": "nowhere"}))[1].startswith("Code: 81.")
    assert (await ask(clickhouse, "SELECT 1", params={"compress": "1"}))[0] == 501
    assert (await ask(clickhouse, "SELECT 1", b"x", headers={"Content-Encoding": "lz4"}))[0] == 400
    async with (
        aiohttp.ClientSession() as session,
        session.get(clickhouse.http_url + "/", params={"query": "CREATE DATABASE by_get"}) as response,
    ):
        assert (await response.text()).startswith("Code: 164.")


async def test_a_setting_is_a_value_and_never_sql(clickhouse: ClickHouse) -> None:
    token = "x', max_threads = '1\\"
    question = "SELECT getSetting('insert_deduplication_token')"
    params = {"insert_deduplication_token": token, "default_format": "TSVRaw"}
    assert await ask(clickhouse, question, params=params) == (200, token + "\n")


@pytest.mark.parametrize("encoding", ["gzip", "lz4"])
async def test_a_body_that_unpacks_to_too_much_is_refused(clickhouse: ClickHouse, encoding: str) -> None:
    plain = bytes(clickhouse_http.MAX_BODY_BYTES + 1)
    body = gzip.compress(plain, 1) if encoding == "gzip" else clickhouse_http._COMPRESS["lz4"](plain)
    assert (await ask(clickhouse, "SELECT 1", body, headers={"Content-Encoding": encoding}))[0] == 413


async def test_a_result_that_is_too_much_is_refused(clickhouse: ClickHouse) -> None:
    assert (await ask(clickhouse, "SELECT repeat('x', 1000) FROM numbers(200000)"))[1].startswith(
        "Code: 396."
    )


async def test_slow_queries_hold_up_nobody_but_their_own_session(tmp_path: Path) -> None:
    with running_clickhouse(tmp_path) as clickhouse:
        settings = {"function_sleep_max_microseconds_per_block": "600000000"}
        asked = [
            ask(clickhouse, "SELECT sleep(600)", params={**settings, "session_id": f"s{n}"}) for n in range(4)
        ]
        slow = [asyncio.create_task(one) for one in asked]
        running = b"SELECT count() FROM system.processes WHERE query = 'SELECT sleep(600)'"
        while (await ask(clickhouse, "", running))[1] != "4\n":
            await asyncio.sleep(0.01)
        async with (
            aiohttp.ClientSession() as session,
            session.get(clickhouse.http_url + "/ping") as response,
        ):
            assert await response.text() == "Ok.\n"
        assert (await ask(clickhouse, "SELECT 1", params={"session_id": "other"})) == (200, "1\n")
        assert (await ask(clickhouse, "SELECT 1", params={"session_id": "s0"}))[1].startswith("Code: 373.")
        assert not any(task.done() for task in slow)
        clickhouse.kill()
        ends = await asyncio.gather(*slow, return_exceptions=True)
        assert all(isinstance(end, aiohttp.ClientError) for end in ends)


async def test_a_refused_insert_writes_nothing(clickhouse: ClickHouse) -> None:
    client = await clickhouse_connect.get_async_client(dsn=clickhouse.fresh())
    await client.command(
        "CREATE TABLE t (n UInt8, CONSTRAINT small CHECK n < 9) ENGINE = MergeTree ORDER BY n"
    )
    with pytest.raises(DatabaseError, match="469"):
        await client.insert("t", [[1], [20]], column_names=["n"])
    assert await client.command("SELECT count() FROM t") == 0
    await client.close()


async def test_a_stopped_server_answers_what_it_was_asked(tmp_path: Path) -> None:
    with running_clickhouse(tmp_path) as clickhouse:
        running = asyncio.create_task(ask(clickhouse, "SELECT sleep(2)"))
        question = b"SELECT count() FROM system.processes WHERE query = 'SELECT sleep(2)'"
        while not running.done() and (await ask(clickhouse, "", question))[1] != "1\n":
            await asyncio.sleep(0.01)
        clickhouse.process.send(signal.SIGTERM)
        assert await asyncio.wait_for(running, PATIENCE_S) == (200, "0\n")
        wait_for(lambda: clickhouse.process.exit_code is not None, PATIENCE_S, "the server to end")
        assert clickhouse.process.exit_code == 0
