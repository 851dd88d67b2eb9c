"""The questions of `FleetStore`, asked of every answer: memory, a real PostgreSQL, a real Valkey."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.stores import open_fleet
from inferhub.stores.fleet import postgres as on_postgres
from inferhub.stores.fleet import redis as on_redis
from inferhub.stores.fleet.base import FleetStore, Sighting, Wanted
from inferhub.stores.fleet.memory import MemoryFleet
from inferhub.testing.backing import Backing, Postgres, running_postgres, running_valkey

SHARED = ("postgresql", "redis")
PATIENT_S = 30.0
"""A question of these tests may wait for a busy machine; the ones about faults say how long."""
MOST = 2**64 - 1


async def opened(url: str, timeout_s: float = PATIENT_S, purge_every_s: float = 60.0) -> FleetStore:
    if url.startswith("redis"):
        return await on_redis.open_fleet(url, timeout_s=timeout_s)
    return await on_postgres.open_fleet(url, timeout_s=timeout_s, purge_every_s=purge_every_s)


def fresh(kind: str, request: pytest.FixtureRequest) -> str:
    server = request.getfixturevalue("postgres" if kind == "postgresql" else "valkey")
    return str(server.fresh())


@dataclass
class Setup:
    """A store, another orchestrator's door to the same one, and how time passes for them."""

    store: FleetStore
    other: FleetStore
    now_s: list[float]
    is_real_time: bool

    async def pass_by(self, duration_s: float, condition: Callable[[], Awaitable[bool]]) -> None:
        """Until `condition`, on the clock of the store."""
        self.now_s[0] += duration_s
        deadline_s = time.monotonic() + PATIENT_S
        while not await condition():
            assert self.is_real_time, "the time is over and nothing happened"
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture(params=("memory", *SHARED))
async def setup(request: pytest.FixtureRequest) -> AsyncIterator[Setup]:
    now_s = [1000.0]
    kind: str = request.param
    if kind == "memory":
        memory = MemoryFleet(lambda: now_s[0])
        yield Setup(memory, memory, now_s, is_real_time=False)
        await memory.close()
        return
    url = fresh(kind, request)
    one, other = await opened(url), await opened(url)
    yield Setup(one, other, now_s, is_real_time=True)
    await one.close()
    await other.close()


def saw(name: str, incarnation: int = 1, seq: int = 1, record: bytes = b"", age_s: float = 0.0) -> Sighting:
    return Sighting(name, incarnation, seq, record, age_s)


async def known(store: FleetStore) -> dict[str, tuple[int, int, bytes]]:
    return {one.id: (one.incarnation, one.seq, one.record) for one in await store.sightings()}


# --- sightings --------------------------------------------------------------------------------------


async def test_what_one_saw_the_other_reads(setup: Setup) -> None:
    assert await setup.store.sightings() == []
    await setup.store.saw([], 60)
    record = bytes(range(256))
    await setup.store.saw([saw("a", 7, 3, record), saw("b", MOST, MOST, b"")], 60)
    assert await known(setup.other) == {"a": (7, 3, record), "b": (MOST, MOST, b"")}
    assert all(0 <= one.age_s < PATIENT_S for one in await setup.other.sightings())


@pytest.mark.parametrize(
    ("incarnation", "seq", "is_newer"),
    [(2, 9, False), (2, 10, False), (2, 11, True), (1, 99, False), (3, 1, True), (2, MOST, True)],
)
async def test_only_what_is_newer_changes_anything(
    setup: Setup, incarnation: int, seq: int, is_newer: bool
) -> None:
    # 9 before 10: numbers are compared as numbers.
    await setup.store.saw([saw("a", 2, 10, b"known")], 60)
    await setup.other.saw([saw("a", incarnation, seq, b"said")], 60)
    expected = (incarnation, seq, b"said") if is_newer else (2, 10, b"known")
    assert await known(setup.store) == {"a": expected}


async def test_the_newest_of_one_batch_counts_whatever_its_order(setup: Setup) -> None:
    await setup.store.saw([saw("a", 1, 2), saw("a", 2, 1, b"newest"), saw("a", 1, 9)], 60)
    assert await known(setup.store) == {"a": (2, 1, b"newest")}


async def test_a_sighting_ends_with_its_time_and_its_age_counts(setup: Setup) -> None:
    await setup.store.saw([saw("short"), saw("older", age_s=0.6)], 0.4)
    await setup.store.saw([saw("long", age_s=5)], 600)
    assert "older" not in await known(setup.store), "its time was over before it was written down"
    age_s = next(one.age_s for one in await setup.store.sightings() if one.id == "long")
    assert 5 <= age_s < 5 + PATIENT_S

    async def is_over() -> bool:
        return set(await known(setup.other)) == {"long"}

    await setup.pass_by(0.5, is_over)
    # It is as if it had never been there.
    await setup.store.saw([saw("short", 0, 0, b"again")], 60)
    assert (await known(setup.store))["short"] == (0, 0, b"again")


async def test_the_same_report_again_does_not_keep_a_worker_alive(setup: Setup) -> None:
    await setup.store.saw([saw("a")], 0.4)
    await setup.other.saw([saw("a")], 600)

    async def is_over() -> bool:
        return not await setup.store.sightings()

    await setup.pass_by(0.5, is_over)


async def test_who_left_is_gone_but_not_its_next_life(setup: Setup) -> None:
    await setup.store.saw([saw("a", 5, 9), saw("b", 6, 1), saw("c")], 60)
    await setup.other.forget("a", 5)
    await setup.other.forget("b", 5)
    await setup.other.forget("unknown", 1)
    assert set(await known(setup.store)) == {"b", "c"}
    await setup.store.forget("b", MOST)
    assert set(await known(setup.store)) == {"c"}


# --- wants ------------------------------------------------------------------------------------------


async def test_a_want_replaces_the_holders_last_one_and_ends_unless_renewed(setup: Setup) -> None:
    assert list(await setup.store.wants()) == []
    await setup.store.want(Wanted("one", b"first"), 60)
    await setup.other.want(Wanted("two", bytes(range(256))), 60)
    await setup.other.want(Wanted("one", b"second"), 60)
    assert sorted((w.holder, w.record) for w in await setup.store.wants()) == [
        ("one", b"second"),
        ("two", bytes(range(256))),
    ]
    await setup.store.want(Wanted("one", b"third"), 0.3)
    await setup.store.want(Wanted("three", b""), 0.3)
    await setup.store.want(Wanted("three", b""), 600)

    async def is_over() -> bool:
        return sorted(w.holder for w in await setup.other.wants()) == ["three", "two"]

    await setup.pass_by(0.4, is_over)


def test_records_are_not_in_logs() -> None:
    """They may hold an engine's options."""
    assert "secret" not in repr(Wanted("one", b"secret")) + repr(saw("a", record=b"secret"))


# --- leading ----------------------------------------------------------------------------------------


async def test_one_of_many_leads(setup: Setup) -> None:
    for _ in range(3):
        asked = [(setup.store, setup.other)[n % 2].lead(f"o{n}", 60) for n in range(20)]
        answers = await asyncio.gather(*asked)
        assert answers.count(True) == 1
        leader = f"o{answers.index(True)}"
        assert await setup.store.lead(leader, 60), "it renews by asking"
        await setup.other.resign("another")
        assert not await setup.other.lead("another", 60)
        await setup.other.resign(leader)


async def test_a_leader_that_is_silent_is_followed_by_another(setup: Setup) -> None:
    assert await setup.store.lead("one", 0.5)
    assert not await setup.other.lead("two", 60)

    async def follows() -> bool:
        return await setup.other.lead("two", 60)

    await setup.pass_by(0.6, follows)
    assert not await setup.store.lead("one", 60)


# --- the store is away ------------------------------------------------------------------------------


async def test_a_closed_store_says_so(setup: Setup) -> None:
    await setup.store.close()
    with pytest.raises(StoreFailed):
        await setup.store.sightings()


def running(kind: str, folder: Path) -> AbstractContextManager[Backing]:
    return running_postgres(folder) if kind == "postgresql" else running_valkey(folder)


QUESTIONS: tuple[Callable[[FleetStore], Awaitable[object]], ...] = (
    lambda store: store.saw([saw("a")], 60),
    lambda store: store.sightings(),
    lambda store: store.forget("a", 1),
    lambda store: store.want(Wanted("one", b""), 60),
    lambda store: store.wants(),
    lambda store: store.lead("one", 60),
    lambda store: store.resign("one"),
)


async def all_fail_within(store: FleetStore, limit_s: float) -> None:
    for question in QUESTIONS:
        # The margin is the machine's; the driver's own limits are longer.
        async with asyncio.timeout(limit_s + 8):
            with pytest.raises(StoreFailed):
                await question(store)


async def answers_again(store: FleetStore) -> None:
    deadline_s = time.monotonic() + PATIENT_S
    while True:
        try:
            await store.saw([saw("again", 2)], 60)
        except StoreFailed:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.02)
        else:
            break
    assert "again" in await known(store)
    assert await store.lead("one", 60)


@pytest.mark.parametrize("kind", SHARED)
async def test_a_server_that_dies_freezes_and_comes_back(kind: str, tmp_path: Path) -> None:
    # In a thread: the servers' own methods block.
    with running(kind, tmp_path) as server:
        store = await opened(server.url, timeout_s=0.5)
        await store.saw([saw("a")], 60)
        await asyncio.to_thread(server.freeze)
        await all_fail_within(store, 0.5)
        await asyncio.to_thread(server.thaw)
        await answers_again(store)
        await asyncio.to_thread(server.kill)
        await all_fail_within(store, 0.5)
        server.restart()
        await answers_again(store)
        await store.close()


@pytest.mark.parametrize("kind", SHARED)
async def test_a_server_that_is_away_at_the_start_is_found_later(kind: str, tmp_path: Path) -> None:
    with running(kind, tmp_path) as server:
        await asyncio.to_thread(server.kill)
        store = await open_fleet(server.url)
        with pytest.raises(StoreFailed):
            await store.sightings()
        server.restart()
        await answers_again(store)
        await store.close()


def test_the_limits_are_short_enough_for_an_orchestrator() -> None:
    assert max(on_postgres.TIMEOUT_S, on_redis.TIMEOUT_S) <= 2.0


async def test_postgresql_deletes_what_has_ended(postgres: Postgres) -> None:
    url = postgres.fresh()
    database = url.rpartition("/")[2]
    store = await opened(url, purge_every_s=0.0)
    await store.saw([saw("short")], 0.01)
    await store.want(Wanted("one", b""), 0.01)
    deadline_s = time.monotonic() + PATIENT_S
    while (
        postgres.execute(
            "SELECT (SELECT count(*) FROM fleet_wants) + "
            "(SELECT count(*) FROM fleet_sightings WHERE id = 'short')",
            database,
        )
        != "0"
    ):
        assert time.monotonic() < deadline_s
        await store.saw([saw("other")], 60)
    await store.close()


async def test_postgresql_two_that_write_the_same_workers_do_not_wait_for_each_other(
    postgres: Postgres,
) -> None:
    url = postgres.fresh()
    stores = [await opened(url), await opened(url)]
    names = [f"w{n}" for n in range(200)]

    async def write(store: FleetStore, names: list[str]) -> None:
        for seq in range(20):
            await store.saw([saw(name, seq=seq) for name in names], 60)

    await asyncio.gather(write(stores[0], names), write(stores[1], names[::-1]))
    assert len(await stores[0].sightings()) == 200
    for store in stores:
        await store.close()


async def test_redis_keeps_nothing_for_ever(request: pytest.FixtureRequest) -> None:
    from redis.asyncio import Redis

    url = fresh("redis", request)
    store = await opened(url)
    await store.saw([saw("a")], 60)
    await store.want(Wanted("one", b""), 60)
    await store.lead("one", 60)
    client = Redis.from_url(url)
    keys = await client.keys("*")
    assert len(keys) == 5
    for key in keys:
        assert 0 < await client.pttl(key) <= 60_000
        assert key.startswith(b"inferhub:{fleet}:")
    await client.aclose()
    await store.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "fleet_url starts with ''"),
        ("memory://x", "takes nothing behind it"),
        ("postgresq://u:secret@h/d", "available: memory, postgresql, redis, rediss"),
        ("redis://h:notaport/0", "fleet_url cannot be read"),
        ("postgresql://u:secret@h:notaport/d", "fleet_url is no PostgreSQL URL"),
    ],
)
async def test_a_wrong_url_is_refused_with_the_remedy(url: str, words: str) -> None:
    with pytest.raises(SetupError, match=words) as caught:
        await open_fleet(url)
    assert caught.value.param == "fleet_url"
    assert "secret" not in caught.value.message


async def test_memory_alone_needs_nothing() -> None:
    store = await open_fleet("memory://")
    assert await store.lead("one", 60)
    await store.close()
