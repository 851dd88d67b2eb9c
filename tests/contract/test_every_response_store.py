"""The questions of `ResponseStore`, asked of every answer: SQLite and a real PostgreSQL, bare and sealed."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import pytest
import pytest_asyncio

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.stores import open_responses
from inferhub.stores.late import LateResponses
from inferhub.stores.responses import postgres, sqlite
from inferhub.stores.responses.base import ResponseStore, Stored
from inferhub.stores.responses.sealed import SealedResponses
from inferhub.testing.backing import Postgres

PEPPER = b"a pepper of the tests"
KINDS = ("sqlite", "postgres", "sealed sqlite", "sealed postgres")
MIB = 1024**2
ALL = 100 * MIB


@dataclass
class Setup:
    store: ResponseStore
    now_s: list[float]


async def opened(kind: str, url: str, now_s: list[float], max_bytes: int = ALL) -> ResponseStore:
    store: ResponseStore
    if "sqlite" in kind:
        # Files are written under load of the whole machine: no answer may come late here.
        store = await sqlite.open_responses(url, max_bytes=max_bytes, clock=lambda: now_s[0], timeout_s=30)
    else:
        store = await postgres.open_responses(
            url, max_bytes=max_bytes, clock=lambda: now_s[0], measure_every_s=0
        )
    return SealedResponses(store, PEPPER) if "sealed" in kind else store


def url_of(kind: str, request: pytest.FixtureRequest, folder: Path) -> str:
    if "sqlite" in kind:
        return f"sqlite:///{folder}/responses.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.fresh()


@pytest_asyncio.fixture(params=KINDS)
async def setup(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Setup]:
    now_s = [time.time()]
    store = await opened(request.param, url_of(request.param, request, tmp_path), now_s)
    yield Setup(store, now_s)
    await store.close()


def one(name: str, previous: str = "", value: bytes = b"value", items: tuple[str, ...] = ()) -> Stored:
    return Stored(name, previous, value, items)


async def ids(store: ResponseStore, owner: str, name: str, **limits: int) -> list[str]:
    bounds = {"max_depth": 100, "max_bytes": ALL, **limits}
    return [found.id for found in await store.chain(owner, name, **bounds)]


async def test_what_was_put_is_there_until_it_is_deleted(setup: Setup) -> None:
    store = setup.store
    await store.put("a", one("r1", value=b"\x00one"), 60)
    [found] = await store.chain("a", "r1", max_depth=1, max_bytes=ALL)
    assert (found.id, found.previous_id, found.value) == ("r1", "", b"\x00one")
    await store.put("a", one("r1", value=b"two"), 60)
    [found] = await store.chain("a", "r1", max_depth=1, max_bytes=ALL)
    assert found.value == b"two"
    assert await store.delete("a", "r1") is True
    assert await store.delete("a", "r1") is False
    assert await ids(store, "a", "r1") == []
    await store.ping()


async def test_no_question_crosses_owners(setup: Setup) -> None:
    store = setup.store
    await store.put("a", one("r1", items=("m1",)), 60)
    await store.put("b", one("r2", previous="r1"), 60)
    assert await ids(store, "b", "r1") == []
    assert await ids(store, "b", "r2") == ["r2"], "another's is no part of this conversation"
    assert await store.holding("b", ["m1"]) == {}
    assert await store.delete("b", "r1") is False
    await store.put("b", one("r1", value=b"mine"), 60)
    [of_a], [of_b] = [await store.chain(o, "r1", max_depth=1, max_bytes=ALL) for o in ("a", "b")]
    assert (of_a.value, of_b.value) == (b"value", b"mine")


async def test_a_chain_is_newest_first_and_bounded(setup: Setup) -> None:
    store = setup.store
    for number in range(6):
        before = f"r{number - 1}" if number else ""
        await store.put("a", one(f"r{number}", before, b"x" * 1000), 60)
    assert await ids(store, "a", "r5") == ["r5", "r4", "r3", "r2", "r1", "r0"]
    assert await ids(store, "a", "r2") == ["r2", "r1", "r0"]
    assert await ids(store, "a", "r5", max_depth=2) == ["r5", "r4"]
    # With the one that goes beyond the bytes, so that the caller sees it.
    assert await ids(store, "a", "r5", max_bytes=2500) == ["r5", "r4", "r3"]
    await store.delete("a", "r3")
    found = await store.chain("a", "r5", max_depth=100, max_bytes=ALL)
    assert [stored.id for stored in found] == ["r5", "r4"]
    assert found[-1].previous_id == "r3"


async def test_a_chain_that_bites_its_tail_ends(setup: Setup) -> None:
    await setup.store.put("a", one("r1", "r2"), 60)
    await setup.store.put("a", one("r2", "r1"), 60)
    assert len(await ids(setup.store, "a", "r1", max_depth=10)) == 10


async def test_items_are_found_in_the_newest_response_that_has_them(setup: Setup) -> None:
    store = setup.store
    await store.put("a", one("r1", value=b"1", items=("m1", "m2", "m2")), 60)
    await store.put("a", one("r2", value=b"2", items=("m2",)), 60)
    found = await store.holding("a", ["m1", "m2", "m3"])
    assert {item_id: (s.id, s.value) for item_id, s in found.items()} == {
        "m1": ("r1", b"1"),
        "m2": ("r2", b"2"),
    }
    await store.delete("a", "r2")
    assert {item_id: s.id for item_id, s in (await store.holding("a", ["m2"])).items()} == {"m2": "r1"}
    many = tuple(f"i{number}" for number in range(3000))
    await store.put("a", one("r3", items=many), 60)
    assert len(await store.holding("a", many)) == 3000


async def test_what_is_over_is_gone(setup: Setup) -> None:
    store = setup.store
    await store.put("a", one("r1", items=("m1",)), 10)
    await store.put("a", one("r2", "r1"), 1000)
    setup.now_s[0] += 11
    assert await ids(store, "a", "r1") == []
    assert await ids(store, "a", "r2") == ["r2"]
    assert await store.holding("a", ["m1"]) == {}
    assert await store.delete("a", "r1") is False
    await store.put("a", one("r1", value=b"again"), 10)
    assert await ids(store, "a", "r1") == ["r1"]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_expired_rows_leave_the_database(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    now_s = [time.time()]
    url = url_of(kind, request, tmp_path)
    store = await opened(kind, url, now_s)
    for number in range(5):
        await store.put("a", one(f"r{number}", items=(f"m{number}",)), 10)
    now_s[0] += 11
    await store.put("a", one("new"), 10)
    await store.close()
    assert await counted(kind, url) == (1, 0)


async def counted(kind: str, url: str) -> tuple[int, int]:
    """(responses, items) in the database."""
    prefix = "" if kind == "sqlite" else "stored_"
    sql = f"SELECT (SELECT count(*) FROM {prefix}responses), (SELECT count(*) FROM {prefix}response_items)"  # noqa: S608
    if kind == "sqlite":
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        found = connection.execute(sql).fetchone()
        connection.close()
    else:
        link: Any = await asyncpg.connect(url)
        found = await link.fetchrow(sql)
        await link.close()
    return found[0], found[1]


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_whoever_stores_most_makes_room(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    store = await opened(kind, url_of(kind, request, tmp_path), [time.time()], max_bytes=4 * MIB)
    await store.put("modest", one("r0"), 60)
    for number in range(100):
        await store.put("greedy", one(f"r{number}", value=bytes(100_000)), 60)
    assert await ids(store, "modest", "r0") == ["r0"]
    assert await ids(store, "greedy", "r0") == []
    # What fits stays, but for the part that leaves at once.
    newest = [f"r{number}" for number in range(75, 100)]
    assert [name for name in newest if await ids(store, "greedy", name) == [name]] == newest
    await store.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_it_is_there_for_the_next_process_and_for_one_beside(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url, now_s = url_of(kind, request, tmp_path), [time.time()]
    first, second = await opened(kind, url, now_s), await opened(kind, url, now_s)
    await asyncio.gather(*[store.put("a", one(f"r{n}"), 60) for n, store in enumerate((first, second))])
    await first.close()
    assert await ids(second, "a", "r0") == ["r0"]
    await second.close()
    third = await opened(kind, url, now_s)
    assert await ids(third, "a", "r1") == ["r1"]
    await third.close()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_what_is_stored_is_sealed_to_its_place(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bare = await opened(kind, url_of(kind, request, tmp_path), [time.time()])
    store = SealedResponses(bare, PEPPER)
    await store.put("a", one("r1", value=b"a secret"), 60)
    [sealed] = await bare.chain("a", "r1", max_depth=1, max_bytes=ALL)
    assert b"secret" not in sealed.value
    await bare.put("b", sealed, 60)
    await bare.put("a", Stored("r2", "", sealed.value), 60)
    await bare.put("a", Stored("r3", "", b"junk"), 60)
    for owner, name in (("b", "r1"), ("a", "r2"), ("a", "r3")):
        assert await ids(store, owner, name) == [], "moved, or damaged"
    assert await ids(SealedResponses(bare, b"another pepper!!"), "a", "r1") == []
    await store.close()


async def test_a_server_that_is_gone_or_frozen_is_a_failure_and_then_is_back(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inferhub.stores.postgres_pool.STATEMENT_TIMEOUT_S", 1.0)
    monkeypatch.setattr("inferhub.stores.postgres_pool.CONNECT_TIMEOUT_S", 0.5)
    store = await opened("postgres", postgres.fresh(), [time.time()])
    await store.put("a", one("r1"), 60)
    postgres.freeze()
    try:
        with pytest.raises(StoreFailed):
            await store.chain("a", "r1", max_depth=1, max_bytes=ALL)
    finally:
        postgres.thaw()
    await until_answered(store)
    assert await ids(store, "a", "r1") == ["r1"]
    await store.close()


async def until_answered(store: ResponseStore) -> None:
    deadline_s = time.monotonic() + 60
    while True:
        try:
            return await store.ping()
        except StoreFailed:
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.05)


async def test_a_store_that_is_away_at_the_start_is_opened_when_it_answers(tmp_path: Path) -> None:
    is_there = False

    async def opener() -> ResponseStore:
        if not is_there:
            raise SetupError("It is away.", code="store_unreachable")
        return await open_responses(f"sqlite:///{tmp_path}/r.db", pepper=PEPPER, max_bytes=ALL)

    store = LateResponses(opener)
    with pytest.raises(StoreFailed, match="away"):
        await store.put("a", one("r1"), 60)
    is_there = True
    await store.put("a", one("r1", items=("m1",)), 60)
    assert await ids(store, "a", "r1") == ["r1"]
    assert set(await store.holding("a", ["m1"])) == {"m1"}
    assert await store.delete("a", "r1")
    await store.ping()
    await store.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense", "responses_url starts with ''"),
        ("redis://h/0", "responses_url starts with 'redis'"),
        ("sqlite:///", "responses_url names no file"),
        ("postgresql://u:secret@[::1/d", "responses_url is no PostgreSQL URL"),
    ],
)
async def test_a_wrong_url_is_named_with_the_remedy_and_never_repeated(url: str, said: str) -> None:
    with pytest.raises(SetupError, match="responses_url") as caught:
        await open_responses(url, pepper=PEPPER, max_bytes=ALL)
    assert said in caught.value.message
    assert caught.value.param == "responses_url"
    assert "secret" not in caught.value.message


async def test_another_database_is_not_written_into(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (x)")
    connection.commit()
    connection.close()
    with pytest.raises(SetupError, match="another database"):
        await open_responses(f"sqlite:///{path}", pepper=PEPPER, max_bytes=ALL)
    path.write_bytes(b"junk" * 5000)
    with pytest.raises(SetupError, match="moved away"):
        await open_responses(f"sqlite:///{path}", pepper=PEPPER, max_bytes=ALL)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_what_a_newer_version_made_is_not_written_into(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url = url_of(kind, request, tmp_path)
    await (await opened(kind, url, [time.time()])).close()
    if kind == "sqlite":
        connection = sqlite3.connect(url.removeprefix("sqlite:///"))
        connection.execute("PRAGMA user_version=99")
        connection.close()
    else:
        link: Any = await asyncpg.connect(url)
        await link.execute("UPDATE stored_responses_schema SET number = 99")
        await link.close()
    with pytest.raises(SetupError, match=r"newer InferHub.*99"):
        await opened(kind, url, [time.time()])
