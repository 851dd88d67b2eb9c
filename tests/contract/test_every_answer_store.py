"""The questions of `AnswerStore`, asked of every answer: memory, SQLite, a real Valkey, bare and tiered."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.stores import open_answers
from inferhub.stores.cache import redis, sqlite
from inferhub.stores.cache.base import MAX_VALUE_BYTES, AnswerStore, SharedAnswers
from inferhub.stores.cache.memory import MemoryAnswers
from inferhub.stores.cache.sealed import SealedAnswers
from inferhub.stores.cache.tiered import TieredAnswers
from inferhub.testing.backing import Valkey

PEPPER = b"a pepper of the tests"
KINDS = ("memory", "sqlite", "redis", "sealed sqlite", "sealed redis", "tiered sqlite", "tiered redis")
MIB = 1024**2


def key_of(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@dataclass
class Setup:
    """A store, and how time passes for it."""

    store: AnswerStore
    now_s: list[float]
    is_real_time: bool

    async def pass_by(self, seconds_s: float, condition: Callable[[], Awaitable[bool]]) -> None:
        """Until `condition`, on the clock of the store."""
        self.now_s[0] += seconds_s
        deadline_s = time.monotonic() + 20
        while not await condition():
            assert self.is_real_time, "the time is over and nothing happened"
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.01)


@pytest_asyncio.fixture(params=KINDS)
async def setup(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Setup]:
    now_s = [time.time()]

    def clock() -> float:
        return now_s[0]

    kind: str = request.param
    store: AnswerStore
    if kind == "memory":
        store = MemoryAnswers(16 * MIB, clock)
    else:
        shared: SharedAnswers
        if "sqlite" in kind:
            # Files are written under load of the whole machine: no answer may come late here.
            shared = await sqlite.open_shared(f"sqlite:///{tmp_path}/a.db", clock=clock, timeout_s=30)
        else:
            valkey: Valkey = request.getfixturevalue("valkey")
            shared = await redis.open_shared(valkey.fresh(), timeout_s=30)
        if "sealed" in kind or "tiered" in kind:
            shared = SealedAnswers(shared, PEPPER)
        store = shared
        if "tiered" in kind:
            # Of Redis, time is real; then it is here too.
            tier_clock = time.time if "redis" in kind else clock
            store = TieredAnswers(MemoryAnswers(16 * MIB, tier_clock), shared, clock=tier_clock)
    yield Setup(store, now_s, "redis" in kind)
    await store.close()


async def test_what_was_put_is_there_until_it_is_deleted(setup: Setup) -> None:
    store = setup.store
    assert await store.get(key_of("a")) is None
    await store.put(key_of("a"), b"one", 60)
    await store.put(key_of("b"), b"", 60)
    assert (await store.get(key_of("a")), await store.get(key_of("b"))) == (b"one", b"")
    await store.put(key_of("a"), b"two", 60)
    assert await store.get(key_of("a")) == b"two"
    await store.delete(key_of("a"))
    await store.delete(key_of("never there"))
    assert await store.get(key_of("a")) is None
    assert await store.get(key_of("b")) == b""
    await store.ping()


async def test_add_has_one_winner_and_tells_the_others_what_is_there(setup: Setup) -> None:
    store = setup.store
    assert await store.add(key_of("a"), b"first", 60) is None
    assert await store.add(key_of("a"), b"second", 60) == b"first"
    await store.put(key_of("a"), b"third", 60)
    assert await store.add(key_of("a"), b"fourth", 60) == b"third"
    await store.delete(key_of("a"))
    assert await store.add(key_of("a"), b"fifth", 60) is None
    results = await asyncio.gather(*[store.add(key_of("b"), str(n).encode(), 60) for n in range(20)])
    assert results.count(None) == 1
    winner = str(results.index(None)).encode()
    assert {found for found in results if found is not None} == {winner}


async def test_an_entry_ends_with_its_time(setup: Setup) -> None:
    store = setup.store
    await store.put(key_of("short"), b"x", 0.2)
    await store.put(key_of("long"), b"y", 600)
    assert await store.add(key_of("added"), b"z", 0.2) is None

    async def is_over() -> bool:
        return await store.get(key_of("short")) is None and await store.get(key_of("added")) is None

    await setup.pass_by(0.3, is_over)
    assert await store.get(key_of("long")) == b"y"
    assert await store.add(key_of("short"), b"again", 60) is None
    # A longer time replaces a shorter one, and the other way round.
    await store.put(key_of("long"), b"y", 0.2)
    await store.put(key_of("added"), b"z", 600)

    async def is_over_too() -> bool:
        return await store.get(key_of("long")) is None

    await setup.pass_by(0.3, is_over_too)
    assert await store.get(key_of("added")) == b"z"


async def test_a_value_that_is_too_large_is_not_kept(setup: Setup) -> None:
    store = setup.store
    large = bytes(MAX_VALUE_BYTES + 1)
    await store.put(key_of("large"), large, 60)
    assert await store.get(key_of("large")) is None
    with pytest.raises(StoreFailed):
        # Whoever adds relies on it.
        await store.add(key_of("large"), large, 60)
    half = bytes(range(256)) * (MAX_VALUE_BYTES // 512)
    await store.put(key_of("half"), half, 60)
    assert await store.get(key_of("half")) == half


async def test_many_at_once(setup: Setup) -> None:
    store = setup.store
    keys = [key_of(str(n)) for n in range(600)]
    if isinstance(store, TieredAnswers):
        await store.keep([(key, key[:4]) for key in keys[::2]], 60)
        found = await store.find_many(keys)
    else:
        assert isinstance(store, MemoryAnswers | sqlite.SqliteAnswers | redis.RedisAnswers | SealedAnswers)
        await store.put_many([(key, key[:4]) for key in keys[::2]], 60)
        found = await store.get_many(keys)
        await store.discard(keys[0], b"something else")
        assert await store.get(keys[0]) == keys[0][:4]
        await store.discard(keys[0], keys[0][:4])
        assert await store.get(keys[0]) is None
    assert found == [key[:4] if index % 2 == 0 else None for index, key in enumerate(keys)]


# --- several processes ------------------------------------------------------------------------------

_RACER = """
import asyncio, hashlib, json, sys
from inferhub.stores import open_answers

async def main(url, name):
    store = await open_answers(url, pepper=b"a pepper of the tests", memory_bytes=1 << 20)
    print("ready", flush=True)
    sys.stdin.readline()
    won = []
    for n in range(200):
        key = hashlib.sha256(str(n).encode()).digest()
        while True:
            try:
                found = await store.add(key, name.encode(), 60)
            except Exception as error:
                if type(error).__name__ != "StoreFailed":
                    raise
                continue
            break
        if found is None or found == name.encode():
            won.append(n)
    await store.close()
    print(json.dumps(won))

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
def test_add_has_one_winner_among_processes(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/a.db" if kind == "sqlite" else request.getfixturevalue("valkey").fresh()
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", _RACER, url, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("left", "right")
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        left, right = (json.loads(racer.communicate(timeout=60)[0]) for racer in racers)
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
    assert sorted(left + right) == list(range(200))


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_what_one_process_writes_the_other_reads_unless_its_pepper_differs(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = f"sqlite:///{tmp_path}/a.db" if kind == "sqlite" else request.getfixturevalue("valkey").fresh()
    one = await open_answers(url, pepper=PEPPER, memory_bytes=MIB)
    other = await open_answers(url, pepper=PEPPER, memory_bytes=MIB)
    stranger = await open_answers(url, pepper=b"another pepper here", memory_bytes=MIB)
    try:
        await one.put(key_of("a"), b"what was said", 60)
        assert await other.get(key_of("a")) == b"what was said"
        assert await stranger.get(key_of("a")) is None
        # To who cannot open it, it is not there.
        assert await stranger.add(key_of("a"), b"mine", 60) is None
        assert await one.add(key_of("a"), b"x", 60) is None
    finally:
        for store in (one, other, stranger):
            await store.close()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nonsense", "cache_url starts with ''"),
        ("sqlit:///x", "did you mean|Did you mean"),
        ("sqlite://", "names no file"),
        ("redis://h:notaport/0", "cache_url cannot be read"),
        ("postgresql://u:secret@h/d", "available: memory, redis, rediss, sqlite"),
    ],
)
async def test_a_wrong_url_is_refused_with_the_remedy(url: str, words: str) -> None:
    with pytest.raises(SetupError, match=words) as caught:
        await open_answers(url, pepper=PEPPER, memory_bytes=MIB)
    assert caught.value.param == "cache_url"
    assert "secret" not in caught.value.message


async def test_memory_alone_needs_nothing() -> None:
    store = await open_answers("memory://", pepper=PEPPER, memory_bytes=MIB)
    await store.keep([(key_of("a"), b"x")], 60)
    assert await store.find(key_of("a")) == b"x"
    assert store.state() == "ok"
    await store.close()
