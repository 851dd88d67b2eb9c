"""A store behind the gateway dies, stands still or was never there: calls are answered all the same.

Real servers, broken on purpose under a steady stream of calls. Afterwards all is as before by itself, and
the usage store holds every answered call once.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sqlite3
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer  # type: ignore[import-untyped]

from inferhub.testing.backing import (
    Backing,
    Kafka,
    Postgres,
    running_clickhouse,
    running_kafka,
    running_postgres,
    running_valkey,
)
from inferhub.testing.raw_http import Answer
from inferhub.testing.servers import Hub, fetch, running_hub, start_service, wait_for
from inferhub.testing.steady import Steady, ledger
from inferhub.testing.talk import Talk

SPEC = "models:\n  - {name: echo, backend: echo, slots: 64}\n"
HUNG_S = 20.0
"""Longer than any documented wait for a store, and far less than a hang."""
BACK_S = 60.0
"""Far more than it takes to come back: no test is about the machine's speed."""
GATEWAYS = 2
LIMIT = 20


@contextmanager
def running(folder: Path, **settings: object) -> Iterator[Hub]:
    with running_hub("serve", folder, SPEC, {"drain_grace_s": 5, **settings}) as hub:
        yield hub


def stores(hub: Hub) -> dict[str, Any]:
    state: dict[str, Any] = hub.get("/readyz?verbose")
    return dict(state["stores"])


def wait_for_state(hub: Hub, store: str, expected: str) -> None:
    """`/readyz?verbose` and the metric say so, and `/readyz` goes on saying that it serves."""

    def is_said() -> bool:
        assert fetch(f"{hub.url}/readyz")[0] == 200
        up = hub.metric("inferhub_store_up", store=store)
        return stores(hub)[store] == expected and up == (expected == "ok")

    wait_for(is_said, BACK_S, f"{store} to be {expected}")


def check_calls(calls: Steady) -> None:
    assert calls.failed == []
    assert calls.slowest_s < HUNG_S


def check_ledger(hub: Hub, calls: Steady) -> None:
    """Every answered call once, and nothing else."""
    answered = calls.answered

    def ids() -> list[str]:
        return sorted(e["request_id"] for e in ledger(hub) if e["request_id"].startswith(calls.prefix))

    wait_for(lambda: len(ids()) >= len(answered), BACK_S, "the ledger to be complete")
    assert ids() == answered


def ask(hub: Hub, method: str, path: str, body: Any = b"", *, key: str | None = None) -> Answer:
    return asyncio.run(Talk(hub.url, key or hub.admin_key).ask(method, path, None, body))


def new_key(hub: Hub, name: str, unit: str, window: str, limit: int) -> str:
    """The secret of a key with one limit, both of which the gateway already knows."""
    made = ask(hub, "POST", "/admin/v1/keys", {"name": name}).json
    wanted = {"level": "key", "subject_id": made["id"], "unit": unit, "window": window, "limit": limit}
    answer = ask(hub, "POST", "/admin/v1/limits", {**wanted, "mode": "exact"})
    assert answer.status == 200, answer
    key: str = made["key"]
    return key


def free_url(server: Backing) -> str:
    """The URL of a server that is not there yet."""
    server.kill()
    return server.url


# --- PostgreSQL as the catalog ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    with running_postgres(tmp_path_factory.mktemp("catalog")) as server:
        yield server


@pytest.fixture(scope="module")
def catalog_hub(tmp_path_factory: pytest.TempPathFactory, catalog: Postgres) -> Iterator[Hub]:
    with running(tmp_path_factory.mktemp("hub"), catalog_url=catalog.url) as hub:
        yield hub


def restart_at_once(server: Postgres) -> None:
    """What `pg_ctl restart -m immediate` does."""
    server.process.send(signal.SIGQUIT)
    server.process.wait()
    server.restart()


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_calls_go_on_without_the_catalog(catalog_hub: Hub, catalog: Postgres, fault: str) -> None:
    hub = catalog_hub
    break_, mend = (catalog.kill, catalog.restart) if fault == "kill" else (catalog.freeze, catalog.thaw)
    kept = ask(hub, "POST", "/admin/v1/keys", {"name": f"before {fault}"}).json
    with Steady(hub.url, kept["key"]) as calls:
        break_()
        wait_for_state(hub, "catalog", "failing")
        began_s = time.monotonic()
        for method, path, body in (
            ("POST", "/admin/v1/keys", {"name": f"during {fault}"}),
            ("DELETE", f"/admin/v1/keys/{kept['id']}", b""),
            ("GET", "/admin/v1/keys", b""),
        ):
            refused = ask(hub, method, path, body)
            assert (refused.status, refused.error["code"]) == (503, "store_failed"), path
        assert time.monotonic() - began_s < 3 * HUNG_S
        calls.more()
        mend()
        wait_for_state(hub, "catalog", "ok")
        calls.more()
    check_calls(calls)
    check_ledger(hub, calls)
    # Nothing is half done: neither the key nor a word about it in the audit log.
    keys = {key["name"]: key for key in hub.get("/admin/v1/keys?limit=1000")["data"]}
    assert f"during {fault}" not in keys
    assert keys[f"before {fault}"]["revoked_at"] is None
    told = json.dumps(hub.get("/admin/v1/audit")["data"])
    assert f"before {fault}" in told
    assert f"during {fault}" not in told
    made = ask(hub, "POST", "/admin/v1/keys", {"name": f"after {fault}"})
    assert made.status == 201
    assert ask(hub, "GET", "/v1/models", key=made.json["key"]).status == 200


def test_a_catalog_that_restarts_is_not_noticed_by_calls(catalog_hub: Hub, catalog: Postgres) -> None:
    hub = catalog_hub
    with Steady(hub.url, hub.admin_key) as calls:
        restart_at_once(catalog)
        calls.more()
        wait_for_state(hub, "catalog", "ok")
        made = ask(hub, "POST", "/admin/v1/keys", {"name": "after the restart"})
        assert made.status == 201, made
    check_calls(calls)
    check_ledger(hub, calls)


def test_without_a_catalog_nothing_starts(tmp_path: Path) -> None:
    """Nobody could be told from anybody: it ends at once and says what is missing."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    url = f"postgresql://inferhub:canary-secret@127.0.0.1:{port}/inferhub"
    process = start_service("serve", tmp_path, {"catalog_url": url})
    assert process.wait(BACK_S) == 1
    error = json.loads(process.stderr.splitlines()[-1])["error"]
    assert error["code"] == "store_failed"
    assert f"127.0.0.1:{port}/inferhub" in error["message"]
    assert "canary" not in process.stdout + process.stderr


# --- Valkey as counters and cache ------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_limits_are_kept_here_while_the_counters_are_gone(tmp_path: Path, fault: str) -> None:
    with (
        running_valkey(tmp_path) as valkey,
        running(tmp_path, counters_url=valkey.url, cache_url=valkey.url, gateways_expected=GATEWAYS) as hub,
    ):
        break_, mend = (valkey.kill, valkey.restart) if fault == "kill" else (valkey.freeze, valkey.thaw)
        counted = new_key(hub, "counted", "requests", "month", 10**6)
        with Steady(hub.url, counted) as calls:
            wait_for_state(hub, "counters", "ok")
            break_()
            wait_for_state(hub, "counters", "local")
            wait_for_state(hub, "answers", "memory")
            limited = new_key(hub, "limited", "requests", "day", LIMIT)
            assert count_admitted(hub, limited) == LIMIT // GATEWAYS
            calls.more()
            mend()
            wait_for_state(hub, "counters", "ok")
            wait_for_state(hub, "answers", "ok")
            calls.more()
            # The store was told what was used without it; the rest of the limit may be used now.
            assert count_admitted(hub, limited) == LIMIT - LIMIT // GATEWAYS
        check_calls(calls)
        check_ledger(hub, calls)


def count_admitted(hub: Hub, key: str) -> int:
    """Of many calls at once, far more than are allowed; the others are 429."""

    async def call() -> list[int]:
        talk = Talk(hub.url, key)
        answers = await asyncio.gather(*(talk.chat("echo") for _ in range(2 * LIMIT)))
        return [answer.status for answer in answers]

    statuses = asyncio.run(call())
    assert set(statuses) <= {200, 429}
    return statuses.count(200)


def test_slow_counters_do_not_slow_calls(tmp_path: Path) -> None:
    with (
        running_valkey(tmp_path) as valkey,
        running(tmp_path, counters_url=valkey.url, cache_url=valkey.url) as hub,
    ):
        counted = new_key(hub, "counted", "requests", "month", 10**6)
        with Steady(hub.url, counted) as calls:
            wait_for_state(hub, "counters", "ok")
            with pause(valkey.port, 4000):
                wait_for(lambda: stores(hub)["counters"] == "local", BACK_S, "counters to be local")
                before = len(calls.made)
                calls.more()
            made = calls.made[before:]
            wait_for_state(hub, "counters", "ok")
            calls.more()
        # Not one of them has waited for the pause to end.
        assert sorted(call.elapsed_s for call in made)[len(made) // 2] < 1
        check_calls(calls)
        check_ledger(hub, calls)


@contextmanager
def pause(port: int, ms: int) -> Iterator[None]:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"CLIENT PAUSE %d ALL\r\n" % ms)
        yield


# --- the usage store -------------------------------------------------------------------------------


def check_usage_outage(hub: Hub, break_: Callable[[], None], mend: Callable[[], None]) -> None:
    with Steady(hub.url, hub.admin_key) as calls:
        wait_for_state(hub, "usage", "ok")
        break_()
        wait_for_state(hub, "usage", "failing")
        calls.more()
        waiting = stores(hub)["ledger"]["usage"]
        assert waiting["backlog_bytes"] > 0
        assert waiting["oldest_s"] > 0
        assert hub.metric("inferhub_spool_backlog_bytes") > 0
        assert ask(hub, "GET", "/admin/v1/usage").status == 503
        mend()
        wait_for_state(hub, "usage", "ok")
        calls.more()
    check_calls(calls)
    check_ledger(hub, calls)


def test_usage_waits_for_clickhouse(tmp_path: Path) -> None:
    """Absent at the start, then killed."""
    with running_clickhouse(tmp_path) as clickhouse, running(tmp_path, usage_url=free_url(clickhouse)) as hub:
        assert stores(hub)["usage"] == "failing"
        with Steady(hub.url, hub.admin_key) as calls:
            clickhouse.restart()
            wait_for_state(hub, "usage", "ok")
        check_calls(calls)
        check_ledger(hub, calls)


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "freeze"])
def test_usage_outlives_clickhouse(tmp_path: Path, fault: str) -> None:
    with running_clickhouse(tmp_path) as clickhouse, running(tmp_path, usage_url=clickhouse.url) as hub:
        if fault == "kill":
            check_usage_outage(hub, clickhouse.kill, clickhouse.restart)
        else:
            check_usage_outage(hub, clickhouse.freeze, clickhouse.thaw)


def test_usage_outlives_postgres(catalog: Postgres, tmp_path: Path) -> None:
    with running(tmp_path, usage_url=catalog.fresh()) as hub:
        check_usage_outage(hub, catalog.kill, catalog.restart)


# --- the event stream ------------------------------------------------------------------------------


def received(kafka: Kafka, calls: Steady) -> None:
    """Every call was told at least once, and nothing else was."""
    ids = set(calls.answered)
    told: dict[str, set[str]] = {"inference.requests": set(), "inference.completed": set()}
    billed: set[str] = set()
    by_id: dict[str, str] = {}

    async def read() -> None:
        consumer = AIOKafkaConsumer(
            *told, "billing.events", bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest"
        )
        await consumer.start()
        try:
            async with asyncio.timeout(BACK_S):
                while not all(seen >= ids for seen in told.values()) or len(billed) < len(ids):
                    message = await consumer.getone()
                    payload = json.loads(message.value)
                    if message.topic == "billing.events":
                        billed.add(payload["id"])
                    else:
                        told[message.topic].add(payload["request_id"])
                        by_id[payload["id"]] = payload["request_id"]
        finally:
            await consumer.stop()

    asyncio.run(read())
    assert all(seen == ids for seen in told.values())
    assert {by_id[call] for call in billed} == ids


def test_events_wait_for_kafka(tmp_path: Path) -> None:
    """Absent at the start, then killed."""
    with running_kafka(tmp_path) as kafka, running(tmp_path, events_url=free_url(kafka)) as hub:
        with Steady(hub.url, hub.admin_key) as calls:
            wait_for_state(hub, "events", "failing")
            assert stores(hub)["usage"] == "ok"
            kafka.restart()
            wait_for_state(hub, "events", "ok")
            calls.more()
            kafka.kill()
            wait_for_state(hub, "events", "failing")
            assert stores(hub)["ledger"]["events"]["oldest_s"] > 0
            calls.more()
            kafka.restart()
            wait_for_state(hub, "events", "ok")
            calls.more()
        check_calls(calls)
        check_ledger(hub, calls)
        received(kafka, calls)


# --- the end of the process ------------------------------------------------------------------------


def test_what_was_used_is_handed_on_before_the_end(tmp_path: Path) -> None:
    """SIGTERM under load: all of it is in the usage store, and the next start has nothing to catch up on."""
    with running(tmp_path) as hub:
        with Steady(hub.url, hub.admin_key) as calls:
            calls.more()
            hub.front.send(signal.SIGTERM)
            assert hub.front.wait(BACK_S) == 0
        for path in (hub.data_dir, *hub.data_dir.rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    assert "usage stays in the spool" not in hub.front.stderr
    with closing(sqlite3.connect(hub.data_dir / "usage.db")) as database:
        found = database.execute("SELECT request_id, status FROM usage_events").fetchall()
    assert set(calls.answered) <= {request_id for request_id, _ in found}
    with running(tmp_path) as again:
        events = list(ledger(again))
        assert sorted((event["request_id"], event["status"]) for event in events) == sorted(found)
        assert "lost" not in {event["status"] for event in events}
        assert all(waiting["backlog_bytes"] == 0 for waiting in stores(again)["ledger"].values())


@pytest.mark.slow
def test_a_frozen_store_does_not_hold_up_the_end(catalog: Postgres, tmp_path: Path) -> None:
    """What the stores do not take then is there for the next start."""
    urls = {"catalog_url": catalog.fresh(), "usage_url": catalog.fresh()}
    with running(tmp_path, **urls) as hub:
        with Steady(hub.url, hub.admin_key) as calls:
            catalog.freeze()
            calls.more()
        hub.front.send(signal.SIGTERM)
        assert hub.front.wait(BACK_S) == 0
        catalog.thaw()
        assert "usage stays in the spool" in hub.front.stderr
        check_calls(calls)
    with running(tmp_path, **urls) as again:
        check_ledger(again, calls)
