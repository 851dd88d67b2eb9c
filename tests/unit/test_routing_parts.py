"""The small decisions of routing, each by itself: causes, breaker, history, budget, spending, affinity."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferhub.core import errors
from inferhub.core.errors import InferHubError, UpstreamRateLimited
from inferhub.core.traffic import Cause
from inferhub.routing import breaker as breakers
from inferhub.routing.affinity import SLACK_CALLS, by_session
from inferhub.routing.breaker import CLOSED, Breaker, BreakerLimits, State
from inferhub.routing.budget import RetryBudget
from inferhub.routing.causes import MAX_REST_S, Blame, blame_of, cause_of, rest_s
from inferhub.routing.history import MAX_AGE_S, WINDOW_S, History, Sample, Tally, fit, predict_first_token_s
from inferhub.routing.spend import HOUR_S, HourlySpend

LIMITS = BreakerLimits()

MEANING = {
    "RateLimited": (None, Blame.NOTHING),
    "QuotaExceeded": (None, Blame.NOTHING),
    "Invalid": (None, Blame.NOTHING),
    "ContextOverflow": (Cause.CONTEXT_LENGTH, Blame.NOTHING),
    "Unsupported": (None, Blame.NOTHING),
    "NoEndpoint": (Cause.FAILURE, Blame.NOTHING),
    "Overloaded": (Cause.OVERLOAD, Blame.FULL),
    "OutOfMemory": (Cause.OVERLOAD, Blame.FULL),
    "EndpointLost": (Cause.FAILURE, Blame.FAULT),
    "UpstreamFailed": (Cause.FAILURE, Blame.FAULT),
    "UpstreamDenied": (Cause.FAILURE, Blame.FAULT),
    "UpstreamRateLimited": (Cause.RATE_LIMIT, Blame.LIMITED),
    "UpstreamExhausted": (Cause.RATE_LIMIT, Blame.LIMITED),
    "DeadlineExceeded": (None, Blame.NOTHING),
    "EndpointStalled": (Cause.TIMEOUT, Blame.FAULT),
    "BackendRefused": (None, Blame.NOTHING),
    "ContentFiltered": (Cause.CONTENT_FILTER, Blame.NOTHING),
    "Draining": (Cause.FAILURE, Blame.FULL),
    "StoreFailed": (None, Blame.NOTHING),
    "LedgerFull": (None, Blame.NOTHING),
    "InternalError": (None, Blame.NOTHING),
}


@pytest.mark.parametrize("name", MEANING)
def test_what_errors_mean(name: str) -> None:
    error: InferHubError = getattr(errors, name)("x")
    assert (cause_of(error), blame_of(error)) == MEANING[name]


def test_every_error_of_serving_has_a_meaning() -> None:
    serving = {
        c.__name__
        for c in vars(errors).values()
        if isinstance(c, type) and issubclass(c, errors.ServingError)
    }
    assert serving - {"ServingError"} <= MEANING.keys()


@pytest.mark.parametrize(("asked_s", "rests_s"), [(None, 1.0), (5.0, 5.0), (-1.0, 0.0), (3600.0, MAX_REST_S)])
def test_a_full_endpoint_rests_as_long_as_it_asks_for_within_reason(
    asked_s: float | None, rests_s: float
) -> None:
    assert rest_s(UpstreamRateLimited("x", retry_after_s=asked_s)) == rests_s


# The breaker.


def test_it_opens_on_a_row_of_failures() -> None:
    for row in range(1, 5):
        assert breakers.failed(CLOSED, Tally(0, row, row), LIMITS, 100.0, 0.0) is CLOSED
    opened = breakers.failed(CLOSED, Tally(0, 5, 5), LIMITS, 100.0, 0.0)
    assert (opened.state, opened.until_s) == (State.OPEN, 105.0)


@pytest.mark.parametrize(
    ("successes", "failures", "trips"),
    [(10, 9, False), (10, 10, True), (11, 9, False), (0, 4, False), (100, 99, False)],
)
def test_it_opens_on_a_share_of_enough_calls(successes: int, failures: int, trips: bool) -> None:
    assert breakers.trips(Tally(successes, failures, 1), LIMITS) is trips


def test_zero_turns_it_off() -> None:
    assert not breakers.trips(Tally(0, 1000, 1000), BreakerLimits(failures_in_row=0))


def test_half_open_takes_one_probe_and_closes_after_two() -> None:
    opened = Breaker(State.OPEN, until_s=105.0, openings=1)
    assert not breakers.may_ask(opened, 104.9)
    assert breakers.asked(opened, 104.9) is opened
    probing = breakers.asked(opened, 105.0)
    assert probing.is_probing
    assert not breakers.may_ask(probing, 105.0)
    once = breakers.probe_succeeded(probing, LIMITS)
    assert once.state is State.HALF_OPEN
    assert breakers.may_ask(once, 105.1)
    assert breakers.probe_succeeded(breakers.asked(once, 105.1), LIMITS) is CLOSED
    again = breakers.probe_failed(breakers.asked(once, 105.1), LIMITS, 106.0, 0.0)
    assert (again.state, again.until_s, again.openings) == (State.OPEN, 116.0, 2)
    assert breakers.may_ask(breakers.probe_ended(probing), 105.0)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=100))
def test_it_stays_open_twice_as_long_each_time_but_never_longer_than_the_limit(chances: list[float]) -> None:
    breaker, now_s = CLOSED, 0.0
    breaker = breakers.failed(breaker, Tally(0, 5, 5), LIMITS, now_s, 0.0)
    lasted = []
    for chance in chances:
        now_s = breaker.until_s
        breaker = breakers.probe_failed(breakers.asked(breaker, now_s), LIMITS, now_s, chance)
        lasted.append(breaker.until_s - now_s)
    assert max(lasted) <= LIMITS.max_open_s + 1e-6
    assert all(later >= 0.79 * earlier for earlier, later in pairwise(lasted))
    if len(lasted) > 4:
        assert lasted[-1] >= 0.79 * LIMITS.max_open_s


@given(st.lists(st.floats(0, 1000), max_size=20), st.integers(0, 10), st.floats(0, 1))
def test_of_several_endpoints_never_all_are_ejected(until_s: list[float], well: int, share: float) -> None:
    through = breakers.let_through(until_s, len(until_s) + well, share)
    ejected = [t for i, t in enumerate(until_s) if i not in through]
    if len(until_s) + well > 1:
        assert len(ejected) < len(until_s) + well
        assert len(ejected) <= max(1, share * (len(until_s) + well))
    if through and ejected:
        assert max(until_s[i] for i in through) <= min(ejected)
    if len(until_s) == 1 and well == 0:
        assert not through, "a route's only endpoint rests while it is open"


# The history.


def test_no_history_no_prediction() -> None:
    history = History()
    history.began(1.0, 0, 0.2)
    history.began(2.0, 0, 0.2)
    assert predict_first_token_s(history.snapshot(2.0), 0) is None
    history.began(3.0, 0, 0.2)
    assert predict_first_token_s(history.snapshot(3.0), 0) == pytest.approx(0.2)


@given(
    st.floats(0.01, 2.0),
    st.floats(0.0, 0.5),
    st.lists(st.integers(0, 40), min_size=24, max_size=64),
    st.randoms(use_true_random=False),
)
def test_a_tenth_of_wild_samples_does_not_bend_the_line(
    base_s: float, per_call_s: float, loads: list[int], chance: random.Random
) -> None:
    samples = [Sample(0.0, load, base_s + per_call_s * load) for load in loads]
    wild = chance.sample(range(len(samples)), len(samples) // 10)
    samples = [s._replace(first_token_s=60.0) if i in wild else s for i, s in enumerate(samples)]
    line = fit(samples)
    assert line is not None
    assert line.per_call_s >= 0
    middle = int(median(loads))
    truth = base_s + per_call_s * middle
    assert (
        abs(line.base_s + line.per_call_s * middle - truth)
        <= 0.5 * (per_call_s * (max(loads) - min(loads))) + 1e-6
    )


def test_the_load_is_seen_in_the_line() -> None:
    line = fit([Sample(0.0, load, 0.1 + 0.05 * load) for load in range(12)])
    assert line is not None
    assert line.base_s == pytest.approx(0.1)
    assert line.per_call_s == pytest.approx(0.05)


def test_old_samples_and_old_failures_are_forgotten() -> None:
    history = History()
    for i in range(5):
        history.began(100.0 + i, 0, 9.0)
        history.failed(100.0 + i)
    assert predict_first_token_s(history.snapshot(110.0), 0) == pytest.approx(9.0)
    assert history.tally(110.0).failures == 5
    late = history.snapshot(105.0 + MAX_AGE_S)
    assert late.line is None
    assert (late.tally.failures, late.tally.failures_in_row) == (0, 5)


@given(st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=60))
def test_the_window_counts_what_is_in_it(events: list[tuple[float, bool]]) -> None:
    history, now_s, all_events = History(), 0.0, []
    for gap_s, good in events:
        now_s += gap_s
        (history.succeeded if good else history.failed)(now_s)
        all_events.append((int(now_s), good))
    tally = history.tally(now_s)
    within = [good for second, good in all_events if second > int(now_s) - WINDOW_S]
    assert (tally.successes, tally.failures) == (within.count(True), within.count(False))


# Budget and spending.


def test_retries_are_a_share_of_the_calls_and_a_few_are_always_allowed() -> None:
    budget = RetryBudget(share=0.2, minimum=3)
    budget.retries = 2
    assert budget.has_room
    budget.retries = 3
    assert not budget.has_room
    budget.active = 100
    budget.retries = 19
    assert budget.has_room
    budget.retries = 20
    assert not budget.has_room


@given(st.lists(st.tuples(st.floats(0, 900), st.integers(0, 10**9), st.integers(0, 10**9)), max_size=50))
def test_an_hour_of_spending_never_counts_less_than_was_spent_in_it(
    events: list[tuple[float, int, int]],
) -> None:
    spend, now_s, kept = HourlySpend(), 1e6, []
    for gap_s, expected, used in events:
        now_s += gap_s
        spend.correct(spend.add(expected, now_s), used - expected)
        kept.append((now_s, used))
        last_hour = sum(n for at_s, n in kept if at_s > now_s - HOUR_S)
        last_hour_and_a_minute = sum(n for at_s, n in kept if at_s > now_s - HOUR_S - 120)
        assert last_hour <= spend.total(now_s) <= last_hour_and_a_minute
    assert spend.total(now_s + 2 * HOUR_S) == 0


def test_a_correction_after_the_hour_changes_nothing() -> None:
    spend = HourlySpend()
    minute = spend.add(1000, 0.0)
    assert spend.total(2.0 * HOUR_S) == 0
    spend.correct(minute, -900)
    assert spend.total(2.0 * HOUR_S) == 0


# Affinity.

Place = tuple[str, int, int]


def home(places: list[Place], session: str) -> str:
    ordered = by_session(places, session, name=lambda p: p[0], weight=lambda p: p[1], load=lambda p: p[2])
    assert sorted(ordered) == sorted(places)
    return ordered[0][0]


def test_sessions_follow_the_weights() -> None:
    places: list[Place] = [("a", 6, 0), ("b", 3, 0), ("c", 1, 0), ("none", 0, 0)]
    homes = Counter(home(places, f"session {i}") for i in range(10_000))
    assert homes["none"] == 0
    for name, weight, _ in places[:3]:
        # Five standard deviations of a binomial.
        share = weight / 10
        assert abs(homes[name] - 10_000 * share) < 5 * (10_000 * share * (1 - share)) ** 0.5


@given(st.integers(2, 12), st.integers(0, 11))
def test_only_the_sessions_of_who_leaves_move(count: int, leaver: int) -> None:
    places: list[Place] = [(f"m{i}", 1, 0) for i in range(count)]
    gone = f"m{leaver % count}"
    left = [place for place in places if place[0] != gone]
    moved = 0
    for i in range(300):
        before, after = home(places, f"s{i}"), home(left, f"s{i}")
        assert before in {after, gone}
        moved += before != after
    assert moved <= 300 / count + 5 * (300 / count) ** 0.5


def test_a_session_leaves_who_is_too_busy_and_comes_back() -> None:
    def stays(load: int) -> bool:
        places: list[Place] = [("a", 1, 0), ("b", 1, 0)]
        own = home(places, "s")
        return home([(n, w, load if n == own else 0) for n, w, _ in places], "s") == own

    assert stays(SLACK_CALLS)
    assert not stays(SLACK_CALLS + 1)
