"""Leased blocks: no store on the way of most calls, and still never more than the limit."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from inferhub.core.quota import NANO_USD, Claim, Meter, Reading, Refusal, Reservation, Unit, Window
from inferhub.pipeline.limiter import Leased
from inferhub.pipeline.limiter.account import Account, Cell, is_leased, lasts_s
from inferhub.stores.counters.memory import MemoryCounters
from inferhub.stores.counters.window import Instant
from inferhub.testing.failing import FailingCounters


def meter(unit: Unit, limit: int, window: Window = Window.MINUTE, mode: str = "lease") -> Meter:
    return Meter(f"key:k:{unit}:{window}", unit, window, limit, mode)  # type: ignore[arg-type]


REQUESTS = meter(Unit.REQUESTS, 10_000)
SLOTS = meter(Unit.CONCURRENT, 1000, Window.NOW)
MONEY = meter(Unit.USD, 100 * NANO_USD, Window.DAY)
TOKENS = meter(Unit.TOKENS, 1_000_000, Window.DAY)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def call(leased: Leased, ticket: str, *claims: Claim) -> Reservation | None:
    answer = await leased.reserve(ticket, claims)
    return answer if isinstance(answer, Reservation) else None


async def warm(leased: Leased, *claims: Claim, calls: int = 200) -> list[Reservation]:
    """Calls until the store is asked no more for each."""
    granted = []
    for i in range(calls):
        reservation = await call(leased, f"warm-{id(leased)}-{i}", *claims)
        assert reservation is not None
        granted.append(reservation)
        await asyncio.sleep(0)
    return granted


# --- the arithmetic --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "limit", "expected"),
    [
        (Unit.REQUESTS, 1000, True), (Unit.REQUESTS, 999, False), (Unit.TOKENS, 100_000, True),
        (Unit.TOKENS, 99_999, False), (Unit.CONCURRENT, 256, True), (Unit.CONCURRENT, 255, False),
        (Unit.USD, 10 * NANO_USD, True), (Unit.USD, 10 * NANO_USD - 1, False), (Unit.IMAGES, 1000, True),
    ],
)  # fmt: skip
def test_auto_leases_large_limits_only(unit: Unit, limit: int, expected: bool) -> None:
    assert is_leased(meter(unit, limit, mode="auto")) is expected
    assert is_leased(meter(unit, limit, mode="lease"))
    assert not is_leased(meter(unit, limit, mode="exact"))


def test_a_block_of_a_minute_lasts_as_long_as_it_is_counted_beyond_the_minute() -> None:
    assert lasts_s(Window.MINUTE, 60.7) == pytest.approx(0.698)
    assert lasts_s(Window.MINUTE, 60.0) < 0
    assert lasts_s(Window.DAY, 500.0) == pytest.approx(499.998)
    assert lasts_s(Window.NOW, 30.0) == float("inf")


def _block(amount: int, n: int) -> Reservation:
    claim = Claim(MONEY, amount)
    return Reservation(f"blk-{n}", (claim,), (Reading(MONEY, amount, 5000.0),), 1000.0)


def test_cells_cover_running_calls_and_report_every_unit_once() -> None:
    """Random takes, gives and returns against a plain model."""
    for seed in range(200):
        rng = random.Random(seed)
        cell, running, told, used_in_all, n = Cell(0.0, 1e18), [], 0, 0, 0
        for _ in range(100):
            action = rng.random()
            if action < 0.2:
                n += 1
                cell.add(_block(50, n), 50, 1e18)
            elif action < 0.6 and cell.free >= 10:
                cell.free -= 10
                cell.held += 10
                running.append(10)
            elif action < 0.9 and running:
                used = rng.randrange(0, 13)
                cell.give(running.pop(), used)
                used_in_all += used
            else:
                told += sum(used for _, used in cell.ripe(keeps_free=rng.random() < 0.5))
            assert cell.held == sum(running)
            assert cell.free + cell.held + cell.unpushed == sum(amount for _, amount in cell.blocks)
            assert told + cell.unpushed == used_in_all
            if cell.held:
                assert cell.blocks, "running calls are covered by a block"
        while running:
            cell.give(running.pop(), 4)
            used_in_all += 4
        told += sum(used for _, used in cell.ripe(keeps_free=False))
        assert (told, cell.blocks) == (used_in_all, [])


def test_an_account_without_demand_leases_nothing() -> None:
    account = Account(REQUESTS)
    assert account.next_block(1, time.monotonic()) == 0


# --- in front of a store ---------------------------------------------------------------------------


async def test_a_busy_meter_needs_no_store_and_is_settled_in_blocks() -> None:
    store = FailingCounters(MemoryCounters())
    leased = Leased(store)
    claims = (Claim(SLOTS, 1), Claim(MONEY, 1000), Claim(TOKENS, 10))
    granted = await warm(leased, *claims)
    before = store.operations
    more = [leased.reserve_now(f"n-{i}", claims) for i in range(5)]
    assert all(isinstance(r, Reservation) for r in more)
    assert store.operations == before < 150
    for r in [*granted, *more]:
        assert isinstance(r, Reservation)
        await leased.settle(r, {SLOTS.key: 1, MONEY.key: 700, TOKENS.key: 4})
    await leased.close()
    readings = await store.inner.read((SLOTS, MONEY, TOKENS))
    assert [r.used for r in readings] == [0, 205 * 700, 205 * 4]


async def test_two_processes_on_one_store_share_a_limit() -> None:
    """Together never more than L, and all but the outstanding blocks of it."""
    for unit, window in (
        (Unit.CONCURRENT, Window.NOW),
        (Unit.REQUESTS, Window.DAY),
        (Unit.TOKENS, Window.MONTH),
    ):
        limit = meter(unit, 2000, window)
        store = MemoryCounters()
        both = [Leased(store), Leased(store)]
        granted = 0

        async def caller(leased: Leased, n: int, limit: Meter = limit) -> None:
            nonlocal granted
            for i in range(60):
                if await call(leased, f"{id(leased)}-{n}-{i}", Claim(limit, 1)):
                    granted += 1
                    assert granted <= 2000
                await asyncio.sleep(0)

        await asyncio.gather(*[caller(leased, n) for leased in both for n in range(30)])
        # At most a block of a hundredth each is unspent.
        assert 2000 - 2 * 20 <= granted <= 2000, unit
        for leased in both:
            await leased.close()


class Distant(MemoryCounters):
    """As far away as a network: others run between the question, the deed and the answer."""

    async def reserve(self, ticket: str, claims: Sequence[Claim]) -> Reservation | Refusal:
        await asyncio.sleep(0)
        answer = await super().reserve(ticket, claims)
        for _ in range(20):
            await asyncio.sleep(0)
        return answer


@pytest.mark.parametrize(
    "limit", [meter(Unit.CONCURRENT, 1000, Window.NOW), meter(Unit.REQUESTS, 1000, Window.DAY)]
)
async def test_one_process_alone_admits_exactly_the_limit(limit: Meter) -> None:
    leased = Leased(Distant())
    asked = []
    # Not one more is asked for: what a block brings must serve calls that were asked before it came.
    for i in range(1000):
        asked.append(asyncio.create_task(call(leased, f"{i}", Claim(limit, 1))))
        await asyncio.sleep(0)
    assert sum(answer is not None for answer in await asyncio.gather(*asked)) == 1000
    assert await call(leased, "one-more", Claim(limit, 1)) is None


class Hands:
    """Time that only the test moves on, for the store and for the processes in front of it."""

    def __init__(self) -> None:
        self.now_ms = 5_000_000_000

    def monotonic(self) -> float:
        return self.now_ms / 1000

    time = monotonic

    def clock(self) -> Instant:
        return Instant(self.now_ms, self.now_ms + 1_700_000_000_345)


@pytest.mark.parametrize("seed", range(6))
async def test_a_sliding_minute_is_never_exceeded_by_blocks_that_are_spent_late(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three minutes of more than the limit allows, from two processes, at random moments."""
    hands, rng = Hands(), random.Random(seed)
    monkeypatch.setattr("inferhub.pipeline.limiter.leased.time", hands)
    limit = meter(Unit.REQUESTS, 1000)
    store = FailingCounters(MemoryCounters(hands.clock))
    both = [Leased(store), Leased(store)]
    spent: Counter[int] = Counter()
    n = 0
    end_ms = hands.now_ms + 180_000
    while hands.now_ms < end_ms:
        hands.now_ms += rng.choice((1, 5, 20, 100, 333))
        leased = rng.choice(both)
        for _ in range(rng.randrange(8)):
            n += 1
            reservation = await call(leased, f"c-{n}", Claim(limit, 1))
            if reservation is not None:
                spent[hands.now_ms] += 1
                await leased.settle(reservation, {limit.key: 1})
            await asyncio.sleep(0)
        if rng.random() < 0.3:
            await leased.tidy()
    assert store.operations < n, "blocks were used"
    moments = sorted(spent)
    for first in moments:
        assert sum(spent[at] for at in moments if first <= at < first + 60_000) <= 1000
    # Two blocks of a hundredth may be out at the end of each minute, and a minute is counted as 61 s at most.
    assert spent.total() >= 2 * (1000 - 2 * 10)


async def test_exact_meters_of_a_call_are_asked_together_and_refuse_the_whole_call() -> None:
    store = FailingCounters(MemoryCounters())
    leased = Leased(store)
    few = meter(Unit.REQUESTS, 3, mode="exact")
    await warm(leased, Claim(SLOTS, 1))
    before = store.operations
    granted = [await call(leased, f"e-{i}", Claim(SLOTS, 1), Claim(few, 1)) for i in range(5)]
    assert [r is not None for r in granted] == [True, True, True, False, False]
    # The last one was refused from memory.
    assert store.operations - before == 4
    cell = leased._accounts[SLOTS.key].cell
    assert cell is not None
    held = cell.held
    for r in granted:
        if r is not None:
            await leased.settle(r, {few.key: 1})
    assert cell.held <= held


async def test_a_flood_of_refused_calls_does_not_reach_the_store() -> None:
    store = FailingCounters(MemoryCounters())
    leased = Leased(store)
    one = meter(Unit.REQUESTS, 1, mode="exact")
    assert await call(leased, "a", Claim(one, 1))
    answers = [await leased.reserve(f"f-{i}", (Claim(one, 1),)) for i in range(500)]
    assert all(isinstance(a, Refusal) and a.retry_after_s and 0 < a.retry_after_s <= 61 for a in answers)
    assert store.operations < 50


async def test_a_slot_that_is_given_back_is_free_at_once() -> None:
    leased = Leased(MemoryCounters())
    one = meter(Unit.CONCURRENT, 1, Window.NOW, "exact")
    first = await call(leased, "a", Claim(one, 1))
    assert first is not None
    assert await call(leased, "b", Claim(one, 1)) is None
    await leased.settle(first, {one.key: 1})
    assert await call(leased, "c", Claim(one, 1)) is not None


async def test_a_remembered_refusal_does_not_refuse_a_smaller_claim() -> None:
    leased = Leased(MemoryCounters())
    tokens = meter(Unit.TOKENS, 100, mode="exact")
    assert await call(leased, "a", Claim(tokens, 60))
    assert await call(leased, "b", Claim(tokens, 50)) is None
    assert await call(leased, "c", Claim(tokens, 40)) is not None


async def test_what_nobody_uses_goes_back_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferhub.pipeline.limiter.leased.IDLE_S", 0.0)
    store = MemoryCounters()
    leased = Leased(store)
    claims = (Claim(SLOTS, 1), Claim(MONEY, 1000))
    granted = await warm(leased, *claims)
    assert (await store.read((SLOTS,)))[0].used > 0
    for r in granted:
        await leased.settle(r, {MONEY.key: 1000})
    service = asyncio.create_task(leased.run())

    async def is_all_back() -> bool:
        return [r.used for r in await store.read((SLOTS, MONEY))] == [0, 200_000]

    async with asyncio.timeout(30):
        while not await is_all_back():
            await asyncio.sleep(0.02)
    service.cancel()
    await asyncio.gather(service, return_exceptions=True)


async def test_a_store_that_fails_keeps_what_it_is_owed_in_the_queue() -> None:
    store = FailingCounters(MemoryCounters())
    leased = Leased(store)
    granted = await warm(leased, Claim(MONEY, 1000))
    for r in granted:
        await leased.settle(r, {MONEY.key: 900})
    store.break_down()
    service = asyncio.create_task(leased.run())
    await until(lambda: not leased._accounts[MONEY.key].closed)
    store.mend()
    service.cancel()
    await asyncio.gather(service, return_exceptions=True)
    await leased.close()
    assert (await store.inner.read((MONEY,)))[0].used == 200 * 900


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_whichever_operation_fails_no_slot_leaks(fault: str) -> None:
    for n in range(1, 25):
        store = FailingCounters(MemoryCounters(), n=n, fault=fault)  # type: ignore[arg-type]
        leased = Leased(store)
        granted = []
        for i in range(40):
            try:
                r = await call(leased, f"{n}-{i}", Claim(SLOTS, 1), Claim(MONEY, 1000))
            except Exception:  # noqa: S112 - the injected one
                continue
            assert r is not None
            granted.append(r)
            await asyncio.sleep(0)
        cells = [a.cell.held for a in leased._accounts.values() if a.cell is not None]
        for r in granted:
            for _ in range(2):
                try:
                    await leased.settle(r, {MONEY.key: 10})
                except Exception:  # noqa: S112 - the injected one
                    continue
        assert all(held >= 0 for held in cells)
        assert not leased._open
        assert all(a.cell is None or a.cell.held == 0 for a in leased._accounts.values())
        await leased.close()


async def test_blocks_are_renewed_with_the_calls() -> None:
    store = FailingCounters(MemoryCounters())
    leased = Leased(store)
    await warm(leased, Claim(SLOTS, 1), calls=100)
    renewed: list[str] = []

    async def note(reservations: list[Reservation]) -> None:
        renewed.extend(r.id for r in reservations)

    store.renew = note  # type: ignore[method-assign,assignment]
    await leased.renew(())
    assert renewed
    assert all(name.startswith("blk_") for name in renewed)


async def test_a_changed_limit_is_used_at_once() -> None:
    leased = Leased(MemoryCounters())
    await warm(leased, Claim(SLOTS, 1), calls=100)
    less = Meter(SLOTS.key, SLOTS.unit, SLOTS.window, 50, "lease")
    assert await call(leased, "x", Claim(less, 1)) is None
