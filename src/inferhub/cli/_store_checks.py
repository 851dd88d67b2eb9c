"""The stores of `doctor`: whether each answers, which version it is, and whether it can be written.

Asks each engine in its own language, since opening a store as the gateway does would make its tables. Leaves
nothing behind but, in Redis, a key that lives for a second. No message repeats a URL: it may hold a password.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from inferhub.cli._findings import Finding, Status, bad
from inferhub.cli._output import megabytes
from inferhub.core.errors import InferHubError
from inferhub.settings import Settings

TIMEOUT_S = 5.0
_OLDEST_REDIS = 7
_NAMES = {
    "catalog_url": "catalog",
    "counters_url": "counters",
    "cache_url": "answers",
    "usage_url": "usage",
    "responses_url": "responses",
    "events_url": "events",
}


async def stores(settings: Settings) -> list[Finding]:
    """All but the catalog, which is looked into more closely."""
    wanted = [(name, getattr(settings, name)) for name in _NAMES if name != "catalog_url"]
    return list(await asyncio.gather(*[look_at(name, url) for name, url in wanted if url]))


async def look_at(setting: str, url: str) -> Finding:
    """One store. Never raises."""
    name, scheme = _NAMES[setting], url.partition("://")[0]
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return Finding(name, *await _look(setting, scheme, url))
    except TimeoutError:
        text, remedy = f"{_place(url)} does not answer in {TIMEOUT_S:g} s", f"Start it, or correct {setting}."
        return Finding(name, "problem", text, remedy)
    except InferHubError as error:
        return bad(name, error, f"Correct {setting}." if error.param == setting else None)
    except ModuleNotFoundError as error:
        remedy = f"Install what {setting} needs: pip install {error.name}."
        return Finding(name, "problem", f"the package {error.name} is not installed", remedy)
    except Exception as error:
        # Whatever a driver raises; its words may hold the password, its kind and its number do not.
        reason = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
        return Finding(
            name,
            "problem",
            f"{_place(url)} cannot be used: {reason}",
            f"Start it, or correct {setting}; the user and password in it, too.",
        )


async def _look(setting: str, scheme: str, url: str) -> tuple[Status, str, str | None]:
    if scheme == "memory":
        return "ok", "in the memory of each process, forgotten with it", None
    if scheme == "sqlite":
        return await asyncio.to_thread(_sqlite, setting, url)
    if scheme in ("redis", "rediss"):
        return await _redis(setting, url)
    if scheme == "postgresql":
        return await _postgres(url)
    if scheme in ("clickhouse", "clickhouses"):
        return await _clickhouse(url)
    if scheme == "kafka":
        return await _kafka(url)
    return "problem", f"{setting} begins with {scheme[:20]!r}, which is no store", f"Correct {setting}."


def sqlite_path(url: str) -> Path | None:
    """The file of a `sqlite:///PATH`, None for other URLs."""
    path = url.removeprefix("sqlite:///")
    return None if path == url else Path(path).expanduser().absolute()


def _sqlite(setting: str, url: str) -> tuple[Status, str, str | None]:
    path = sqlite_path(url)
    if path is None:
        return "problem", f"{setting} names no file", f"Write {setting} as sqlite:///ABSOLUTE/PATH."
    if not path.exists():
        folder = next(parent for parent in path.parents if parent.exists())
        if not os.access(folder, os.W_OK):
            return "problem", f"{path} cannot be made: {folder} is not writable", "Mend its permissions."
        return "note", f"{path} does not exist yet; the first start makes it", None
    remedy = f"Restore {path} from a backup, mend its permissions, or choose another {setting}."
    try:
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode=rw", uri=True, timeout=2, isolation_level=None
        )
        try:
            tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        finally:
            connection.close()
    except sqlite3.Error as error:
        return "problem", f"{path}: {error}", remedy
    size = megabytes(path.stat().st_size)
    return "ok", f"SQLite {sqlite3.sqlite_version}, {tables} tables and indexes, {size}, writable", None


async def _redis(setting: str, url: str) -> tuple[Status, str, str | None]:
    from redis.asyncio import Redis

    client = Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2, decode_responses=True)
    try:
        told: dict[str, Any] = await client.info()
        await client.set("inferhub:doctor", 1, px=1000)
    finally:
        await client.aclose()
    is_valkey = "valkey_version" in told
    version = str(told.get("valkey_version") or told.get("redis_version") or "of unknown version")
    text = f"{'Valkey' if is_valkey else 'Redis'} {version}, writable"
    major = version.partition(".")[0]
    if not is_valkey and major.isdecimal() and int(major) < _OLDEST_REDIS:
        return "problem", text, f"InferHub needs Redis {_OLDEST_REDIS} or later, or Valkey."
    if setting == "counters_url":
        policy = told.get("maxmemory_policy")
        if policy not in (None, "noeviction"):
            text += f", but with maxmemory-policy {policy}"
            return "problem", text, "Set noeviction: a budget that is evicted is a budget that is refilled."
        if not told.get("aof_enabled"):
            text += ", but without appendonly"
            return "note", text, "Set appendonly yes: otherwise a restart of it refills budgets."
    return "ok", text, None


async def _postgres(url: str) -> tuple[Status, str, str | None]:
    import asyncpg  # type: ignore[import-untyped]

    connection = await asyncpg.connect(url, timeout=3, command_timeout=3)
    try:
        version = await connection.fetchval("SHOW server_version")
        is_read_only = await connection.fetchval(
            "SELECT pg_is_in_recovery() OR current_setting('transaction_read_only')::bool"
        )
    finally:
        await connection.close(timeout=1)
    text = f"PostgreSQL {version}"
    if is_read_only:
        return "problem", f"{text}, read-only", "Name the primary server, not a replica."
    return "ok", f"{text}, writable", None


async def _clickhouse(url: str) -> tuple[Status, str, str | None]:
    from clickhouse_connect import get_async_client

    from inferhub.stores.usage._clickhouse_url import parse

    address = parse(url)
    client = await get_async_client(
        interface="https" if address.is_tls else "http",
        host=address.host,
        port=address.port,
        username=address.user,
        password=address.password,
        database=address.database,
        ca_cert=address.ca_file,
        connect_timeout=2,
        send_receive_timeout=3,
        query_retries=0,
        autogenerate_session_id=False,
    )
    try:
        found = await client.query("SELECT version(), getSetting('readonly')")
    finally:
        await client.close()
    version, readonly = found.result_rows[0]
    if int(readonly):
        return "problem", f"ClickHouse {version}, read-only", "Give the user of usage_url the right to write."
    return "ok", f"ClickHouse {version}, writable", None


async def _kafka(url: str) -> tuple[Status, str, str | None]:
    from inferhub.stores import open_events
    from inferhub.stores.events._kafka_url import parse

    makes_topics = parse(url).creates_topics
    try:
        stream = await open_events(f"{url}{'&' if '?' in url else '?'}create=false")
    except InferHubError as error:
        if error.wire_code == "store_unreachable" or not makes_topics:
            raise
        return "note", f"Kafka at {parse(url).where} has not all topics yet; the first start makes them", None
    try:
        await stream.ping()
    finally:
        await stream.close()
    return "ok", f"Kafka at {parse(url).where}, its topics are there", None


def _place(url: str) -> str:
    """Host and port alone."""
    try:
        parts = urlsplit(url)
        return f"{parts.scheme} at {parts.netloc.rpartition('@')[2]}"
    except ValueError:
        return "the store"
