"""What every answer to `Counters` must do: in memory, in an SQLite file, on a real Valkey server."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from inferhub.core.quota import MAX_LIMIT, Claim, Meter, Refusal, Reservation, Unit, Window
from inferhub.stores import open_counters
from inferhub.stores.counters import memory, redis, sqlite
from inferhub.stores.counters.base import BLOCK, HOLD_RETRY_S, LEASE_S, Counters
from inferhub.stores.counters.window import Instant

NOON = int(datetime(2026, 1, 15, 12, tzinfo=UTC).timestamp() * 1000)
PATIENCE_S = 30.0  # how long a store may take on a busy machine; no test waits for it to pass
numbers = count()


class FakeTime:
    def __init__(self) -> None:
        self.wall_ms = NOON
        self.steady_ms = 5_000_000

    def __call__(self) -> Instant:
        return Instant(self.steady_ms, self.wall_ms)

    def advance(self, seconds: float) -> None:
        self.wall_ms += round(seconds * 1000)
        self.steady_ms += round(seconds * 1000)


class Place:
    """One store, opened as often as a test likes."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = url
        self.time = FakeTime()
        self._opened: list[Counters] = []

    async def open(self) -> Counters:
        counters: Counters
        if self.kind == "memory":
            # A second instance would be another store.
            counters = self._opened[0] if self._opened else memory.MemoryCounters(self.time)
        elif self.kind == "sqlite":
            counters = await sqlite.open_counters(self.url, clock=self.time, timeout_s=PATIENCE_S)
        else:
            counters = await redis.open_counters(
                self.url, now_ms=lambda: self.time.wall_ms, timeout_s=PATIENCE_S
            )
        self._opened.append(counters)
        return counters

    async def close(self) -> None:
        for counters in self._opened:
            await counters.close()


@pytest.fixture(params=["memory", "sqlite", "redis"])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    urls: dict[str, Callable[[], str]] = {
        "memory": lambda: "memory://",
        "sqlite": lambda: f"sqlite:///{tmp_path}/counters.db",
        "redis": lambda: str(request.getfixturevalue("valkey").fresh()),
    }
    place = Place(request.param, urls[request.param]())
    yield place
    await place.close()


@pytest.fixture
async def counters(place: Place) -> Counters:
    return await place.open()


def meter(unit: Unit, window: Window, limit: int, subject: str = "key_a") -> Meter:
    return Meter(f"key:{subject}:{unit}:{window}", unit, window, limit)


RPM = meter(Unit.REQUESTS, Window.MINUTE, 10)
TPM = meter(Unit.TOKENS, Window.MINUTE, 1000)
TPD = meter(Unit.TOKENS, Window.DAY, 1000)
CONCURRENT = meter(Unit.CONCURRENT, Window.NOW, 10)
BUDGET = meter(Unit.USD, Window.MONTH, 1000)
DAILY_BUDGET = meter(Unit.USD, Window.DAY, 1000)
EVERY = (RPM, TPM, TPD, CONCURRENT, BUDGET, DAILY_BUDGET)


def ticket() -> str:
    return f"call_{next(numbers):024x}"


async def reserve(counters: Counters, *claims: tuple[Meter, int]) -> Reservation:
    granted = await counters.reserve(ticket(), [Claim(*claim) for claim in claims])
    assert isinstance(granted, Reservation), granted
    return granted


async def refuse(counters: Counters, *claims: tuple[Meter, int]) -> Refusal:
    refused = await counters.reserve(ticket(), [Claim(*claim) for claim in claims])
    assert isinstance(refused, Refusal), refused
    return refused


async def used(counters: Counters, *meters: Meter) -> list[int]:
    return [reading.used for reading in await counters.read(meters)]


# --- never more than the limit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "amount", "admitted"),
    [
        (RPM, 1, 10),
        (CONCURRENT, 1, 10),
        (TPM, 100, 10),
        (TPM, 300, 3),
        (TPD, 7, 142),
        (BUDGET, 100, 10),
        (DAILY_BUDGET, 333, 3),
    ],
)
async def test_parallel_calls_get_exactly_the_limit(
    place: Place, asked: Meter, amount: int, admitted: int
) -> None:
    gateways = [await place.open(), await place.open()]
    answers = await asyncio.gather(
        *(gateways[i % 2].reserve(ticket(), [Claim(asked, amount)]) for i in range(200))
    )
    assert Counter(type(answer) for answer in answers) == {Reservation: admitted, Refusal: 200 - admitted}
    assert await used(gateways[0], asked) == await used(gateways[1], asked) == [admitted * amount]


@pytest.mark.parametrize("place", ["sqlite", "redis"], indirect=True)
async def test_other_processes_share_the_limit(place: Place) -> None:
    script = """
import asyncio, sys
from inferhub.core.quota import Claim, Meter, Reservation, Unit, Window
from inferhub.stores import open_counters

async def main():
    counters = await open_counters(sys.argv[1])
    meters = [Meter("a", Unit.REQUESTS, Window.DAY, 250), Meter("b", Unit.USD, Window.MONTH, 250)]
    claims = [Claim(meter, 1) for meter in meters]
    granted = 0
    for i in range(100):
        answers = await asyncio.gather(*(counters.reserve(f"{sys.argv[2]}-{i}-{j}", claims) for j in range(2)))
        granted += sum(isinstance(answer, Reservation) for answer in answers)
    print(granted)
    await counters.close()

asyncio.run(main())
"""

    def start(name: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", script, place.url, name], stdout=subprocess.PIPE, encoding="ascii"
        )

    others = [start(f"process-{i}") for i in range(3)]
    try:
        said = [await asyncio.to_thread(other.communicate, timeout=90) for other in others]
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert sum(int(out) for out, _ in said) == 250


async def test_all_claims_or_none(counters: Counters) -> None:
    first = await reserve(counters, *((asked, 5) for asked in EVERY))
    assert [reading.used for reading in first.readings] == [5] * 6
    assert [reading.remaining for reading in first.readings] == [5, 995, 995, 5, 995, 995]
    for short in EVERY:
        claims = [
            (asked, 996 if asked.limit == 1000 else 6) if asked is short else (asked, 1) for asked in EVERY
        ]
        refusal = await refuse(counters, *claims)
        assert refusal.claim.meter == short
        assert [reading.used for reading in refusal.readings] == [5] * 6
    assert await used(counters, *EVERY) == [5] * 6


async def test_parallel_sets_of_claims_leave_nothing_half(counters: Counters) -> None:
    """Every set asks for a narrow meter too, so most are refused by that one alone."""
    narrow = meter(Unit.IMAGES, Window.MINUTE, 3)
    answers = await asyncio.gather(
        *(counters.reserve(ticket(), [Claim(TPM, 1), Claim(BUDGET, 1), Claim(narrow, 1)]) for _ in range(100))
    )
    assert sum(isinstance(answer, Reservation) for answer in answers) == 3
    assert await used(counters, TPM, BUDGET, narrow) == [3, 3, 3]


async def test_limits_at_the_edge_of_numbers(counters: Counters) -> None:
    vast = [
        Meter(f"vast:{unit}:{window}", unit, window, MAX_LIMIT)
        for unit, window in (
            (Unit.TOKENS, Window.MINUTE),
            (Unit.PIXELS, Window.DAY),
            (Unit.USD, Window.MONTH),
        )
    ]
    for asked in vast:
        await reserve(counters, (asked, MAX_LIMIT - 1))
        assert (await refuse(counters, (asked, 2))).readings[0].used == MAX_LIMIT - 1
        await reserve(counters, (asked, 1))
        await refuse(counters, (asked, 1))
        assert await used(counters, asked) == [MAX_LIMIT]
        # From a number that a client sent.
        assert (await refuse(counters, (asked, 10**40))).retry_after_s != 0
        await counters.charge(ticket(), [Claim(asked, MAX_LIMIT)])
        assert await used(counters, asked) == [MAX_LIMIT]
    nothing = Meter("nothing", Unit.REQUESTS, Window.MINUTE, 0)
    assert (await refuse(counters, (nothing, 1))).retry_after_s is None
    await reserve(counters, (TPM, -5))
    assert await used(counters, TPM) == [0]


def test_a_limit_that_no_store_can_hold_is_refused() -> None:
    for limit in (-1, MAX_LIMIT + 1):
        with pytest.raises(ValueError, match="the limit of"):
            Meter("x", Unit.TOKENS, Window.DAY, limit)


# --- when to come back ----------------------------------------------------------------------------


async def test_waiting_as_told_admits(place: Place, counters: Counters) -> None:
    place.time.advance(0.7)
    for _ in range(10):
        await reserve(counters, (RPM, 1))
        place.time.advance(3.3)
    refused = await refuse(counters, (RPM, 4))
    assert refused.retry_after_s is not None
    assert 0 < refused.retry_after_s <= 61
    place.time.advance(refused.retry_after_s - 0.001)
    again = await refuse(counters, (RPM, 4))
    assert again.retry_after_s == pytest.approx(0.001)
    place.time.advance(0.001)
    await reserve(counters, (RPM, 4))


async def test_a_day_and_a_month_are_the_calendars(place: Place, counters: Counters) -> None:
    await reserve(counters, (TPD, 1000))
    refused = await refuse(counters, (TPD, 1))
    assert refused.retry_after_s == 12 * 3600
    assert refused.readings[0].reset_s == 12 * 3600
    place.time.advance(12 * 3600 - 0.001)
    await refuse(counters, (TPD, 1))
    place.time.advance(0.001)
    await reserve(counters, (TPD, 1000))

    spent = await reserve(counters, (BUDGET, 1000))
    await counters.settle(spent, {})
    refused = await refuse(counters, (BUDGET, 1))
    february_1 = datetime(2026, 2, 1, tzinfo=UTC).timestamp()
    assert refused.retry_after_s == february_1 - place.time.wall_ms / 1000
    place.time.advance(refused.retry_after_s)
    await reserve(counters, (BUDGET, 1000))


async def test_what_never_fits_has_no_time_to_wait_for(counters: Counters) -> None:
    for asked in EVERY:
        assert (await refuse(counters, (asked, asked.limit + 1))).retry_after_s is None


async def test_where_only_running_calls_are_in_the_way(counters: Counters) -> None:
    for asked in (CONCURRENT, BUDGET):
        running = await reserve(counters, (asked, asked.limit))
        assert (await refuse(counters, (asked, 1))).retry_after_s == HOLD_RETRY_S
        await counters.settle(running, {asked.key: 0})
        await reserve(counters, (asked, 1))


async def test_the_longest_wait_is_told(place: Place, counters: Counters) -> None:
    await reserve(counters, (RPM, 10), (TPD, 1000))
    assert (await refuse(counters, (RPM, 1), (TPD, 1))).claim.meter == TPD
    assert (await refuse(counters, (TPD, 1), (RPM, 1))).claim.meter == TPD
    assert (await refuse(counters, (RPM, 1), (TPM, 1001))).claim.meter == TPM


async def test_readings_say_when_a_meter_is_empty_again(place: Place, counters: Counters) -> None:
    await reserve(counters, (RPM, 1))
    place.time.advance(20)
    await reserve(counters, (RPM, 1))
    (reading,) = await counters.read([RPM])
    assert (reading.used, reading.remaining) == (2, 8)
    place.time.advance(reading.reset_s - 0.001)
    assert await used(counters, RPM) == [1]
    place.time.advance(0.001)
    (reading,) = await counters.read([RPM])
    assert (reading.used, reading.reset_s) == (0, 0)


# --- settling -------------------------------------------------------------------------------------


async def test_settling_replaces_the_estimate(counters: Counters) -> None:
    call = await reserve(counters, *((asked, 10) for asked in EVERY))
    readings = await counters.settle(call, {TPM.key: 4, TPD.key: 25, BUDGET.key: 3})
    # Not named: requests and the daily budget keep what was reserved. Concurrency is given back.
    assert [reading.used for reading in readings] == [10, 4, 25, 0, 3, 10]
    assert await used(counters, *EVERY) == [10, 4, 25, 0, 3, 10]
    # Twice changes nothing, whatever it says.
    again = await counters.settle(call, {TPM.key: 500, BUDGET.key: 500})
    assert [reading.used for reading in again] == [10, 4, 25, 0, 3, 10]


async def test_more_than_reserved_counts_even_above_the_limit(place: Place, counters: Counters) -> None:
    call = await reserve(counters, (TPM, 10), (TPD, 10), (BUDGET, 10))
    place.time.advance(30)
    await counters.settle(call, {TPM.key: 1510, TPD.key: 1500, BUDGET.key: 1500})
    (minute, day, budget) = await counters.read([TPM, TPD, BUDGET])
    assert [minute.used, day.used, budget.used] == [1510, 1500, 1500]
    assert minute.remaining == day.remaining == budget.remaining == 0
    # What was reserved is as old as the reservation, the surplus is as young as the settlement.
    place.time.advance(31)
    assert await used(counters, TPM) == [1500]
    refused = await refuse(counters, (TPM, 1))
    assert refused.retry_after_s == 30
    place.time.advance(30)
    assert await used(counters, TPM) == [0]


async def test_less_than_reserved_frees_the_moment_of_the_reservation(
    place: Place, counters: Counters
) -> None:
    call = await reserve(counters, (TPM, 600))
    place.time.advance(5)
    other = await reserve(counters, (TPM, 400))
    await counters.settle(call, {TPM.key: 100})
    assert await used(counters, TPM) == [500]
    place.time.advance(56)
    assert await used(counters, TPM) == [400]
    place.time.advance(5)
    # Its minute is over: there is nothing to give back, and nothing below zero.
    await counters.settle(other, {TPM.key: 0})
    assert await used(counters, TPM) == [0]


async def test_a_correction_after_midnight_leaves_the_new_day_alone(place: Place, counters: Counters) -> None:
    place.time.advance(12 * 3600 - 10)
    call = await reserve(counters, (TPD, 800))
    place.time.advance(20)
    await reserve(counters, (TPD, 300))
    await counters.settle(call, {TPD.key: 100})
    assert await used(counters, TPD) == [300]


async def test_money_is_spent_when_it_is_settled(place: Place, counters: Counters) -> None:
    place.time.advance(12 * 3600 - 10)
    call = await reserve(counters, (DAILY_BUDGET, 800))
    place.time.advance(20)
    # Midnight does not free what running calls hold.
    assert await used(counters, DAILY_BUDGET) == [800]
    await refuse(counters, (DAILY_BUDGET, 300))
    await counters.settle(call, {DAILY_BUDGET.key: 500})
    assert await used(counters, DAILY_BUDGET) == [500]


async def test_parallel_calls_never_overspend(counters: Counters) -> None:
    """Each reserves what it will cost at most, and settles less: what was spent stays within the budget."""

    async def call(i: int) -> int:
        while isinstance(granted := await counters.reserve(ticket(), [Claim(BUDGET, 50)]), Refusal):
            if granted.retry_after_s != HOLD_RETRY_S:
                return 0  # spent, not only held by others
            await asyncio.sleep(0)
        await counters.settle(granted, {BUDGET.key: 30 + i % 20})
        return 30 + i % 20

    spent = sum(await asyncio.gather(*(call(i) for i in range(100))))
    assert 1000 - 50 < spent <= 1000
    assert await used(counters, BUDGET) == [spent]


# --- once per ticket ------------------------------------------------------------------------------


async def test_a_repeated_reservation_is_the_same(place: Place, counters: Counters) -> None:
    same = ticket()
    claims = [Claim(asked, 10) for asked in EVERY]
    first = await counters.reserve(same, claims)
    assert isinstance(first, Reservation)
    place.time.advance(2)
    second = await (await place.open()).reserve(same, claims)
    assert isinstance(second, Reservation)
    assert (second.id, second.reserved_at_s) == (first.id, first.reserved_at_s)
    assert await used(counters, *EVERY) == [10] * 6
    await asyncio.gather(*(counters.settle(first, {BUDGET.key: 7}) for _ in range(10)))
    third = await counters.reserve(same, claims)
    assert isinstance(third, Reservation)
    assert await used(counters, *EVERY) == [10, 10, 10, 0, 7, 10]


async def test_parallel_repetitions_count_once(counters: Counters) -> None:
    same = ticket()
    answers = await asyncio.gather(*(counters.reserve(same, [Claim(RPM, 10)]) for _ in range(50)))
    assert all(isinstance(answer, Reservation) for answer in answers)
    assert await used(counters, RPM) == [10]


async def test_a_refused_ticket_may_ask_again(place: Place, counters: Counters) -> None:
    await reserve(counters, (RPM, 10))
    same = ticket()
    assert isinstance(await counters.reserve(same, [Claim(RPM, 1)]), Refusal)
    place.time.advance(61)
    assert isinstance(await counters.reserve(same, [Claim(RPM, 1)]), Reservation)


async def test_a_charge_counts_once_and_asks_for_no_room(counters: Counters) -> None:
    same = ticket()
    for _ in range(3):
        await counters.charge(same, [Claim(BUDGET, 1500), Claim(TPD, 20), Claim(CONCURRENT, 1)])
    assert await used(counters, BUDGET, TPD, CONCURRENT) == [1500, 20, 0]


async def test_a_charge_ends_the_hold_of_its_ticket(place: Place, counters: Counters) -> None:
    cut_off = await reserve(counters, (BUDGET, 400), (DAILY_BUDGET, 400))
    await counters.charge(cut_off.id, [Claim(BUDGET, 150), Claim(DAILY_BUDGET, 150)])
    assert await used(counters, BUDGET, DAILY_BUDGET) == [150, 150]
    await counters.settle(cut_off, {BUDGET.key: 400})
    place.time.advance(LEASE_S + 1)
    assert await used(counters, BUDGET, DAILY_BUDGET) == [150, 150]


async def test_a_settled_call_is_not_charged(place: Place, counters: Counters) -> None:
    call = await reserve(counters, (BUDGET, 400))
    await counters.settle(call, {BUDGET.key: 100})
    place.time.advance(2 * LEASE_S - 1)
    await counters.charge(call.id, [Claim(BUDGET, 100)])
    await counters.settle(call, {BUDGET.key: 100})
    assert await used(counters, BUDGET) == [100]


# --- leases ---------------------------------------------------------------------------------------


async def test_an_expired_hold_is_given_back(place: Place, counters: Counters) -> None:
    await reserve(counters, (CONCURRENT, 10), (BUDGET, 1000), (RPM, 1))
    place.time.advance(LEASE_S - 0.001)
    await refuse(counters, (CONCURRENT, 1))
    await refuse(counters, (BUDGET, 1))
    place.time.advance(0.001)
    assert await used(counters, CONCURRENT, BUDGET, RPM) == [0, 0, 1]
    await reserve(counters, (CONCURRENT, 10), (BUDGET, 1000))


async def test_a_call_settled_after_its_lease_is_still_paid_once(place: Place, counters: Counters) -> None:
    late = await reserve(counters, (CONCURRENT, 1), (BUDGET, 300))
    place.time.advance(LEASE_S + 5)
    await reserve(counters, (CONCURRENT, 10))
    for _ in range(2):
        await counters.settle(late, {BUDGET.key: 250})
        assert await used(counters, CONCURRENT, BUDGET) == [10, 250]


async def test_a_call_settled_long_after_everything_is_still_paid(place: Place, counters: Counters) -> None:
    late = await reserve(counters, (BUDGET, 300), (TPD, 300), (TPM, 300), (CONCURRENT, 1))
    place.time.advance(2 * 3600)
    await counters.settle(late, {BUDGET.key: 250, TPD.key: 100, TPM.key: 0})
    assert await used(counters, BUDGET, TPD, TPM, CONCURRENT) == [250, 100, 0, 0]


async def test_a_lapsed_block_of_money_counts_as_spent_once(place: Place, counters: Counters) -> None:
    block = await counters.reserve(f"{BLOCK}dead-1", [Claim(BUDGET, 300), Claim(CONCURRENT, 4)])
    assert isinstance(block, Reservation)
    place.time.advance(LEASE_S + 1)
    assert await used(counters, BUDGET, CONCURRENT) == [300, 0]
    # The process was only away for long: what it says now can neither be added nor taken back.
    await counters.renew([block])
    await counters.settle(block, {BUDGET.key: 100})
    assert await used(counters, BUDGET) == [300]
    await refuse(counters, (BUDGET, 701))
    await reserve(counters, (BUDGET, 700))


async def test_renewing_holds_on(place: Place, counters: Counters) -> None:
    calls = [await reserve(counters, (CONCURRENT, 1), (BUDGET, 100), (RPM, 1)) for _ in range(5)]
    for _ in range(10):
        place.time.advance(LEASE_S - 1)
        await counters.renew(calls)
        assert await used(counters, CONCURRENT, BUDGET) == [5, 500]
    for call in calls:
        await counters.settle(call, {BUDGET.key: 10})
    await counters.renew(calls)  # crossed the settlement on its way
    assert await used(counters, CONCURRENT, BUDGET) == [0, 50]


async def test_an_expired_hold_is_held_again_by_renewing(place: Place, counters: Counters) -> None:
    call = await reserve(counters, (CONCURRENT, 10), (BUDGET, 1000))
    place.time.advance(LEASE_S + 1)
    assert await used(counters, CONCURRENT, BUDGET) == [0, 0]
    await counters.renew([call])
    assert await used(counters, CONCURRENT, BUDGET) == [10, 1000]
    place.time.advance(LEASE_S + 1)
    assert await used(counters, CONCURRENT, BUDGET) == [0, 0]


async def test_many_are_renewed_at_once(place: Place, counters: Counters) -> None:
    wide = meter(Unit.CONCURRENT, Window.NOW, 500)
    calls = [await reserve(counters, (wide, 1)) for _ in range(120)]
    place.time.advance(LEASE_S - 1)
    await counters.renew(calls)
    await counters.renew([])
    place.time.advance(LEASE_S - 1)
    assert await used(counters, wide) == [120]


# --- keeping --------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["sqlite", "redis"], indirect=True)
async def test_a_restart_of_the_gateway_keeps_everything(place: Place) -> None:
    before = await place.open()
    call = await reserve(before, *((asked, 5) for asked in EVERY))
    await before.charge("call_charged", [Claim(BUDGET, 11)])
    await before.close()
    after = await place.open()
    assert await used(after, *EVERY) == [5, 5, 5, 5, 16, 5]
    await after.charge("call_charged", [Claim(BUDGET, 11)])
    await after.settle(call, {BUDGET.key: 1})
    assert await used(after, *EVERY) == [5, 5, 5, 0, 12, 5]


async def test_a_mark_is_made_once(place: Place, counters: Counters) -> None:
    other = await place.open()
    made = await asyncio.gather(*(c.mark_once("80 % of quo_1", 60) for c in (counters, other) * 20))
    assert sum(made) == 1
    assert await other.mark_once("100 % of quo_1", 60)
    if place.kind != "redis":  # its own clock ends marks; no test waits for that
        place.time.advance(59)
        assert not await counters.mark_once("80 % of quo_1", 60)
        place.time.advance(1)
        assert await counters.mark_once("80 % of quo_1", 60)


async def test_it_answers_and_closes_twice(counters: Counters) -> None:
    await counters.ping()
    assert await counters.read([]) == ()
    empty = await reserve(counters)
    assert await counters.settle(empty, {}) == ()
    await counters.close()
    await counters.close()


async def test_a_url_opens_the_store(place: Place) -> None:
    counters = await open_counters(place.url)
    await counters.ping()
    await reserve(counters, *((asked, 1) for asked in EVERY))
    assert await used(counters, *EVERY) == [1] * 6
    await counters.close()


# --- the sliding minute against a naive oracle ----------------------------------------------------

LIMIT = 20
EDGES_MS = [1, 100, 500, 999, 1000, 30_000, 58_900, 59_100, 59_500, 59_999, 60_000, 60_001, 60_999, 61_000]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(1, 20)),
        st.tuples(st.just("settle"), st.integers(0, 25)),
        st.tuples(st.just("advance"), st.sampled_from(EDGES_MS) | st.integers(1, 25_000)),
    ),
    min_size=3,
    max_size=30,
)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(steps=STEPS, start_ms=st.integers(0, 999))
async def test_no_minute_holds_more_than_the_limit(
    place: Place, counters: Counters, steps: list[tuple[str, int]], start_ms: int
) -> None:
    asked = meter(Unit.TOKENS, Window.MINUTE, LIMIT, subject=f"key_{next(numbers)}")
    place.time.advance((1000 - place.time.wall_ms % 1000 + start_ms) / 1000)
    counted: list[list[int]] = []  # [when, how much]
    open_calls: list[tuple[Reservation, list[int]]] = []
    for verb, number in steps:
        now_ms = place.time.wall_ms
        if verb == "advance":
            place.time.advance(number / 1000)
        elif verb == "reserve":
            answer = await counters.reserve(ticket(), [Claim(asked, number)])
            if isinstance(answer, Reservation):
                entry = [now_ms, number]
                counted.append(entry)
                open_calls.append((answer, entry))
                # Every window's sum grows at its end, so looking back from each grant sees them all.
                assert sum(much for when, much in counted if when >= now_ms - 60_000) <= LIMIT
            else:
                # Nor is anything held against a caller for longer than 61 s.
                assert sum(much for when, much in counted if when > now_ms - 61_000) + number > LIMIT
        elif open_calls:
            call, entry = open_calls.pop(0)
            await counters.settle(call, {asked.key: number})
            if number > entry[1]:
                counted.append([now_ms, number - entry[1]])
            else:
                entry[1] = number
