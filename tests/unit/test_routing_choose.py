"""In which order endpoints are asked: tables and distributions over facts that are written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferhub.core.call import Call, Emit
from inferhub.core.models import Capability, ModelSpec, ModelStatus
from inferhub.core.scheduling import Scheduling
from inferhub.core.serving import Endpoint
from inferhub.core.traffic import Cause, Fallback, Route, Spill, Target, alias
from inferhub.routing.choose import Asked, Candidate, order
from inferhub.routing.concurrency import Caller
from inferhub.routing.condition import Facts, Key, Standing, key_of
from inferhub.routing.scheduler import Ask, Pool, ranked, row_of


async def unused(call: Call, emit: Emit) -> None:
    raise AssertionError("routing calls nobody")


def endpoint(model: str, place: str = "", features: Sequence[str] = ("stream",)) -> Endpoint:
    capability = Capability("chat", frozenset(features))
    return Endpoint(
        place or model, ModelStatus(ModelSpec(f"{model}#1", "echo"), (capability,), "cpu"), unused
    )


def places(*names: str, each: int = 1) -> dict[str, tuple[Endpoint, ...]]:
    return {
        name: tuple(endpoint(name, f"{name}-{i}" if each > 1 else name) for i in range(each))
        for name in names
    }


def facts_of(where: Mapping[str, Sequence[Endpoint]], **changed: Facts) -> dict[Key, Facts]:
    return {key_of(e): changed.get(e.id, Facts()) for of in where.values() for e in of}


ASKED = Asked("chat", explore=0.0)


class Busy:
    """An endpoint with so many calls."""

    def __init__(self, calls: int) -> None:
        self.load = self.in_flight = calls
        self.pending_cost = 0.0
        self.sure = 0

    def pending_s(self, now_s: float, s_per_cost: float, s_per_call: float, caller: Caller) -> float | None:
        return self.load * s_per_call


def by_score(facts: Mapping[Key, Facts], random: Random) -> Callable[..., Sequence[Endpoint]]:
    """The scheduler's order, as the router has it made."""

    def rank(_model: str, endpoints: Sequence[Endpoint]) -> Sequence[Endpoint]:
        scheduling = Scheduling()
        rows = [row_of(e, Busy(facts[key_of(e)].load), scheduling) for e in endpoints]
        return [row.endpoint for row in ranked(Pool.build(rows, scheduling), Ask(0.0), random)]

    return rank


def choose(
    route: Route,
    where: Mapping[str, Sequence[Endpoint]] | None = None,
    asked: Asked = ASKED,
    seed: int = 0,
    **changed: Facts,
) -> list[Candidate]:
    where = where if where is not None else places(*route.models)
    facts, random = facts_of(where, **changed), Random(seed)
    return list(order(route, where, facts, replace(asked, rank=by_score(facts, random)), random))


def ids(candidates: Sequence[Candidate]) -> list[str]:
    return [candidate.endpoint.id for candidate in candidates]


def term(candidate: Candidate, name: str) -> float:
    return dict(candidate.why)[name]


OPEN = Facts(Standing.OPEN, 10.0, Cause.FAILURE)
LIMITED = Facts(Standing.LIMITED, 10.0, Cause.RATE_LIMIT)
FULL = Facts(Standing.FULL, 10.0, Cause.OVERLOAD)


def test_weights_are_met_within_the_bounds_of_chance() -> None:
    route = Route("r", (Target("a", 6), Target("b", 3), Target("c", 1), Target("none", 0)))
    where = places(*route.models)
    facts, random, calls = facts_of(where), Random(7), 5_000
    first = Counter(order(route, where, facts, ASKED, random)[0].model for _ in range(calls))
    assert first["none"] == 0
    for target in route.targets[:3]:
        share = target.weight / 10
        assert abs(first[target.model] - calls * share) < 5 * (calls * share * (1 - share)) ** 0.5


def test_who_is_left_shares_by_weight_when_one_is_not_well() -> None:
    route = Route("r", (Target("a", 6), Target("b", 3), Target("c", 1)))
    where, random, calls = places("a", "b", "c"), Random(3), 4_000
    facts = facts_of(where, a=OPEN)
    first = Counter(order(route, where, facts, ASKED, random)[0].model for _ in range(calls))
    assert first["a"] == 0
    assert abs(first["b"] - calls * 0.75) < 5 * (calls * 0.75 * 0.25) ** 0.5


def test_priorities_come_before_weights_and_a_weight_of_zero_comes_last_in_its_own() -> None:
    route = Route("r", (Target("low", 100, 1), Target("zero", 0, 0), Target("one", 1, 0)))
    for seed in range(20):
        assert ids(choose(route, seed=seed)) == ["one", "zero", "low"]


def test_the_least_busy_endpoint_of_a_model_is_asked_first() -> None:
    where = places("m", each=3)
    busy = {"m-0": Facts(load=2), "m-1": Facts(load=0), "m-2": Facts(load=1)}
    assert ids(choose(alias("r", "m"), where, **busy)) == ["m-1", "m-2", "m-0"]


def test_equally_busy_endpoints_take_turns_by_chance() -> None:
    where = places("m", each=4)
    first = Counter(choose(alias("r", "m"), where, seed=seed)[0].endpoint.id for seed in range(400))
    assert min(first.values()) > 60


def test_latency_asks_the_soonest_and_counts_the_unknown_as_the_middle() -> None:
    route = Route("r", (Target("slow"), Target("new"), Target("quick")), prefer="latency")
    known = {"slow": Facts(first_token_s=2.0), "quick": Facts(first_token_s=0.1)}
    assert ids(choose(route, **known)) == ["quick", "slow", "new"] or ids(choose(route, **known)) == [
        "quick",
        "new",
        "slow",
    ]
    assert term(choose(route, **known)[0], "first_token_s") == 0.1
    known["middle"] = Facts(first_token_s=1.0)
    route = replace(route, targets=(*route.targets, Target("middle")))
    assert ids(choose(route, **known)).index("slow") == 3


def test_an_endpoint_whose_calls_wait_is_no_longer_quick() -> None:
    route = Route("r", (Target("a"), Target("b")), prefer="latency")
    stuck = {"a": Facts(first_token_s=0.1, waited_s=3.0), "b": Facts(first_token_s=1.0)}
    assert ids(choose(route, **stuck)) == ["b", "a"]


def test_a_few_calls_explore() -> None:
    route = Route("r", (Target("a"), Target("b")), prefer="latency")
    known = {"a": Facts(first_token_s=0.1), "b": Facts(first_token_s=5.0)}
    asked = replace(ASKED, explore=0.02)
    first = Counter(choose(route, asked=asked, seed=seed, **known)[0].model for seed in range(3000))
    assert 5 <= first["b"] <= 80


def test_cost_asks_the_cheapest() -> None:
    route = Route("r", (Target("dear"), Target("cheap"), Target("none", 0)), prefer="cost")
    prices = {"dear": 10, "cheap": 1, "none": 0}
    asked = replace(ASKED, cost_nano_usd=prices.__getitem__)
    assert ids(choose(route, asked=asked)) == ["cheap", "dear", "none"]


def test_affinity_keeps_a_session_whatever_the_chance_and_lets_go_of_who_is_not_well() -> None:
    route = Route("r", (Target("a"), Target("b"), Target("c")), affinity=True)
    asked = replace(ASKED, session="t/s")
    orders = {tuple(ids(choose(route, asked=asked, seed=seed))) for seed in range(10)}
    assert len(orders) == 1
    first, second, third = orders.pop()
    assert ids(choose(route, asked=asked, **{first: LIMITED})) == [second, third]
    assert len({choose(route, seed=seed)[0].model for seed in range(30)}) > 1, "calls without a session"


def test_what_an_endpoint_cannot_do_it_is_not_asked_for() -> None:
    where = {"a": (endpoint("a"),), "b": (endpoint("b", features=("stream", "tools")),)}
    route = Route("r", (Target("a"), Target("b")))
    needs_tools = replace(ASKED, needs=frozenset({"tools"}))
    assert ids(choose(route, where, needs_tools)) == ["b"]
    needs_vision = replace(ASKED, needs=frozenset({"vision"}))
    assert sorted(ids(choose(route, where, needs_vision))) == ["a", "b"], "one of them says so"
    assert choose(route, where, replace(ASKED, must=frozenset({"prefill"}))) == []


# Fallbacks.

CHAIN = Route(
    "r",
    (Target("a"), Target("b")),
    (
        Fallback("big", frozenset({Cause.CONTEXT_LENGTH})),
        Fallback("other"),
        Fallback("lax", frozenset({Cause.CONTENT_FILTER, Cause.RATE_LIMIT, Cause.CONTEXT_LENGTH})),
    ),
)


def after(cause: Cause, *tried: str, hard: bool = False, **changed: Facts) -> list[str]:
    where = places(*CHAIN.models)
    asked = replace(
        ASKED,
        causes=frozenset({cause}),
        hard=frozenset({cause}) if hard else frozenset(),
        tried=frozenset(key_of(where[name][0]) for name in tried),
        admitted=frozenset(tried),
        spoiled=frozenset(tried) if hard else frozenset(),
    )
    return ids(choose(CHAIN, where, asked, **changed))


def test_fallbacks_wait_for_their_cause() -> None:
    assert sorted(ids(choose(CHAIN))) == ["a", "b"]
    assert after(Cause.FAILURE, "a") == ["b", "other"]
    assert after(Cause.RATE_LIMIT, "a") == ["b", "other", "lax"]
    assert after(Cause.RATE_LIMIT, "a", "b") == ["other", "lax"]
    assert after(Cause.CONTEXT_LENGTH, "a", hard=True) == ["big", "lax"]
    assert after(Cause.CONTENT_FILTER, "a", hard=True) == ["lax"]


def test_targets_that_cannot_be_asked_are_a_cause_too() -> None:
    assert ids(choose(CHAIN, a=LIMITED, b=LIMITED)) == ["other", "lax"]
    where = {**places(*CHAIN.models), "a": (), "b": ()}
    assert ids(choose(CHAIN, where)) == ["other"]


def test_who_is_full_is_asked_when_nobody_well_is_left() -> None:
    assert ids(choose(CHAIN, a=FULL, b=LIMITED)) == ["other", "lax", "a"]
    assert ids(choose(alias("r", "m"), m=FULL)) == ["m"]
    assert choose(alias("r", "m"), m=LIMITED) == []


# Ejection.


def test_the_only_endpoint_of_a_route_stays_ejected_and_of_several_one_is_let_through() -> None:
    assert choose(alias("r", "m"), m=OPEN) == []
    route = Route("r", (Target("a"), Target("b")))
    soon = replace(OPEN, until_s=5.0)
    found = choose(route, a=OPEN, b=soon)
    assert ids(found) == ["b"]
    assert term(found[0], "fail_open") == 1


def test_a_well_fallback_comes_before_an_open_target() -> None:
    route = Route("r", (Target("a"),), (Fallback("f"),))
    assert ids(choose(route, a=OPEN)) == ["f"]
    assert ids(choose(route, a=OPEN, f=replace(OPEN, until_s=5.0))) == ["f"]
    assert ids(choose(route, a=replace(OPEN, until_s=5.0), f=OPEN)) == ["a"]


# Spill-over.

HYBRID = Route("r", (Target("own"), Target("cloud", priority=1)), spill=Spill(1.0, Decimal("0.000001")))
CENT = 1000
"""Billionths of a dollar: all that may be spent."""


@given(
    predicted_s=st.none() | st.floats(0, 4),
    waited_s=st.floats(0, 4),
    spent=st.integers(0, 2 * CENT),
    cost=st.integers(0, CENT),
    seed=st.integers(0, 1000),
)
def test_calls_spill_exactly_when_the_prediction_misses_the_objective_and_the_cap_has_room(
    predicted_s: float | None, waited_s: float, spent: int, cost: int, seed: int
) -> None:
    asked = replace(
        ASKED, cost_nano_usd=lambda model: cost if model == "cloud" else 0, spill_room_nano_usd=CENT - spent
    )
    found = choose(HYBRID, asked=asked, seed=seed, own=Facts(first_token_s=predicted_s, waited_s=waited_s))
    should = max(predicted_s or 0.0, waited_s) > 1.0 and spent + cost <= CENT
    assert ids(found) == (["cloud", "own"] if should else ["own", "cloud"])
    assert [candidate.is_spilled for candidate in found] == [should, False]


def test_it_does_not_spill_to_who_is_later_still() -> None:
    late = {"own": Facts(first_token_s=2.0), "cloud": Facts(first_token_s=3.0)}
    assert ids(choose(HYBRID, **late)) == ["own", "cloud"]
    late["cloud"] = Facts(first_token_s=1.5)
    assert ids(choose(HYBRID, **late)) == ["cloud", "own"]


def test_another_endpoint_of_the_same_priority_comes_before_the_cloud() -> None:
    where = {**places("own", each=2), **places("cloud")}
    late: dict[str, Any] = {
        "own-0": Facts(load=0, first_token_s=2.0),
        "own-1": Facts(load=5, first_token_s=0.5),
    }
    found = choose(HYBRID, where, **late)
    assert ids(found) == ["own-1", "own-0", "cloud"]
    assert not any(candidate.is_spilled for candidate in found)


def test_a_failover_is_not_capped() -> None:
    asked = replace(ASKED, cost_nano_usd=lambda _: 10, spill_room_nano_usd=0)
    [found] = choose(HYBRID, asked=asked, own=OPEN)
    assert found.model == "cloud"
    assert not found.is_spilled


def test_what_costs_too_much_is_no_place_to_spill_to() -> None:
    route = replace(HYBRID, targets=(*HYBRID.targets, Target("cheap", weight=0, priority=1)))
    asked = replace(ASKED, cost_nano_usd=lambda m: 10 if m == "cloud" else 1, spill_room_nano_usd=5)
    found = choose(route, asked=asked, own=Facts(first_token_s=2.0))
    assert ids(found) == ["cheap", "own", "cloud"]
    assert [candidate.is_spilled for candidate in found] == [True, False, False]


# Whatever the facts are.

_FACTS = st.builds(
    lambda standing, until_s, load, first_s, waited_s: Facts(
        standing,
        until_s,
        {Standing.OPEN: Cause.FAILURE, Standing.FULL: Cause.OVERLOAD, Standing.LIMITED: Cause.RATE_LIMIT}.get(
            standing
        ),
        load,
        first_s,
        waited_s,
    ),
    st.sampled_from(Standing),
    st.floats(0, 100),
    st.integers(0, 50),
    st.none() | st.floats(0, 10),
    st.floats(0, 10),
)


@pytest.mark.parametrize("prefer", ["weight", "latency", "cost"])
@given(
    facts=st.lists(_FACTS, min_size=6, max_size=6),
    cause=st.none() | st.sampled_from(Cause),
    session=st.sampled_from(["", "t/s"]),
    spills=st.booleans(),
    tried=st.sets(st.integers(0, 5)),
)
def test_nobody_comes_twice_nor_again_nor_before_its_time(
    *, prefer: Any, facts: list[Facts], cause: Cause | None, session: str, spills: bool, tried: set[int]
) -> None:
    route = Route(
        "r",
        (Target("a", 2), Target("b", 1, 1)),
        (Fallback("f", frozenset(Cause)),),
        prefer=prefer,
        spill=Spill(1.0) if spills else None,
        affinity=True,
    )
    where = places("a", "b", "f", each=2)
    every = [e for of in where.values() for e in of]
    known = {key_of(e): f for e, f in zip(every, facts, strict=True)}
    asked = replace(
        ASKED,
        session=session,
        tried=frozenset(key_of(every[i]) for i in tried),
        causes=frozenset({cause} if cause else ()),
    )
    found = order(route, where, known, asked, Random(1))
    keys = [candidate.key for candidate in found]
    assert len(set(keys)) == len(keys)
    assert not asked.tried.intersection(keys)
    assert all(known[key].standing is not Standing.LIMITED for key in keys)
    standings = [known[key].standing is Standing.WELL for key in keys]
    assert standings == sorted(standings, reverse=True), "who is well comes first"
    if not tried and any(f.standing is Standing.WELL for f in facts):
        assert found
