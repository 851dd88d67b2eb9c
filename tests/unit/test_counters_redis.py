"""Counters in a Redis that is killed, frozen, restarted, emptied or written into by others. Real Valkey."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from redis.asyncio import Redis

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.core.quota import Claim, Meter, Refusal, Reservation, Unit, Window
from inferhub.settings.loader import load_settings
from inferhub.stores import open_counters
from inferhub.stores.counters import redis
from inferhub.stores.counters.base import LEASE_S, Counters
from inferhub.stores.counters.window import period_end_ms
from inferhub.testing.backing import Valkey, running_valkey

PATIENCE_S = 30.0
RPM = Meter("rpm", Unit.REQUESTS, Window.MINUTE, 10)
TPD = Meter("tpd", Unit.TOKENS, Window.DAY, 10)
CONCURRENT = Meter("now", Unit.CONCURRENT, Window.NOW, 10)
BUDGET = Meter("usd", Unit.USD, Window.MONTH, 10)
EVERY = (RPM, TPD, CONCURRENT, BUDGET)


class Clock:
    def __init__(self, now_ms: int = 1_770_000_000_000) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def advance(self, seconds: float) -> None:
        self.now_ms += int(seconds * 1000)


@pytest.fixture
def own(tmp_path: Path) -> Valkey:
    """One that a test may break."""
    with running_valkey(tmp_path) as server:
        yield server


@pytest.fixture
def url(valkey: Valkey) -> str:
    return valkey.fresh()


@pytest.fixture
async def client(url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(url)
    yield client
    await client.aclose()


async def take(counters: Counters, ticket: str, *meters: Meter, amount: int = 1) -> Reservation:
    granted = await counters.reserve(ticket, [Claim(meter, amount) for meter in meters or EVERY])
    assert isinstance(granted, Reservation), granted
    return granted


async def used(counters: Counters, *meters: Meter) -> list[int]:
    return [reading.used for reading in await counters.read(meters or EVERY)]


async def eventually(counters: Counters) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return await counters.ping()
            except StoreFailed:
                await asyncio.sleep(0.01)


# --- a server that fails --------------------------------------------------------------------------


async def test_a_killed_server_fails_calls_and_is_found_again(own: Valkey) -> None:
    counters = await open_counters(own.url)
    call = await take(counters, "a")
    await asyncio.to_thread(own.kill)
    questions = (
        lambda: counters.reserve("x", [Claim(RPM, 1)]),
        lambda: counters.settle(call, {}),
        lambda: counters.renew([call]),
        lambda: counters.charge("x", [Claim(BUDGET, 1)]),
        lambda: counters.read([RPM]),
        lambda: counters.mark_once("x", 1),
        counters.ping,
    )
    for ask in questions:
        with pytest.raises(StoreFailed, match="Redis"):
            await ask()
    await asyncio.to_thread(own.restart)
    await eventually(counters)
    # It persists, and its scripts are sent again.
    assert await used(counters) == [1, 1, 1, 1]
    await counters.close()


async def test_a_frozen_server_fails_calls_in_time(own: Valkey) -> None:
    counters = await redis.open_counters(own.url, timeout_s=0.3)
    await counters.ping()
    own.freeze()
    began = time.monotonic()
    answers = await asyncio.gather(
        *(take(counters, f"call_{i}", RPM) for i in range(100)), return_exceptions=True
    )
    took_s = time.monotonic() - began
    assert {type(answer) for answer in answers} == {StoreFailed}
    assert 0.3 <= took_s < 0.3 + PATIENCE_S / 10
    own.thaw()
    await eventually(counters)
    await counters.close()


async def test_a_restart_between_two_calls_is_not_noticed(own: Valkey) -> None:
    counters = await redis.open_counters(own.url, timeout_s=PATIENCE_S)
    await take(counters, "a")
    await asyncio.to_thread(own.restart)
    await take(counters, "b")
    assert await used(counters) == [2, 2, 2, 2]
    await counters.close()


async def test_a_reply_that_was_lost_counts_once(own: Valkey) -> None:
    """The connection is cut after the command was done: it is sent again, with the same ticket."""
    counters = await redis.open_counters(own.url, timeout_s=PATIENCE_S)
    await counters.ping()
    killer = Redis.from_url(own.url)
    for i in range(10):
        call = asyncio.create_task(take(counters, f"call_{i}", RPM))
        mark = asyncio.create_task(counters.mark_once(f"mark_{i}", 60))
        await killer.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        await call
        assert await mark
    assert await used(counters, RPM) == [10]
    await killer.aclose()
    await counters.close()


async def test_a_server_that_is_away_at_the_start_is_no_error() -> None:
    counters = await open_counters("redis://:geheim@127.0.0.1:9/0")
    with pytest.raises(StoreFailed, match="Redis") as caught:
        await counters.ping()
    assert "geheim" not in str(caught.value)
    await counters.close()
    with pytest.raises(StoreFailed, match="closed"):
        await counters.ping()


async def test_a_wrong_password_is_not_repeated(own: Valkey) -> None:
    admin = Redis.from_url(own.url)
    await admin.config_set("requirepass", "right")
    counters = await open_counters(own.url.replace("redis://", "redis://:geheim@"))
    with pytest.raises(StoreFailed, match="Redis") as caught:
        await counters.ping()
    assert "geheim" not in repr(caught.value)
    await counters.close()
    right = await open_counters(own.url.replace("redis://", "redis://:right@"))
    await right.ping()
    await right.close()
    await admin.aclose()


@pytest.mark.parametrize("bad", ["redis://:geheim@host:port/0", "redis://:geheim@h/0?socket_timeout=x"])
async def test_a_url_that_cannot_be_read_does_not_show_its_password(bad: str) -> None:
    with pytest.raises(SetupError, match="cannot be read") as caught:
        await open_counters(bad)
    assert caught.value.param == "counters_url"
    assert "geheim" not in caught.value.message


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("redis://user:geheim@h:1/0", "redis://***@h:1/0"),
        ("rediss://:geheim@h", "rediss://***@h"),
        ("redis://:geh@eim@h/0", "redis://***@h/0"),
        ("redis://:geh/eim?geheim@h/0", "redis://***@h/0"),
        ("redis://h/0?db=1&password=geheim", "redis://h/0?db=1&password=***"),
        ("redis://h:1/0", "redis://h:1/0"),
    ],
)
def test_config_explain_shows_no_password(tmp_path: Path, given: str, shown: str) -> None:
    loaded = load_settings({"counters_url": given}, env={}, cwd=tmp_path)
    assert {name: value for name, value, _ in loaded.explain()}["counters_url"] == shown


async def test_a_server_that_may_not_be_written_to(own: Valkey) -> None:
    counters = await open_counters(own.url)
    admin = Redis.from_url(own.url)
    await take(counters, "a", RPM)
    await admin.config_set("maxmemory", 1)
    with pytest.raises(StoreFailed, match="maxmemory"):
        await take(counters, "b", RPM)
    await admin.config_set("maxmemory", 0)
    assert await used(counters, RPM) == [1]
    await admin.aclose()
    await counters.close()


async def test_whoever_waits_at_the_end_is_told(own: Valkey) -> None:
    counters = await redis.open_counters(own.url, timeout_s=PATIENCE_S)
    await counters.ping()
    own.freeze()
    waiting = [asyncio.create_task(take(counters, f"call_{i}", RPM)) for i in range(100)]
    await asyncio.sleep(0.05)
    await counters.close()
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert {type(answer) for answer in answers} == {StoreFailed}


async def test_an_abandoned_call_disturbs_nobody(url: str) -> None:
    counters = await redis.open_counters(url, timeout_s=PATIENCE_S)
    calls = [asyncio.create_task(take(counters, f"call_{i}", TPD, amount=0)) for i in range(50)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(answer, Reservation) for answer in answers) == 25
    await counters.close()


async def test_any_name_is_a_name(url: str) -> None:
    counters = await open_counters(url)
    names = ["ü", "\ud800", "a b\r\n$1", "", "{x}"]
    for i, name in enumerate(names):
        meter = Meter(name, Unit.REQUESTS, Window.MINUTE, 10)
        await take(counters, f"call {name}", meter, amount=i)
        assert await used(counters, meter) == [i]
    await counters.close()


# --- content that nobody here wrote ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["string", "list", "hash"])
async def test_junk_is_thrown_away_and_said_once(
    url: str, client: Redis, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    counters = await open_counters(url)
    await take(counters, "a")
    keys = [key async for key in client.scan_iter("inferhub:*")]
    assert len(keys) == 5
    for key in keys:
        if kind == "hash" and b"}:m:" in key:
            await client.hset(key, mapping={"u": "junk", "h": "-5", "n": "nan", "t:x": "junk"})
            continue
        await client.delete(key)
        await (client.rpush(key, "junk") if kind == "list" else client.set(key, "junk"))
    with caplog.at_level(logging.ERROR):
        await take(counters, "a")
        await take(counters, "b")
    assert await used(counters) == [2, 2, 2, 2]
    assert len([record for record in caplog.records if "did not write" in record.message]) == 1
    await counters.close()


async def test_junk_inside_a_minute_blocks_nobody(url: str, client: Redis) -> None:
    clock = Clock()
    counters = await redis.open_counters(url, now_ms=clock)
    await take(counters, "a", RPM)
    await client.hset("inferhub:{counters}:m:rpm", mapping={str(clock.now_ms // 1000): "junk", "x": "y"})
    await take(counters, "b", RPM)
    clock.advance(61)
    assert await used(counters, RPM) == [0]
    await take(counters, "c", RPM, amount=10)
    await counters.close()


async def test_an_emptied_server_counts_from_zero(url: str, client: Redis) -> None:
    counters = await open_counters(url)
    call = await take(counters, "a", amount=5)
    await client.flushall()
    await client.script_flush()
    readings = await counters.settle(call, {BUDGET.key: 4, TPD.key: 7})
    # What was really spent is money all the same.
    assert [reading.used for reading in readings] == [0, 2, 0, 4]
    await counters.close()


async def test_every_key_has_a_time_to_live(url: str, client: Redis) -> None:
    counters = await open_counters(url)
    calls = [await take(counters, f"call_{i}") for i in range(3)]
    await counters.settle(calls[0], {})
    await counters.renew(calls[1:])
    await counters.charge("charged", [Claim(BUDGET, 1)])
    await counters.mark_once("mark", 60)
    await counters.read(EVERY)
    keys = [key async for key in client.scan_iter("*")]
    assert len(keys) == 4 + 4 + 1
    for key in keys:
        assert key.startswith(b"inferhub:{counters}:")
        assert 0 < await client.pttl(key) <= 32 * 86_400_000, key
    await counters.close()


# --- the server's clock ---------------------------------------------------------------------------


async def test_the_servers_clock_is_the_only_one(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counters = await open_counters(url)
    now_s = time.time()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    granted = await take(counters, "a", RPM)
    assert abs(granted.reserved_at_s - now_s) < PATIENCE_S * 10
    await counters.close()


async def test_the_calendar_is_the_same_as_in_python(url: str) -> None:
    clock = Clock()
    counters = await redis.open_counters(url, now_ms=clock)
    rng = random.Random(7)
    first, last = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (2000, 2101))
    moments = [rng.randrange(first, last) * 1000 + rng.randrange(1000) for _ in range(400)]
    for year in (2000, 2023, 2024, 2099, 2100):
        for month in range(1, 13):
            edge = int(datetime(year, month, 1, tzinfo=UTC).timestamp() * 1000)
            moments += [edge - 1, edge]
    for i, moment in enumerate(moments):
        clock.now_ms = moment
        meters = [Meter(f"{i}:{w}", Unit.TOKENS, w, 10) for w in (Window.DAY, Window.MONTH)]
        granted = await take(counters, f"call_{i}", *meters)
        for reading in granted.readings:
            assert moment + round(reading.reset_s * 1000) == period_end_ms(reading.meter.window, moment), (
                moment
            )
    await counters.close()


async def test_a_server_clock_that_was_set_back_blocks_and_frees_nothing(url: str) -> None:
    clock = Clock()
    counters = await redis.open_counters(url, now_ms=clock)
    await take(counters, "a", amount=5)
    clock.advance(-3600)
    assert await used(counters) == [5, 5, 5, 5]
    assert isinstance(await counters.reserve("b", [Claim(RPM, 6)]), Refusal)
    await take(counters, "c", amount=5)
    clock.advance(LEASE_S)
    assert await used(counters) == [10, 10, 0, 0]
    clock.advance(61 - LEASE_S)
    assert await used(counters, RPM) == [0]
    await counters.close()


async def test_a_server_clock_that_was_years_ahead_does_not_block_until_then(url: str) -> None:
    clock = Clock()
    counters = await redis.open_counters(url, now_ms=clock)
    real_ms = clock.now_ms
    clock.advance(10 * 365 * 86_400)
    await counters.settle(await take(counters, "a", amount=10), {})
    clock.now_ms = real_ms
    assert await used(counters, TPD, BUDGET) == [10, 10]
    clock.now_ms = period_end_ms(Window.MONTH, real_ms)
    assert await used(counters, TPD, BUDGET) == [0, 0]
    await counters.close()
