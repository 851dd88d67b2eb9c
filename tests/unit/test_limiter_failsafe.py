"""The store of counters dies, hangs or comes back: calls go on, and never beyond the limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from inferhub.core.errors import StoreFailed
from inferhub.core.quota import Claim, Meter, Refusal, Reservation, Unit, Window
from inferhub.pipeline.limiter import Failsafe, Leased
from inferhub.stores.counters.memory import MemoryCounters
from inferhub.testing.failing import FailingCounters, Fault


def meter(unit: Unit, limit: int, window: Window = Window.MINUTE) -> Meter:
    return Meter(f"key:k:{unit}:{window}", unit, window, limit, "exact")


REQUESTS = meter(Unit.REQUESTS, 10)
SLOTS = meter(Unit.CONCURRENT, 6, Window.NOW)
MONEY = meter(Unit.USD, 1000, Window.DAY)
TOKENS = meter(Unit.TOKENS, 1000, Window.DAY)


class Shaky:
    """A store that fails at will, and a process in front of it."""

    def __init__(self, store: MemoryCounters | None = None, gateways: int = 1) -> None:
        self.inner = store or MemoryCounters()
        self.store = FailingCounters(self.inner)
        self.changes: list[str] = []
        self.counters = Failsafe(
            self.store, gateways_expected=gateways, timeout_s=0.05, on_change=self.changes.append
        )
        self._n = 0

    async def call(self, *claims: Claim) -> Reservation | Refusal:
        self._n += 1
        return await self.counters.reserve(f"{id(self)}-{self._n}", claims)

    async def count(self, n: int, *claims: Claim) -> list[Reservation]:
        answers = [await self.call(*claims) for _ in range(n)]
        return [a for a in answers if isinstance(a, Reservation)]

    async def used(self, *meters: Meter) -> list[int]:
        return [r.used for r in await self.inner.read(meters)]

    async def until_ok(self) -> None:
        await until(lambda: self.counters.state() == "ok")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def _quick_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferhub.pipeline.limiter.failsafe.PROBE_S", 0.02)


@pytest.mark.parametrize("fault", ["before", "after", "hang"])
async def test_a_lost_store_fails_no_call_and_it_comes_back_by_itself(fault: Fault) -> None:
    shaky = Shaky()
    assert isinstance(await shaky.call(Claim(REQUESTS, 1)), Reservation)
    shaky.store.break_down(fault)
    assert isinstance(await shaky.call(Claim(REQUESTS, 1)), Reservation)
    assert (shaky.counters.state(), shaky.changes) == ("local", ["local"])
    with pytest.raises(StoreFailed):
        await shaky.counters.ping()
    shaky.store.mend()
    await shaky.until_ok()
    assert shaky.changes == ["local", "ok"]
    await shaky.counters.close()


async def test_a_store_that_answers_is_asked_and_nothing_else() -> None:
    shaky = Shaky()
    assert len(await shaky.count(30, Claim(REQUESTS, 1))) == 10
    assert (await shaky.used(REQUESTS), shaky.changes) == ([10], [])


@pytest.mark.parametrize(("gateways", "expected"), [(1, 10), (3, 3), (10, 1), (11, 0)])
async def test_alone_a_process_grants_its_part_of_the_limit_rounded_down(
    gateways: int, expected: int
) -> None:
    shaky = Shaky(gateways=gateways)
    shaky.store.break_down()
    assert len(await shaky.count(30, Claim(REQUESTS, 1))) == expected
    await shaky.counters.close()


async def test_what_the_store_knew_still_counts_without_it() -> None:
    shaky = Shaky(gateways=2)
    for reservation in await shaky.count(6, Claim(REQUESTS, 1), Claim(MONEY, 100)):
        await shaky.counters.settle(reservation, {})
    shaky.store.break_down()
    # 4 of 10 requests were left, and half of them are ours.
    assert len(await shaky.count(30, Claim(REQUESTS, 1))) == 2
    assert len(await shaky.count(30, Claim(MONEY, 100))) == 2
    await shaky.counters.close()


async def test_two_processes_that_both_lose_the_store_grant_no_more_than_the_limit() -> None:
    store = MemoryCounters()
    both = [Shaky(store, gateways=2), Shaky(store, gateways=2)]
    granted = 0
    for _ in range(2):
        for shaky in both:
            granted += len(await shaky.count(1, Claim(REQUESTS, 1)))
    for shaky in both:
        shaky.store.break_down()
    for shaky in both:
        granted += len(await shaky.count(30, Claim(REQUESTS, 1)))
    assert 8 <= granted <= 10
    for shaky in both:
        await shaky.counters.close()


async def test_a_request_too_large_for_a_part_is_told_to_try_again_and_one_too_large_is_not() -> None:
    shaky = Shaky(gateways=4)
    shaky.store.break_down()
    late = await shaky.call(Claim(TOKENS, 600))
    assert isinstance(late, Refusal)
    assert (late.retry_after_s, late.claim.meter.limit) == (1.0, 1000)
    never = await shaky.call(Claim(TOKENS, 1001))
    assert isinstance(never, Refusal)
    assert never.retry_after_s is None
    await shaky.counters.close()


async def test_calls_that_run_keep_their_slots_and_give_them_back() -> None:
    shaky = Shaky()
    running = await shaky.count(4, Claim(SLOTS, 1))
    shaky.store.break_down()
    assert len(await shaky.count(10, Claim(SLOTS, 1))) == 2
    for reservation in running[:3]:
        await shaky.counters.settle(reservation, {SLOTS.key: 1})
    assert len(await shaky.count(10, Claim(SLOTS, 1))) == 3
    shaky.store.mend()
    await shaky.until_ok()
    # One call of before, and five that were let in meanwhile.
    assert await shaky.used(SLOTS) == [6]
    assert len(await shaky.count(10, Claim(SLOTS, 1))) == 0
    await shaky.counters.close()


async def test_what_was_used_meanwhile_is_told_when_the_store_is_back() -> None:
    shaky = Shaky()
    (before,) = await shaky.count(1, Claim(MONEY, 100), Claim(TOKENS, 100), Claim(SLOTS, 1))
    shaky.store.break_down()
    (done, running) = await shaky.count(2, Claim(MONEY, 100), Claim(TOKENS, 100), Claim(SLOTS, 1))
    await shaky.counters.settle(before, {MONEY.key: 30, TOKENS.key: 40, SLOTS.key: 1})
    await shaky.counters.settle(done, {MONEY.key: 50, TOKENS.key: 60, SLOTS.key: 1})
    shaky.store.mend()
    await shaky.until_ok()
    assert await shaky.used(MONEY, TOKENS, SLOTS) == [30 + 50 + 100, 40 + 60 + 100, 1]
    await shaky.counters.settle(running, {MONEY.key: 70, TOKENS.key: 130, SLOTS.key: 1})
    assert await shaky.used(MONEY, TOKENS, SLOTS) == [30 + 50 + 70, 40 + 60 + 130, 0]
    await shaky.counters.close()


async def test_a_second_outage_begins_anew() -> None:
    shaky = Shaky()
    for round_ in range(1, 4):
        shaky.store.break_down()
        (r,) = await shaky.count(1, Claim(MONEY, 100))
        await shaky.counters.settle(r, {MONEY.key: 10})
        shaky.store.mend()
        await shaky.until_ok()
        assert await shaky.used(MONEY) == [10 * round_]
    await shaky.counters.close()


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_whichever_operation_fails_nothing_leaks_or_is_let_in_beyond(fault: Fault) -> None:
    for n in range(1, 16):
        shaky = Shaky()
        store = shaky.store
        store._first = store._last = n
        store.fault = fault
        running: list[Reservation] = []
        granted = 0
        for _ in range(3):
            before = len(running)
            running += await shaky.count(4, Claim(SLOTS, 1), Claim(MONEY, 10))
            assert len(running) <= SLOTS.limit
            granted += len(running) - before
            while len(running) > 1:
                await shaky.counters.settle(running.pop(0), {MONEY.key: 7, SLOTS.key: 1})
        await shaky.counters.settle(running.pop(), {MONEY.key: 7, SLOTS.key: 1})
        await shaky.until_ok()
        slots, money = await shaky.used(SLOTS, MONEY)
        # A grant whose answer was lost is held until its lease runs out.
        lost = 1 if fault == "after" else 0
        assert slots <= lost, n
        assert granted * 7 <= money <= granted * 7 + 10 * lost, n
        assert granted >= 10
        await shaky.counters.close()


async def test_with_blocks_in_front_nothing_is_lost_over_an_outage() -> None:
    shaky = Shaky()
    slots = Meter("key:k:concurrent:now", Unit.CONCURRENT, Window.NOW, 1000, "lease")
    money = Meter("key:k:usd:day", Unit.USD, Window.DAY, 10**12, "lease")
    leased = Leased(shaky.counters)
    granted = []
    for i in range(300):
        if i == 100:
            shaky.store.break_down()
        if i == 200:
            shaky.store.mend()
            await shaky.until_ok()
        r = await leased.reserve(f"c-{i}", (Claim(slots, 1), Claim(money, 1000)))
        assert isinstance(r, Reservation)
        granted.append(r)
        await asyncio.sleep(0)
    for r in granted:
        await leased.settle(r, {slots.key: 1, money.key: 800})
    await leased.close()
    assert await shaky.used(slots, money) == [0, 300 * 800]


async def test_marks_are_set_once_with_and_without_the_store() -> None:
    shaky = Shaky()
    assert [await shaky.counters.mark_once("m", 60) for _ in range(2)] == [True, False]
    shaky.store.break_down()
    assert [await shaky.counters.mark_once("n", 60) for _ in range(2)] == [True, False]
    await shaky.counters.close()


async def test_a_charge_that_fails_says_so_and_changes_nothing() -> None:
    shaky = Shaky()
    shaky.store.break_down("hang")
    with pytest.raises(StoreFailed):
        await shaky.counters.charge("c", (Claim(MONEY, 5),))
    assert shaky.counters.state() == "ok"
    await shaky.counters.close()
