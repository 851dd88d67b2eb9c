"""The counters' arithmetic: clocks that jump, calendars, a machine that starts anew, what is forgotten."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from inferhub.core.quota import Claim, Meter, Refusal, Reservation, Unit, Window
from inferhub.stores.counters import memory
from inferhub.stores.counters.base import LEASE_S
from inferhub.stores.counters.memory import REMEMBER_S, MemoryCounters
from inferhub.stores.counters.window import Instant, period_end_ms, system_clock

HOUR_S = 3600.0
RPM = Meter("rpm", Unit.REQUESTS, Window.MINUTE, 3)
TPD = Meter("tpd", Unit.TOKENS, Window.DAY, 100)
CONCURRENT = Meter("now", Unit.CONCURRENT, Window.NOW, 3)
BUDGET = Meter("usd", Unit.USD, Window.MONTH, 100)
EVERY = (RPM, TPD, CONCURRENT, BUDGET)


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


class Clocks:
    """The wall's may be set; the other one only goes on."""

    def __init__(self, wall: str = "2026-01-15T12:00:00") -> None:
        self.wall_ms = ms(wall)
        self.steady_ms = 1_000_000

    def __call__(self) -> Instant:
        return Instant(self.steady_ms, self.wall_ms)

    def advance(self, seconds: float) -> None:
        self.wall_ms += int(seconds * 1000)
        self.steady_ms += int(seconds * 1000)

    def set_wall(self, seconds: float) -> None:
        self.wall_ms += int(seconds * 1000)


async def take(counters: MemoryCounters, name: str, *claims: tuple[Meter, int]) -> Reservation | Refusal:
    return await counters.reserve(name, [Claim(*claim) for claim in claims])


async def used(counters: MemoryCounters, *meters: Meter) -> list[int]:
    return [reading.used for reading in await counters.read(meters)]


@pytest.mark.parametrize("window", [Window.DAY, Window.MONTH])
def test_periods_are_the_calendars(window: Window) -> None:
    at = datetime(1999, 12, 30, 23, 59, 59, 999000, tzinfo=UTC)
    while at.year < 2032:
        midnight = datetime(at.year, at.month, at.day, tzinfo=UTC)
        if window is Window.DAY:
            end = midnight + timedelta(days=1)
        else:
            end = (midnight.replace(day=28) + timedelta(days=4)).replace(day=1)
        assert period_end_ms(window, int(at.timestamp() * 1000)) == end.timestamp() * 1000, at
        at += timedelta(hours=17, milliseconds=1)
    assert period_end_ms(window, ms("2026-12-31T23:59:59")) == ms("2027-01-01T00:00:00")
    assert period_end_ms(window, ms("2026-12-31T00:00:00")) == ms("2027-01-01T00:00:00")


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S, 20 * HOUR_S, -20 * HOUR_S, 400 * 24 * HOUR_S])
async def test_a_clock_that_is_set_neither_frees_nor_blocks_minutes_and_leases(jump_s: float) -> None:
    clocks = Clocks()
    counters = MemoryCounters(clocks)
    assert isinstance(await take(counters, "a", (RPM, 3), (CONCURRENT, 3)), Reservation)
    clocks.set_wall(jump_s)
    assert await used(counters, RPM, CONCURRENT) == [3, 3]
    clocks.advance(LEASE_S)
    assert await used(counters, RPM, CONCURRENT) == [3, 0]
    clocks.advance(61 - LEASE_S)
    assert await used(counters, RPM) == [0]


async def test_a_clock_that_was_set_back_over_midnight_refills_nothing() -> None:
    clocks = Clocks("2026-02-01T00:10:00")
    counters = MemoryCounters(clocks)
    granted = await take(counters, "a", (TPD, 100), (BUDGET, 100))
    assert isinstance(granted, Reservation)
    await counters.settle(granted, {})
    clocks.set_wall(-HOUR_S)
    assert await used(counters, TPD, BUDGET) == [100, 100]
    clocks.advance(HOUR_S)
    assert await used(counters, TPD, BUDGET) == [100, 100]


async def test_a_clock_that_was_years_ahead_does_not_block_until_then() -> None:
    clocks = Clocks("2099-01-01T00:00:00")
    counters = MemoryCounters(clocks)
    granted = await take(counters, "a", (TPD, 100), (BUDGET, 100))
    assert isinstance(granted, Reservation)
    await counters.settle(granted, {})
    clocks.wall_ms = ms("2026-01-31T12:00:00")
    # Kept, or whoever sets a clock right would refill the budgets; but no longer than this period.
    assert await used(counters, TPD, BUDGET) == [100, 100]
    clocks.advance(12 * HOUR_S)
    assert await used(counters, TPD, BUDGET) == [0, 0]


async def test_after_a_reboot_what_was_used_counts_as_of_now() -> None:
    clocks = Clocks()
    counters = MemoryCounters(clocks)
    await take(counters, "a", (RPM, 1))
    clocks.advance(5)
    await take(counters, "b", (RPM, 1))
    clocks.steady_ms = 30_000  # long before
    assert await used(counters, RPM) == [2]
    assert isinstance(await take(counters, "c", (RPM, 1)), Reservation)
    assert isinstance(await take(counters, "d", (RPM, 1)), Refusal)
    clocks.advance(61)
    assert await used(counters, RPM) == [0]


async def test_memory_is_bounded_by_what_is_in_use() -> None:
    clocks = Clocks()
    counters = MemoryCounters(clocks)
    rows = counters._rows
    for i in range(2_000):
        meters = [Meter(f"{i}:{meter.key}", meter.unit, meter.window, 100) for meter in EVERY]
        granted = await take(counters, f"call_{i}", *((meter, 1) for meter in meters))
        assert isinstance(granted, Reservation)
        if i % 2:
            await counters.settle(granted, {})
        await counters.mark_once(f"mark_{i}", 60)
        clocks.advance(0.01)
    assert len(rows._tickets) == 2_000
    clocks.advance(40 * 24 * HOUR_S)  # every period is over
    assert await used(counters, CONCURRENT) == [0]  # leases lapse
    clocks.advance(REMEMBER_S)
    for i in range(4_100):
        await take(counters, "once", (RPM, 1))
        await counters.mark_once(f"late_{i % 10}", 60)
    assert len(rows._gauges) == len(rows._round) == 1
    assert len(rows._tickets) == 1
    assert len(rows._leases) + len(rows._others) <= 1
    assert len(counters._marks) == 10


async def test_a_flood_of_settled_calls_is_forgotten_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "MAX_REMEMBERED", 50)
    clocks = Clocks()
    counters = MemoryCounters(clocks)
    wide = Meter("wide", Unit.CONCURRENT, Window.NOW, 1_000)
    running = [await take(counters, f"running_{i}", (wide, 1)) for i in range(100)]
    for i in range(500):
        granted = await take(counters, f"call_{i}", (wide, 1))
        assert isinstance(granted, Reservation)
        await counters.settle(granted, {})
    assert len(counters._rows._tickets) <= 100 + 51
    assert len(running) == 100
    assert await used(counters, wide) == [100]


def test_the_systems_clocks() -> None:
    first, second = system_clock(), system_clock()
    assert second.steady_ms >= first.steady_ms > 0
    assert abs(first.wall_ms / 1000 - datetime.now(UTC).timestamp()) < 60
