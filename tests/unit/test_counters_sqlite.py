"""Counters in a file that is locked, damaged, not theirs, or from before the machine was started."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import time
from pathlib import Path

import pytest

from inferhub.core.errors import SetupError, StoreFailed
from inferhub.core.quota import Claim, Meter, Reservation, Unit, Window
from inferhub.stores import open_counters
from inferhub.stores.counters import sqlite
from inferhub.stores.counters.base import REMEMBER_S, Counters
from inferhub.stores.counters.window import Instant

PATIENCE_S = 30.0
RPM = Meter("rpm", Unit.REQUESTS, Window.MINUTE, 100)
CONCURRENT = Meter("now", Unit.CONCURRENT, Window.NOW, 100)
BUDGET = Meter("usd", Unit.USD, Window.MONTH, 100_000)
EVERY = (RPM, CONCURRENT, BUDGET)


class Clocks:
    def __init__(self, steady_ms: int = 10_000_000) -> None:
        self.steady_ms = steady_ms
        self.wall_ms = 1_770_000_000_000

    def __call__(self) -> Instant:
        return Instant(self.steady_ms, self.wall_ms)

    def advance(self, seconds: float) -> None:
        self.steady_ms += int(seconds * 1000)
        self.wall_ms += int(seconds * 1000)


async def take(counters: Counters, ticket: str, *meters: Meter) -> Reservation:
    granted = await counters.reserve(ticket, [Claim(meter, 1) for meter in meters or EVERY])
    assert isinstance(granted, Reservation)
    return granted


async def used(counters: Counters) -> list[int]:
    return [reading.used for reading in await counters.read(EVERY)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "counters.db"


async def filled(path: Path, meters: int = 300) -> None:
    counters = await open_counters(f"sqlite:///{path}")
    for i in range(meters):
        await take(counters, f"call_{i}", Meter(f"budget {i}" * 10, Unit.USD, Window.MONTH, 100))
    await counters.close()


def damage(path: Path) -> None:
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:"])
async def test_a_url_without_a_file_is_refused(url: str) -> None:
    with pytest.raises(SetupError, match="names no file"):
        await open_counters(url)


@pytest.mark.parametrize("url", ["postgresql://u:geheim@h/x", "mysql", "", "redi://:geheim@h"])
async def test_an_unknown_scheme_names_those_there_are(url: str) -> None:
    with pytest.raises(SetupError, match="available: memory, redis, rediss, sqlite") as caught:
        await open_counters(url)
    assert caught.value.param == "counters_url"
    assert "geheim" not in caught.value.message


async def test_memory_takes_no_address() -> None:
    with pytest.raises(SetupError, match="takes nothing"):
        await open_counters("memory://here")


@pytest.mark.parametrize("name", ["a b.db", "a%20b?c=d#e.db", "ü.db", "new/folder/x.db"])
async def test_odd_file_names_are_taken_literally(tmp_path: Path, name: str) -> None:
    await filled(tmp_path / name, meters=1)
    assert (tmp_path / name).stat().st_size > 0
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.parametrize("junk", [b"not a database, only text " * 400, b"\x01" * 9000, os.urandom(9000)])
def test_a_file_that_is_no_database_is_refused_and_kept(path: Path, junk: bytes) -> None:
    path.write_bytes(junk)
    with pytest.raises(SetupError, match=f"damaged.*mv {path}") as caught:
        asyncio.run(open_counters(f"sqlite:///{path}"))
    assert caught.value.param == "counters_url"
    assert path.read_bytes() == junk


def test_an_overwritten_page_is_found_at_the_start(path: Path) -> None:
    asyncio.run(filled(path))
    content = path.read_bytes()
    assert len(content) > 20_000
    path.write_bytes(content[:-4096] + b"\xff" * 4096)
    with pytest.raises(SetupError, match="damaged"):
        asyncio.run(open_counters(f"sqlite:///{path}"))


async def test_a_file_damaged_while_it_is_open_fails_calls_and_not_the_process(path: Path) -> None:
    await filled(path)
    counters = await open_counters(f"sqlite:///{path}")
    other = await open_counters(f"sqlite:///{path}")
    await take(other, "y")  # so that the first reads the file again, not its memory of it
    damage(path)
    with pytest.raises(StoreFailed, match="damaged"):
        await take(counters, "x")
    await counters.close()
    await other.close()


async def test_a_row_that_nobody_here_wrote(path: Path) -> None:
    await filled(path, meters=1)
    counters = await open_counters(f"sqlite:///{path}")
    await take(counters, "before")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE gauges SET state = x'c1' WHERE key = 'rpm'")
    connection.close()
    with pytest.raises(StoreFailed, match="no InferHub wrote"):
        await take(counters, "x")
    assert await counters.read([BUDGET])  # others go on
    await counters.close()


async def test_another_database_is_left_alone(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE api_keys (id TEXT)")
    connection.close()
    with pytest.raises(SetupError, match="is another database"):
        await open_counters(f"sqlite:///{path}")
    connection = sqlite3.connect(path)
    assert [row[0] for row in connection.execute("SELECT name FROM sqlite_schema")] == ["api_keys"]
    connection.close()


async def test_a_file_of_a_newer_version_is_refused(path: Path) -> None:
    await filled(path, meters=1)
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(SetupError, match="newer InferHub"):
        await open_counters(f"sqlite:///{path}")


def test_a_folder_in_its_place(path: Path) -> None:
    path.mkdir()
    with pytest.raises(SetupError, match="cannot be opened for writing"):
        asyncio.run(open_counters(f"sqlite:///{path}"))


async def test_a_file_that_another_process_holds(path: Path) -> None:
    counters = await sqlite.open_counters(f"sqlite:///{path}", timeout_s=0.4)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    answers = await asyncio.gather(*(take(counters, f"call_{i}") for i in range(20)), return_exceptions=True)
    assert time.monotonic() - began < PATIENCE_S
    assert {type(answer) for answer in answers} == {StoreFailed}
    holder.execute("ROLLBACK")
    holder.close()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await take(counters, "after")
                break
            except StoreFailed:
                await asyncio.sleep(0.01)
    # A call that was told that it failed may have been counted, but never twice.
    assert (await used(counters))[0] <= 21
    await counters.close()


async def test_many_processes_open_a_new_file_at_once(path: Path) -> None:
    opened = await asyncio.gather(
        *(sqlite.open_counters(f"sqlite:///{path}", timeout_s=PATIENCE_S) for _ in range(8))
    )
    await asyncio.gather(*(take(counters, f"call_{i}") for i, counters in enumerate(opened)))
    assert await used(opened[0]) == [8, 8, 8]
    for counters in opened:
        await counters.close()


async def test_an_abandoned_call_disturbs_nobody(path: Path) -> None:
    counters = await sqlite.open_counters(f"sqlite:///{path}", timeout_s=PATIENCE_S)
    calls = [asyncio.create_task(take(counters, f"call_{i}")) for i in range(50)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(answer, Reservation) for answer in answers) == 25
    assert 25 <= (await used(counters))[0] <= 50
    await counters.close()


async def test_nothing_is_answered_after_closing(path: Path) -> None:
    counters = await open_counters(f"sqlite:///{path}")
    pending = asyncio.create_task(take(counters, "last"))
    await asyncio.sleep(0)
    await counters.close()
    assert isinstance(await pending, Reservation)
    with pytest.raises(StoreFailed, match="closed"):
        await counters.ping()


async def test_after_a_reboot_leases_run_anew_and_nothing_is_freed(path: Path) -> None:
    clocks = Clocks()
    before = await sqlite.open_counters(f"sqlite:///{path}", clock=clocks)
    settled, running = await take(before, "settled"), await take(before, "running")
    await before.settle(settled, {BUDGET.key: 50})
    await before.close()

    clocks.steady_ms = 40_000
    clocks.wall_ms += 90_000
    after = await sqlite.open_counters(f"sqlite:///{path}", clock=clocks)
    assert await used(after) == [2, 1, 51]
    # The minute in which it was reserved is another one now: nothing is taken from whoever is in it.
    await after.settle(running, {RPM.key: 0, BUDGET.key: 7})
    await after.settle(settled, {BUDGET.key: 50})
    assert await used(after) == [2, 0, 57]
    lost = await take(after, "lost")
    clocks.advance(30)
    assert await used(after) == [3, 0, 57]
    clocks.advance(31)
    assert await used(after) == [0, 0, 57]
    assert lost
    await after.close()


async def test_the_file_does_not_grow_with_calls_that_are_over(path: Path) -> None:
    clocks = Clocks()
    counters = await sqlite.open_counters(f"sqlite:///{path}", clock=clocks)
    for i in range(300):
        subject = Meter(f"rpm {i}", Unit.REQUESTS, Window.MINUTE, 10)
        await counters.settle(await take(counters, f"call_{i}", subject, CONCURRENT), {})
        await counters.mark_once(f"mark {i}", 10)
        clocks.advance(1)
    clocks.advance(REMEMBER_S + 62)
    for _ in range(600):
        await take(counters, "once", RPM)
    await counters.close()
    connection = sqlite3.connect(path)
    tables = ("tickets", "gauges", "marks")
    rows = [connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables]  # noqa: S608
    connection.close()
    assert rows == [1, 1, 0]
