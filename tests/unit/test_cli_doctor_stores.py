"""What `doctor` says of the configured stores and of the pepper: real servers, and broken ones."""

from __future__ import annotations

import asyncio
import json
import secrets
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from inferhub.cli._findings import Finding
from inferhub.cli._store_checks import look_at
from inferhub.testing.backing import ClickHouse, Kafka, Postgres, Valkey
from inferhub.testing.servers import run_command


def look(setting: str, url: str) -> Finding:
    return asyncio.run(look_at(setting, url))


def doctor(folder: Path, **settings: object) -> dict[str, Any]:
    places = {"data_dir": folder / "data", "cache_dir": folder / "cache", "port": 0, "metrics_port": 0}
    done = run_command("doctor", "--json", **{**places, **settings})
    assert "Traceback" not in done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)["findings"]
    assert all(f["remedy"] for f in found if f["status"] == "problem")
    return {f["name"]: f for f in found}


def test_sqlite_files(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/counters.db"
    assert look("counters_url", url).status == "note"
    with sqlite3.connect(tmp_path / "counters.db", isolation_level=None) as holder:
        holder.execute("CREATE TABLE t (a)")
        found = look("counters_url", url)
        assert (found.status, found.name) == ("ok", "counters")
        assert "writable" in found.text
        holder.execute("BEGIN IMMEDIATE")
        locked = look("counters_url", url)
        holder.execute("ROLLBACK")
    holder.close()
    assert (locked.status, "locked" in locked.text) == ("problem", True)
    (tmp_path / "counters.db").write_bytes(b"no database at all" * 100)
    broken = look("counters_url", url)
    assert (broken.status, "not a database" in broken.text) == ("problem", True)
    assert broken.remedy
    assert look("usage_url", "sqlite:///").status == "problem"


def test_the_memory_is_always_there() -> None:
    assert look("cache_url", "memory://").status == "ok"


def test_valkey(valkey: Valkey) -> None:
    url = valkey.url
    assert look("cache_url", url).status == "ok"
    with Redis.from_url(url) as client:
        before: Any = client.config_get("appendonly", "maxmemory-policy")
        try:
            client.config_set("appendonly", "no")
            found = look("counters_url", url)
            assert (found.status, "without appendonly" in found.text) == ("note", True)
            client.config_set("maxmemory-policy", "allkeys-lru")
            found = look("counters_url", url)
            assert (found.status, "allkeys-lru" in found.text) == ("problem", True)
            assert look("cache_url", url).status == "ok", "answers may be evicted"
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("appendonly", "yes")
            found = look("counters_url", url)
            assert (found.status, found.text.startswith("Valkey ")) == ("ok", True)
        finally:
            for name, value in before.items():
                client.config_set(name, value)


def test_postgres(postgres: Postgres) -> None:
    found = look("usage_url", postgres.fresh())
    assert (found.status, found.text.startswith("PostgreSQL ")) == ("ok", True)
    assert found.text.endswith("writable")
    read_only = f"{postgres.fresh()}?options=-c%20default_transaction_read_only=on"
    assert look("usage_url", read_only).status == "problem"


def test_clickhouse(clickhouse: ClickHouse) -> None:
    found = look("usage_url", clickhouse.url)
    assert (found.status, found.text.startswith("ClickHouse ")) == ("ok", True)


def test_kafka(kafka: Kafka) -> None:
    prefix = f"doctor{secrets.token_hex(4)}."
    found = look("events_url", f"{kafka.url}?prefix={prefix}")
    assert found.status == "note"
    assert look("events_url", f"{kafka.url}?prefix={prefix}").status == "note", "a look makes no topics"


@pytest.mark.parametrize(
    ("setting", "url"),
    [
        ("counters_url", "redis://u:canary@127.0.0.1:1/0"),
        ("usage_url", "postgresql://u:canary@127.0.0.1:1/x"),
        ("usage_url", "clickhouse://u:canary@127.0.0.1:1/x"),
        ("events_url", "kafka://u:canary@127.0.0.1:1"),
        ("usage_url", "mysql://u:canary@127.0.0.1:1/x"),
        ("usage_url", "postgresql://u:canary@[::1/x"),
        ("counters_url", "redis://u:canary@127.0.0.1:port/0"),
    ],
)
def test_a_server_that_is_away_is_a_problem_with_a_remedy_and_without_the_password(
    setting: str, url: str
) -> None:
    found = look(setting, url)
    assert found.status == "problem"
    assert found.remedy
    assert "canary" not in found.text + found.remedy


def test_a_frozen_server_is_a_problem_too(valkey: Valkey) -> None:
    valkey.freeze()
    try:
        assert look("counters_url", valkey.url).status == "problem"
    finally:
        valkey.thaw()


def test_doctor_looks_at_every_store_and_at_the_pepper(tmp_path: Path) -> None:
    new = doctor(tmp_path)
    stores = {"catalog", "counters", "answers", "usage", "pepper"}
    assert {new[name]["status"] for name in stores} == {"note"}
    assert "events" not in new
    assert run_command("keys", "create", "x", data_dir=tmp_path / "data").exit_code == 0
    assert doctor(tmp_path)["pepper"]["status"] == "ok"
    pepper = tmp_path / "data" / "pepper"
    pepper.chmod(0o644)
    assert "chmod 600" in doctor(tmp_path)["pepper"]["text"]
    pepper.rename(tmp_path / "elsewhere")
    assert doctor(tmp_path)["pepper"]["status"] == "problem"
    assert not pepper.exists(), "a look makes no new pepper"
    found = doctor(tmp_path, events_url="kafka://127.0.0.1:1", counters_url="redis://127.0.0.1:1/0")
    assert {found[name]["status"] for name in ("events", "counters")} == {"problem"}
