"""What each answer store does beyond the common questions: bounds, seals, damage, and losing the shared one."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.stores import open_answers
from inferhub.stores.cache import redis, sqlite
from inferhub.stores.cache.memory import ENTRY_BYTES, MemoryAnswers
from inferhub.stores.cache.sealed import SealedAnswers
from inferhub.stores.cache.tiered import TieredAnswers
from inferhub.testing.backing import Valkey, running_valkey

PEPPER = b"a pepper of the tests"
MIB = 1024**2


def key_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline_s = time.monotonic() + 30
    while not await condition():
        assert time.monotonic() < deadline_s, what
        await asyncio.sleep(0.02)


# --- memory ------------------------------------------------------------------------------------------


async def test_memory_forgets_what_was_not_used_for_longest() -> None:
    store = MemoryAnswers(3 * (ENTRY_BYTES + 100))
    for name in "abc":
        await store.put(key_of(name), bytes(100), 60)
    assert await store.get(key_of("a")) is not None
    await store.put(key_of("d"), bytes(100), 60)
    there = [name for name in "abcd" if await store.get(key_of(name)) is not None]
    assert there == ["a", "c", "d"]
    assert store.size_bytes == 3 * (ENTRY_BYTES + 100)
    await store.put(key_of("e"), bytes(250), 60)
    assert store.size_bytes <= 3 * (ENTRY_BYTES + 100)
    for name in "abcde":
        await store.delete(key_of(name))
    assert store.size_bytes == 0


async def test_memory_counts_what_it_replaces() -> None:
    store = MemoryAnswers(MIB)
    for size in (10, 1000, 0):
        await store.put(key_of("a"), bytes(size), 60)
        assert store.size_bytes == ENTRY_BYTES + size
    await store.put(key_of("a"), bytes(2 * MIB), 60)
    # The old value is not the answer any more either.
    assert await store.get(key_of("a")) is None
    assert store.size_bytes == 0


# --- sealed ------------------------------------------------------------------------------------------


async def test_nothing_readable_leaves_the_process_and_a_value_belongs_to_its_key() -> None:
    outside = MemoryAnswers(MIB)
    store = SealedAnswers(outside, PEPPER)
    await store.put(key_of("a"), b"the prompt said canary", 60)
    sealed = await outside.get(key_of("a"))
    assert sealed is not None
    assert b"canary" not in sealed
    assert sealed != await _sealed_again(store, outside)
    await outside.put(key_of("b"), sealed, 60)
    assert await store.get(key_of("b")) is None


async def _sealed_again(store: SealedAnswers, outside: MemoryAnswers) -> bytes | None:
    await store.put(key_of("a"), b"the prompt said canary", 60)
    return await outside.get(key_of("a"))


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "junk"])
async def test_a_damaged_value_is_as_if_absent(damage: str) -> None:
    outside = MemoryAnswers(MIB)
    store = SealedAnswers(outside, PEPPER)
    await store.put(key_of("a"), b"value", 60)
    sealed = await outside.get(key_of("a")) or b""
    broken = {
        "flip": bytes([*sealed[:-1], sealed[-1] ^ 1]),
        "cut": sealed[:-1],
        "empty": b"",
        "junk": b"x" * 64,
    }
    await outside.put(key_of("a"), broken[damage], 60)
    assert await store.get(key_of("a")) is None
    assert await store.get_many([key_of("a")]) == [None]
    assert await store.add(key_of("a"), b"new", 60) is None
    assert await store.get(key_of("a")) == b"new"


# --- SQLite ------------------------------------------------------------------------------------------


async def open_sqlite(path: Path, **given: object) -> sqlite.SqliteAnswers:
    return await sqlite.open_shared(f"sqlite:///{path}", **{"timeout_s": 30, **given})  # type: ignore[arg-type]


async def test_expired_rows_leave_with_every_write(tmp_path: Path) -> None:
    now_s = [1000.0]
    store = await open_sqlite(tmp_path / "a.db", clock=lambda: now_s[0])
    await store.put_many([(key_of(str(n)), b"x") for n in range(50)], 10)
    now_s[0] += 11
    await store.put(key_of("new"), b"x", 10)
    await store.close()
    with sqlite3.connect(tmp_path / "a.db") as connection:
        assert connection.execute("SELECT count(*) FROM answers").fetchone() == (1,)
    connection.close()
    assert (tmp_path / "a.db").stat().st_mode & 0o777 == 0o600


async def test_the_file_stays_within_its_bound_and_drops_what_ends_first(tmp_path: Path) -> None:
    store = await open_sqlite(tmp_path / "a.db", max_file_bytes=2 * MIB)
    await store.put(key_of("kept for long"), b"x" * 1000, 86_400)
    for n in range(400):
        await store.put(key_of(str(n)), bytes(20_000), 60 + n)
    assert await store.get(key_of("kept for long")) is not None
    assert await store.get(key_of("399")) is not None
    assert await store.get(key_of("0")) is None
    await store.close()
    assert (tmp_path / "a.db").stat().st_size < 4 * MIB


@pytest.mark.parametrize("damage", [b"this was never a database, whatever its name may say" * 100, b"x"])
async def test_a_damaged_file_is_moved_aside(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.db"
    path.write_bytes(damage)
    store = await open_sqlite(path)
    await store.put(key_of("a"), b"x", 60)
    assert await store.get(key_of("a")) == b"x"
    await store.close()
    if len(damage) > 100:
        assert (tmp_path / "a.db.damaged").read_bytes() == damage
        assert "starting anew" in caplog.text


async def test_damage_while_it_runs_costs_one_error_and_both_processes_go_on_together(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    one, other = await open_sqlite(path), await open_sqlite(path)
    await one.put_many([(key_of(str(n)), bytes(3000)) for n in range(200)], 60)
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))

    async def works() -> bool:
        try:
            await one.put(key_of("new"), b"x", 60)
            return await other.get(key_of("new")) == b"x"
        except StoreFailed:
            return False

    await until(works, "a new file")
    assert (tmp_path / "a.db.damaged").exists()
    assert await other.add(key_of("won"), b"1", 60) is None
    assert await one.add(key_of("won"), b"2", 60) == b"1"
    await one.close()
    await other.close()


async def test_a_file_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    store = await open_sqlite(path)
    await store.put(key_of("a"), b"x", 60)
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"a.db{suffix}").unlink()
    assert await store.get(key_of("a")) is None
    await store.put(key_of("a"), b"y", 60)
    assert path.exists()
    await store.close()


async def test_somebody_elses_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE precious (x)")
    connection.close()
    with pytest.raises(SetupError, match="another database"):
        await open_sqlite(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("precious",)]
    connection.close()


async def test_a_folder_that_cannot_be_written_is_a_setup_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SetupError, match="cannot be opened") as caught:
        await open_sqlite(tmp_path / "file" / "a.db")
    assert caught.value.param == "cache_url"


# --- Redis -------------------------------------------------------------------------------------------


async def test_redis_junk_is_ignored_and_replaced(valkey: Valkey) -> None:
    url = valkey.fresh()
    store = SealedAnswers(await redis.open_shared(url, timeout_s=30), PEPPER)
    raw = redis.Redis.from_url(url)
    for name, write in {
        "list": lambda key: raw.rpush(key, "junk"),
        "text": lambda key: raw.set(key, "junk"),
        "hash": lambda key: raw.hset(key, "a", "b"),
    }.items():
        key = key_of(name)
        await write(b"inferhub:answers:" + key)
        assert await store.get(key) is None
        assert await store.add(key, b"mine", 60) is None
        assert await store.add(key, b"late", 60) == b"mine"
        await store.put(key, b"new", 60)
        assert await store.get(key) == b"new"
    ttl = await raw.pttl(b"inferhub:answers:" + key_of("list"))
    assert 0 < ttl <= 60_000
    await raw.aclose()
    await store.close()


async def test_redis_that_is_away_frozen_or_killed_is_a_store_failure(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as server:
        store = await redis.open_shared(server.url, timeout_s=0.3)
        patient = await redis.open_shared(server.url, timeout_s=30)
        await patient.put(key_of("a"), b"x", 600)
        await asyncio.to_thread(server.freeze)
        begin_s = time.monotonic()
        with pytest.raises(StoreFailed, match="did not answer"):
            await store.get(key_of("a"))
        assert time.monotonic() - begin_s < 20
        await asyncio.to_thread(server.thaw)
        assert await patient.get(key_of("a")) == b"x"
        await asyncio.to_thread(server.kill)
        for asking in (store.get(key_of("a")), store.put(key_of("a"), b"y", 1), store.ping()):
            with pytest.raises(StoreFailed):
                await asking
        with pytest.raises(StoreFailed):
            await store.add(key_of("a"), b"y", 1)
        await asyncio.to_thread(server.restart)
        assert await patient.get(key_of("a")) == b"x"
        await store.close()
        await patient.close()


# --- tiered ------------------------------------------------------------------------------------------


class Failing(MemoryAnswers):
    """A shared store whose n-th operation fails, or hangs; every one from there on with `for_good`."""

    def __init__(self, at: int = 0, *, hangs: bool = False, for_good: bool = False) -> None:
        super().__init__(16 * MIB)
        self.at = at
        self.hangs = hangs
        self.for_good = for_good
        self.operations = 0
        self.has_failed = False

    async def _meet(self) -> None:
        self.operations += 1
        if self.operations == self.at or (self.for_good and 0 < self.at <= self.operations):
            self.has_failed = True
            if self.hangs:
                await asyncio.Event().wait()
            raise StoreFailed("on purpose")

    async def get(self, key: bytes) -> bytes | None:
        await self._meet()
        return await super().get(key)

    async def put(self, key: bytes, value: bytes, ttl_s: float) -> None:
        await self._meet()
        await super().put(key, value, ttl_s)

    async def add(self, key: bytes, value: bytes, ttl_s: float) -> bytes | None:
        await self._meet()
        return await super().add(key, value, ttl_s)

    async def delete(self, key: bytes) -> None:
        await self._meet()
        await super().delete(key)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        await self._meet()
        return await super().get_many(keys)

    async def put_many(self, entries: Sequence[tuple[bytes, bytes]], ttl_s: float) -> None:
        await self._meet()
        await super().put_many(entries, ttl_s)


async def test_the_tier_answers_without_the_shared_store_and_ends_with_it() -> None:
    now_s = [1000.0]
    shared = Failing()
    tier = MemoryAnswers(MIB, lambda: now_s[0])
    store = TieredAnswers(tier, shared, clock=lambda: now_s[0])
    other = TieredAnswers(MemoryAnswers(MIB, lambda: now_s[0]), shared, clock=lambda: now_s[0])
    await store.keep([(key_of("a"), b"x")], 10)
    asked = shared.operations
    assert await store.find(key_of("a")) == b"x"
    assert await store.find_many([key_of("a")]) == [b"x"]
    assert shared.operations == asked
    now_s[0] += 8
    assert await other.find(key_of("a")) == b"x"
    asked = shared.operations
    assert await other.find(key_of("a")) == b"x"
    assert shared.operations == asked
    now_s[0] += 3
    # Learned two seconds before its end, it still ends then.
    assert await other.find(key_of("a")) is None
    await store.close()
    await other.close()


async def test_the_tier_is_never_staler_than_the_port() -> None:
    shared = Failing()
    one, other = (TieredAnswers(MemoryAnswers(MIB), shared) for _ in range(2))
    assert await one.add(key_of("a"), b"running", 60) is None
    assert await other.get(key_of("a")) == b"running"
    assert await other.add(key_of("a"), b"mine", 60) == b"running"
    await one.put(key_of("a"), b"done", 60)
    assert await other.add(key_of("a"), b"mine", 60) == b"done"
    assert await other.get(key_of("a")) == b"done"
    await one.delete(key_of("a"))
    assert await one.get(key_of("a")) is None
    assert await other.add(key_of("a"), b"mine", 60) is None
    assert await one.add(key_of("a"), b"x", 60) == b"mine"
    await one.close()
    await other.close()


@pytest.mark.parametrize("hangs", [False, True])
async def test_the_ring_goes_on_without_the_shared_store(
    hangs: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    changes: list[str] = []
    shared = Failing(at=1, hangs=hangs, for_good=True)
    store = TieredAnswers(MemoryAnswers(MIB), shared, timeout_s=0.05, on_change=changes.append)
    await store.keep([(key_of("a"), b"x")], 60)
    assert await store.find(key_of("a")) == b"x"
    assert store.state() == "memory"
    asked = shared.operations
    for _ in range(100):
        assert await store.find(key_of("nowhere")) is None
        assert await store.find_many([key_of("nowhere")]) == [None]
    # Only the probe may have asked meanwhile.
    assert shared.operations <= asked + 5
    with pytest.raises(StoreFailed) if not hangs else pytest.raises((StoreFailed, TimeoutError)):
        async with asyncio.timeout(0.2):
            # Idempotency is told: without the store nobody can promise anything.
            await store.add(key_of("b"), b"x", 60)
    shared.at = 0

    async def is_back() -> bool:
        return store.state() == "ok"

    await until(is_back, "the shared store to be found again")
    await store.keep([(key_of("c"), b"x")], 60)
    assert await shared.get(key_of("c")) is not None
    assert changes == ["memory", "ok"]
    assert [r.levelname for r in caplog.records if "shared answers" in r.getMessage()] == ["WARNING"] * 2
    await store.close()


async def test_every_operation_may_fail_and_nothing_is_wrong_afterwards() -> None:
    for at in range(1, 20):
        shared = Failing(at)
        store = TieredAnswers(MemoryAnswers(MIB), SealedAnswers(shared, PEPPER))
        model: dict[bytes, bytes] = {}
        for step in range(4):
            key = key_of(str(step % 2))
            await store.keep([(key, b"answer")], 60)
            assert await store.find(key) == b"answer"
            mark = key_of(f"mark {step % 2}")
            try:
                found = await store.add(mark, str(step).encode(), 60)
                assert found == model.get(mark)
                model.setdefault(mark, str(step).encode())
                await store.put(mark, b"done", 60)
                model[mark] = b"done"
                assert await store.get(mark) == b"done"
            except StoreFailed:
                # It may or may not have happened; nothing is remembered here that the store may contradict.
                now = await store.get(mark)
                if now is None:
                    model.pop(mark, None)
                else:
                    model[mark] = now
        await store.close()
        if not shared.has_failed:
            return
    pytest.fail("the sweep did not come to its end")


async def test_a_tier_over_a_frozen_redis_keeps_its_budget_and_comes_back(tmp_path: Path) -> None:
    with running_valkey(tmp_path) as server:
        store = await open_answers(server.url, pepper=PEPPER, memory_bytes=MIB)
        other = await open_answers(server.url, pepper=PEPPER, memory_bytes=MIB)

        async def is_shared() -> bool:
            await store.keep([(key_of("a"), b"x")], 600)
            return await other.find(key_of("a")) == b"x"

        await until(is_shared, "the answer to be shared")
        await asyncio.to_thread(server.freeze)
        begin_s = time.monotonic()
        assert await store.find(key_of("unknown")) is None
        assert store.state() == "memory"
        for _ in range(50):
            await store.find(key_of("unknown"))
            await store.keep([(key_of("b"), b"y")], 600)
        # One budget, not a hundred.
        assert time.monotonic() - begin_s < 4
        assert await store.find(key_of("a")) == b"x"
        await asyncio.to_thread(server.kill)
        assert await store.find(key_of("b")) == b"y"
        await asyncio.to_thread(server.restart)

        async def is_back() -> bool:
            return store.state() == "ok"

        await until(is_back, "the shared store to be found again")
        await store.close()
        await other.close()
