"""Reservations: exact under concurrency, settled whatever happens to the caller, refused with what is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from inferhub.core.errors import LimitReached, QuotaExceeded, RateLimited, StoreFailed
from inferhub.core.quota import NANO_USD, Meter, Quota, Reservation, Unit, Window
from inferhub.core.tenancy import Principal, Role
from inferhub.core.usage import Usage
from inferhub.pipeline.limiter import Limiter, QuotaBook
from inferhub.pipeline.limiter.book import meter_of
from inferhub.stores.counters.memory import MemoryCounters
from inferhub.testing.failing import FailingCounters, Fault

CALLER = Principal("ih_caller", Role.FREE, "ten_a", "prj_a")
NOTHING = Usage(source="unknown")


def quota(
    unit: Unit, limit: int, window: Window = Window.MINUTE, level: str = "key", subject: str = "ih_caller"
) -> Quota:
    return Quota("quo_1", "ten_a", level, subject, unit, window, limit)  # type: ignore[arg-type]


CALLS_AT_ONCE = quota(Unit.CONCURRENT, 4, Window.NOW)
BUDGET = quota(Unit.USD, NANO_USD // 10, Window.DAY)


def limiter_of(counters: MemoryCounters | FailingCounters, *quotas: Quota) -> Limiter:
    book = QuotaBook(quotas)
    return Limiter(counters, lambda: book)


async def used(counters: MemoryCounters, *quotas: Quota) -> list[int]:
    return [r.used for r in await counters.read(QuotaBook(quotas).meters_for(CALLER))]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def all_settled(limiter: Limiter) -> None:
    await until(lambda: limiter.unsettled == 0)


async def attempts(limiter: Limiter, n: int, tokens: int = 10, cost: int = 0) -> list[Reservation]:
    """`n` calls at once; those that were let in."""
    asked = [limiter.reserve(CALLER, Usage(tokens), cost, "chat") for _ in range(n)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(a, Reservation | LimitReached) for a in answers)
    return [a for a in answers if isinstance(a, Reservation)]


# --- the book --------------------------------------------------------------------------------------


def test_a_callers_meters_are_those_of_its_tenant_project_and_key() -> None:
    book = QuotaBook(
        [
            quota(Unit.REQUESTS, 5),
            quota(Unit.TOKENS, 100, Window.DAY, "project", "prj_a"),
            quota(Unit.USD, 7, Window.MONTH, "tenant", "ten_a"),
            quota(Unit.REQUESTS, 9, Window.MINUTE, "key", "ih_other"),
            Quota("quo_2", "ten_b", "tenant", "ten_b", Unit.TOKENS, Window.DAY, 1),
        ]
    )
    assert [meter.key for meter in book.meters_for(CALLER)] == [
        "tenant:ten_a:usd:month",
        "project:prj_a:tokens:day",
        "key:ih_caller:requests:minute",
    ]
    assert book.meters_for(CALLER) is book.meters_for(CALLER)
    assert book.meters_for(Principal("ih_x", Role.FREE, "ten_c", "prj_c")) == ()


def test_a_quota_of_one_tenant_never_binds_a_key_of_another() -> None:
    book = QuotaBook([quota(Unit.REQUESTS, 5)])
    assert book.meters_for(Principal("ih_caller", Role.FREE, "ten_b", "prj_a")) == ()


def test_of_two_quotas_of_one_kind_the_smaller_binds() -> None:
    book = QuotaBook([quota(Unit.REQUESTS, 9), quota(Unit.REQUESTS, 3), quota(Unit.REQUESTS, 7)])
    assert [meter.limit for meter in book.meters_for(CALLER)] == [3]


def test_a_meter_can_be_read_back_from_its_key() -> None:
    meter = QuotaBook([BUDGET]).meters_for(CALLER)[0]
    again = meter_of(meter.key)
    assert (again.key, again.unit, again.window) == (meter.key, Unit.USD, Window.DAY)


# --- reserving -------------------------------------------------------------------------------------


async def test_without_quotas_nothing_is_reserved() -> None:
    limiter = limiter_of(MemoryCounters())
    assert not limiter.binds(CALLER)
    assert await limiter.reserve(CALLER, Usage(10), 5, "chat") is None


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (quota(Unit.REQUESTS, 7), 7),
        (quota(Unit.CONCURRENT, 7, Window.NOW), 7),
        (quota(Unit.TOKENS, 75), 7),
        (quota(Unit.TOKENS, 70, Window.MONTH), 7),
        (quota(Unit.USD, 77, Window.DAY), 7),
    ],
)
async def test_of_many_calls_at_once_exactly_the_limit_is_let_in(limit: Quota, expected: int) -> None:
    limiter = limiter_of(MemoryCounters(), limit)
    assert len(await attempts(limiter, 100, tokens=10, cost=11)) == expected


async def test_a_refused_call_reserves_nothing_of_the_other_limits() -> None:
    counters = MemoryCounters()
    quotas = (quota(Unit.TOKENS, 1000), quota(Unit.REQUESTS, 3))
    await attempts(limiter_of(counters, *quotas), 50, tokens=10)
    assert sorted(await used(counters, *quotas)) == [3, 30]


async def test_readings_of_calls_at_once_are_all_different_and_end_at_zero() -> None:
    granted = await attempts(limiter_of(MemoryCounters(), quota(Unit.REQUESTS, 20)), 60)
    assert sorted(r.readings[0].remaining for r in granted) == list(range(20))


async def test_a_refusal_for_now_says_when_to_come_back() -> None:
    limiter = limiter_of(MemoryCounters(), quota(Unit.REQUESTS, 1, level="project", subject="prj_a"))
    await limiter.reserve(CALLER, Usage(1), 0, "chat")
    with pytest.raises(RateLimited, match="requests per minute of this project: limit 1, requested 1") as e:
        await limiter.reserve(CALLER, Usage(1), 0, "chat")
    assert e.value.retry_after_s is not None
    assert 0 < e.value.retry_after_s <= 61
    assert e.value.readings[0].remaining == 0
    assert e.value.code == "rate_limit_exceeded"


async def test_a_request_larger_than_its_limit_is_told_not_to_come_back() -> None:
    limiter = limiter_of(MemoryCounters(), quota(Unit.TOKENS, 100))
    with pytest.raises(QuotaExceeded, match="Request too large for tokens per minute of this key: limit 100, "
                       "requested 101") as e:  # fmt: skip
        await limiter.reserve(CALLER, Usage(101), 0, "chat")
    assert (e.value.code, e.value.retry_after_s, e.value.param) == ("insufficient_quota", None, None)


async def test_a_used_up_budget_is_insufficient_quota_in_dollars() -> None:
    limiter = limiter_of(MemoryCounters(), BUDGET)
    await limiter.settle((await attempts(limiter, 1, cost=90_000_000))[0], NOTHING, 95_000_000)
    with pytest.raises(QuotaExceeded, match=r"budget per day of this key .* limit \$0.10, requested \$0.05, left "
                       r"\$0.005") as e:  # fmt: skip
        await limiter.reserve(CALLER, Usage(1), 50_000_000, "chat")
    assert e.value.retry_after_s is None


async def test_a_limit_of_another_unit_does_not_bind() -> None:
    limiter = limiter_of(MemoryCounters(), quota(Unit.IMAGES, 1))
    assert await limiter.reserve(CALLER, Usage(10), 0, "chat") is None
    assert await limiter.reserve(CALLER, Usage(images=1), 0, "image") is not None
    with pytest.raises(RateLimited):
        await limiter.reserve(CALLER, Usage(images=1), 0, "image")


async def test_a_hundred_parallel_calls_overspend_a_budget_by_less_than_one() -> None:
    """Each turns out dearer than it was estimated, and each is settled before the next ones ask."""
    counters = MemoryCounters()
    limiter = limiter_of(counters, BUDGET)
    estimate, real = 3_000_000, 3_100_000

    async def caller() -> None:
        for _ in range(5):
            try:
                reservation = await limiter.reserve(CALLER, Usage(1), estimate, "chat")
            except QuotaExceeded:
                return
            assert reservation is not None
            await asyncio.sleep(0)
            await limiter.settle(reservation, Usage(1), real)

    await asyncio.gather(*[caller() for _ in range(100)])
    (spent,) = await used(counters, BUDGET)
    # What calls use beyond their own estimate is theirs; no call was let in without room for it.
    admitted = spent // real
    assert (admitted - 1) * estimate < BUDGET.limit
    assert spent <= BUDGET.limit + admitted * (real - estimate)
    assert spent > BUDGET.limit - estimate


# --- settling --------------------------------------------------------------------------------------


async def test_settling_replaces_the_estimate_once() -> None:
    counters = MemoryCounters()
    quotas = (quota(Unit.TOKENS, 1000), CALLS_AT_ONCE, BUDGET)
    limiter = limiter_of(counters, *quotas)
    (reservation,) = await attempts(limiter, 1, tokens=500, cost=1000)
    assert await used(counters, *quotas) == [500, 1, 1000]
    readings = await limiter.settle(reservation, Usage(30, 12), 77)
    assert [r.used for r in readings] == [77]
    await limiter.settle(reservation, Usage(900), 9999)
    assert await used(counters, *quotas) == [42, 0, 77]
    assert (limiter.open, limiter.unsettled) == (0, 0)


@pytest.mark.parametrize("fault", ["hang", "late"])
async def test_cancelled_while_it_reserves_leaks_nothing(fault: Fault) -> None:
    store = FailingCounters(MemoryCounters())
    limiter = limiter_of(store, CALLS_AT_ONCE)
    store.break_down(fault)
    asking = asyncio.create_task(limiter.reserve(CALLER, Usage(1), 0, "chat"))
    await until(lambda: store.operations == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    store.mend()
    await until(lambda: limiter.unsettled == 0)
    assert await used(store.inner, CALLS_AT_ONCE) == [0]  # type: ignore[arg-type]


async def test_cancelled_while_it_settles_loses_nothing() -> None:
    store = FailingCounters(MemoryCounters())
    limiter = limiter_of(store, CALLS_AT_ONCE, BUDGET)
    (reservation,) = await attempts(limiter, 1, cost=1000)
    store.break_down("hang")
    settling = asyncio.create_task(limiter.settle(reservation, Usage(1), 555))
    await until(lambda: store.operations == 2)
    settling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await settling
    store.mend()
    await until(lambda: limiter.unsettled == 0)
    assert await used(store.inner, CALLS_AT_ONCE, BUDGET) == [0, 555]  # type: ignore[arg-type]


async def test_a_failing_store_gets_the_settlement_when_it_is_back() -> None:
    store = FailingCounters(MemoryCounters())
    limiter = limiter_of(store, CALLS_AT_ONCE, BUDGET)
    (reservation,) = await attempts(limiter, 1, cost=1000)
    store.break_down()
    assert await limiter.settle(reservation, Usage(1), 555) == ()
    assert limiter.unsettled == 1
    store.mend()
    await until(lambda: limiter.unsettled == 0)
    assert await used(store.inner, CALLS_AT_ONCE, BUDGET) == [0, 555]  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", ["before", "after"])
async def test_whichever_operation_fails_nothing_leaks_and_nothing_is_let_in_beyond(fault: Fault) -> None:
    for n in range(1, 13):
        inner = MemoryCounters()
        store = FailingCounters(inner, n=n, fault=fault)
        limiter = limiter_of(store, CALLS_AT_ONCE, BUDGET)
        settled = 0
        for _ in range(3):
            running = await _brave(limiter, 8)
            assert len(running) <= CALLS_AT_ONCE.limit
            await asyncio.gather(*[limiter.settle(r, Usage(1), 500) for r in running])
            settled += len(running)
            await all_settled(limiter)
        assert settled >= 2 * CALLS_AT_ONCE.limit
        assert await used(inner, CALLS_AT_ONCE, BUDGET) == [0, settled * 500], n


async def _brave(limiter: Limiter, n: int) -> list[Reservation]:
    asked = [limiter.reserve(CALLER, Usage(1), 1000, "chat") for _ in range(n)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(a, Reservation | LimitReached | StoreFailed) for a in answers)
    return [a for a in answers if isinstance(a, Reservation)]


async def test_closing_settles_what_is_open_with_what_it_reserved() -> None:
    counters = MemoryCounters()
    limiter = limiter_of(counters, CALLS_AT_ONCE, BUDGET)
    await attempts(limiter, 2, cost=1000)
    await limiter.close()
    assert await used(counters, CALLS_AT_ONCE, BUDGET) == [0, 2000]


async def test_closing_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferhub.pipeline.limiter.limiter.CLOSE_WITHIN_S", 0.05)
    store = FailingCounters(MemoryCounters())
    limiter = limiter_of(store, CALLS_AT_ONCE)
    await attempts(limiter, 2)
    store.break_down("hang")
    async with asyncio.timeout(30):
        await limiter.close()
    assert limiter.unsettled == 0


async def test_only_budgets_are_charged_for_a_call_that_was_cut_off_and_only_once() -> None:
    counters = MemoryCounters()
    quotas = (quota(Unit.TOKENS, 1000), BUDGET)
    limiter = limiter_of(counters, *quotas)
    keys = [meter.key for meter in QuotaBook(quotas).meters_for(CALLER)]
    for _ in range(2):
        await limiter.charge("call_1", keys, 4000)
    assert await used(counters, *quotas) == [0, 4000]


async def test_renewing_covers_what_is_held_and_survives_a_failing_store() -> None:
    store = FailingCounters(MemoryCounters())
    renewed: list[str] = []
    limiter = limiter_of(store, CALLS_AT_ONCE, quota(Unit.REQUESTS, 50))
    granted = await attempts(limiter, 2)

    async def note(reservations: list[Reservation]) -> None:
        renewed.extend(r.id for r in reservations)

    store.renew = note  # type: ignore[method-assign,assignment]
    await limiter.renew()
    assert sorted(renewed) == sorted(r.id for r in granted)
    del store.renew  # type: ignore[method-assign]
    store.break_down()
    await limiter.renew()
    assert limiter.open == 2


def test_what_a_caller_may_be_held_against_has_a_limit_of_its_own() -> None:
    assert Meter("key:a:requests:minute", Unit.REQUESTS, Window.MINUTE, 0).limit == 0
