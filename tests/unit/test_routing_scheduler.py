"""Which endpoint of a model takes a call: a table for each term, bursts, and what holds whatever the fleet is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferhub.core.call import Call, Emit
from inferhub.core.models import Capability, ModelSpec, ModelStatus
from inferhub.core.scheduling import RegionPolicy, Scheduling, Weights
from inferhub.core.serving import Endpoint
from inferhub.routing.affinity import Ring
from inferhub.routing.breaker import BreakerLimits
from inferhub.routing.concurrency import Caller
from inferhub.routing.condition import Condition
from inferhub.routing.filters import gate_s, may_go_there
from inferhub.routing.pickers import sample as sample_of
from inferhub.routing.prefix import MARKS
from inferhub.routing.scheduler import SUSPECT, Ask, Decision, Pool, decide, ranked, row_of
from inferhub.routing.scorers import BY_ENDPOINT, pending, prefix, session
from inferhub.routing.verdict import SCORE

CHAT = (Capability("chat", frozenset({"stream"})),)
STILL = Scheduling(explore=0.0)


async def unused(call: Call, emit: Emit) -> None:
    raise AssertionError("the scheduler calls nobody")


def endpoint(
    id_: str = "w",
    *,
    device: str = "cuda:0",
    wanted: str = "auto",
    loaded: bool = True,
    loading: bool = False,
    s_per_cost: float = 0.0,
    used: float | None = None,
    suspect: bool = False,
    slots: int = 4,
    **labels: str,
) -> Endpoint:
    model = ModelStatus(
        ModelSpec("m#1", "echo", device=wanted, slots=slots),
        CHAT,
        device,
        loaded=loaded,
        loading=loading,
        s_per_cost=s_per_cost,
    )
    return Endpoint(id_, model, unused, suspect, labels, used)


class Fixed:
    """A load that does not move; None: not well."""

    pending_cost = 0.0
    in_flight = sure = 0

    def __init__(self, seconds: float | None, load: int = 0) -> None:
        self.seconds = seconds
        self.load = load

    def pending_s(self, now_s: float, s_per_cost: float, s_per_call: float, caller: Caller) -> float | None:
        return self.seconds


Some = tuple[Endpoint, float | None]


def pool_of(*some: Some, scheduling: Scheduling = STILL, region: str = "") -> Pool:
    rows = [row_of(e, Fixed(seconds), scheduling, region) for e, seconds in some]
    return Pool.build(rows, scheduling, ring=lambda: Ring([e.id for e, _ in some]))


def chosen(pool: Pool, ask: Ask | None = None, seed: int = 0) -> Decision:
    decision = decide(pool, ask or Ask(0.0), Random(seed))
    assert decision is not None
    return decision


def score(decision: Decision, id_: str) -> float:
    return next(one[SCORE] for one in decision.verdict.scored if one[0] == id_)


# The terms.


@pytest.mark.parametrize(
    ("name", "where", "expected"),
    [
        ("warm", endpoint(), 1.0),
        ("warm", endpoint(loaded=False, used=0.5), 0.8),
        ("warm", endpoint(loaded=False, loading=True, used=0.5), 0.6),
        ("warm", endpoint(loaded=False, used=0.9), 0.0),
        ("warm", endpoint(loaded=False), None),
        ("memory", endpoint(used=0.0), 1.0),
        ("memory", endpoint(used=0.4), 0.5),
        ("memory", endpoint(used=0.8), 0.0),
        ("memory", endpoint(used=1.0), 0.0),
        ("memory", endpoint(), None),
        ("region", endpoint(region="eu"), 1.0),
        ("region", endpoint(region="uk"), 0.6),
        ("region", endpoint(region="us"), 0.2),
        ("region", endpoint(), None),
        ("gpu_fit", endpoint(gpu="h100"), 1.0),
        ("gpu_fit", endpoint(gpu="l4"), 0.5),
        ("gpu_fit", endpoint(gpu="k80"), 0.0),
        ("gpu_fit", endpoint(), None),
        ("gpu_fit", endpoint(device="cpu"), 0.0),
        ("gpu_fit", endpoint(device="cpu", wanted="cpu"), 1.0),
        ("gpu_fit", endpoint(device="remote"), None),
    ],
)
def test_a_term_of_an_endpoint(name: str, where: Endpoint, expected: float | None) -> None:
    scheduling = Scheduling(near_regions={"eu": ("uk",)}, gpus=("h100", "l4"))
    assert BY_ENDPOINT[name](where, scheduling, "eu") == expected


def test_the_terms_of_a_call() -> None:
    assert prefix.terms(0) is None, "a prompt too short to compare"
    known = prefix.terms(4)
    assert known is not None
    assert (known[0], known[2], known[4], known[5]) == (0.0, MARKS[1] / MARKS[3], 1.0, 1.0)
    assert [session.term("a", owner) for owner in (None, "a", "b")] == [None, 1.0, 0.0]
    assert [pending.term(s, 4.0) for s in (0.0, 1.0, 4.0)] == [1.0, 0.75, 0.0]
    assert pending.term(0.0, 0.0) == 1.0, "nobody has anything to do"


def test_the_score_is_the_sum_of_the_terms_by_their_weights() -> None:
    weights = Weights(prefix=10, warm=20, pending=30, memory=40, region=50, gpu_fit=60, session=70)
    where = endpoint("a", used=0.4, region="eu", device="cuda:0")
    pool = pool_of(
        (where, 1.0), (endpoint("b"), 2.0), scheduling=Scheduling(weights, explore=0.0), region="eu"
    )
    ask = Ask(0.0, cost=0.0, total=4, held={"a": 4}, session="s")
    decision = chosen(pool, ask)
    most = 2.0 + pool.s_per_call
    home = 70.0 * (chosen(pool, ask).verdict.scored[0][5])
    expected = 10 + 20 + 30 * (1 - (1.0 + pool.s_per_call) / most) + 40 * 0.5 + 50 + 60 + home
    assert score(decision, "a") == pytest.approx(expected)


def test_a_suspect_keeps_a_fifth_of_its_score() -> None:
    well, suspect = chosen(pool_of((endpoint("a"), 1.0))), chosen(pool_of((endpoint("a", suspect=True), 1.0)))
    assert score(suspect, "a") == pytest.approx(SUSPECT * score(well, "a"))
    for seed in range(20):
        assert (
            chosen(pool_of((endpoint("a", suspect=True), 0.0), (endpoint("b"), 1.0)), seed=seed).endpoint.id
            == "b"
        )


def test_equals_take_turns_by_chance_and_the_same_seed_chooses_the_same() -> None:
    pool = pool_of(*((endpoint(f"w{i}"), 1.0) for i in range(4)))
    turns = [chosen(pool, seed=seed).endpoint.id for seed in range(400)]
    assert min(Counter(turns).values()) > 60
    assert turns == [chosen(pool, seed=seed).endpoint.id for seed in range(400)]


# Seconds, not calls.


def test_unlike_machines_compare_in_seconds_with_the_call_itself() -> None:
    quick = endpoint("quick", s_per_cost=0.001, slots=16)
    slow = endpoint("slow", s_per_cost=0.01, slots=16)
    rows = [row_of(e, Condition(BreakerLimits()), STILL) for e in (quick, slow)]
    pool = Pool.build(rows, STILL)
    for _ in range(9):
        decision = decide(pool, Ask(0.0, cost=100.0), Random(1))
        assert decision is not None
        assert decision.endpoint is quick
        rows[0].load.began(0, 0.0, 100.0)  # type: ignore[attr-defined]
    rows[0].load.began(0, 0.0, 100.0)  # type: ignore[attr-defined]
    decision = decide(pool, Ask(0.0, cost=100.0), Random(1))
    assert decision is not None
    assert decision.endpoint is slow, "ten calls on a machine ten times as quick take as long"


def test_who_has_measured_nothing_is_taken_for_the_middle_of_the_others() -> None:
    rows = [
        row_of(endpoint(f"w{i}", s_per_cost=s), Fixed(0.0), STILL) for i, s in enumerate((0.0, 1.0, 3.0, 9.0))
    ]
    pool = Pool.build(rows, STILL)
    assert (pool.usual_s_per_cost, pool.s_per_call) == (3.0, 0.0)
    assert Pool.build(rows[:1], STILL).s_per_call > 0, "calls count where costs mean nothing"


# Bursts.


def worked(seconds: Sequence[float], capacity: Sequence[float]) -> float:
    """Most by mean, of seconds of work that each took relative to what it can do."""
    return max(seconds) / (sum(s * c for s, c in zip(seconds, capacity, strict=True)) / sum(capacity))


@pytest.mark.parametrize(
    "speeds", [(1.0,) * 4, (1.0,) * 8, (1.0,) * 20, (1.0, 2.0, 4.0, 8.0), (1.0, 1.0, 5.0)]
)
@pytest.mark.parametrize("seed", range(5))
def test_a_burst_on_stale_reports_is_spread_by_what_each_can_do(speeds: tuple[float, ...], seed: int) -> None:
    random = Random(seed)
    conditions = [Condition(BreakerLimits()) for _ in speeds]
    for condition in conditions:
        condition.size(condition.room.limit.bounds._replace(sure=1000, slots=1000, ceiling=1000))
        condition.reported(
            3, 300.0
        )  # of other gateways, and the same all along: the burst is quicker than reports
    rows = [
        row_of(endpoint(f"w{i}", s_per_cost=0.001 / speed), condition, STILL)
        for i, (speed, condition) in enumerate(zip(speeds, conditions, strict=True))
    ]
    pool = Pool.build(rows, STILL)
    costs = [random.choice((50.0, 100.0, 150.0)) for _ in range(200)]
    for call, cost in enumerate(costs):
        decision = decide(pool, Ask(0.0, cost), random)
        assert decision is not None
        conditions[rows.index(pool.by_id[decision.endpoint.id])].began(call, 0.0, cost)
    seconds = [c.cost_in_flight * row.s_per_cost for c, row in zip(conditions, rows, strict=True)]
    assert worked(seconds, speeds) <= 1.3


# The gate.


def test_the_gate_closes_only_where_both_bounds_are_passed() -> None:
    assert gate_s([0.0, 2.0], STILL) is None
    assert gate_s([0.0, 2.1], STILL) == 2.0
    assert gate_s([10.0, 14.0], STILL) is None, "nearly as busy"
    assert gate_s([10.0, 15.1], STILL) == 12.0


def test_affinity_is_kept_among_those_who_are_left() -> None:
    pool = pool_of((endpoint("busy"), 10.0), (endpoint("knows half"), 1.0), (endpoint("idle"), 0.0))
    ask = Ask(0.0, total=4, held={"busy": 4, "knows half": 3})
    for seed in range(20):
        decision = chosen(pool, ask, seed)
        assert decision.endpoint.id == "knows half"
        assert [id_ for id_, _ in decision.verdict.gated] == ["busy"]


# The free slot.

_HELD = {"a": 4, "b": 2}


@pytest.mark.parametrize(
    ("loads", "suspects", "expected", "waiting"),
    [
        ((0, 0, 0), "", "a", ""),
        ((3, 4, 4), "", "a", "bc"),
        ((4, 0, 4), "", "b", "ac"),
        ((5, 4, 0), "", "c", "ab"),
        ((4, 4, 4), "", "a", ""),
        ((4, 4, 0), "c", "a", ""),
        ((4, 0, 0), "c", "b", "a"),
        ((4, 0, 0), "bc", "a", ""),
        ((0, 4, 4), "a", "b", ""),
    ],
    ids=[
        "nobody would wait",
        "who knows the prompt is free",
        "half of the prompt is worth more than a queue",
        "so is nothing of it",
        "all would wait: the prompt decides again",
        "the free slot of a suspect is no reason",
        "a suspect with a free slot stays in",
        "nor of two of them",
        "nor where it knows the prompt",
    ],
)
def test_a_warm_prompt_is_not_worth_a_queue_where_another_could_begin(
    loads: tuple[int, int, int], suspects: str, expected: str, waiting: str
) -> None:
    rows = [
        row_of(endpoint(id_, suspect=id_ in suspects), Fixed(1.0, load), STILL)
        for id_, load in zip("abc", loads, strict=True)
    ]
    pool, ask = Pool.build(rows, STILL), Ask(0.0, total=4, held=_HELD)
    decision = chosen(pool, ask)
    assert decision.endpoint.id == expected
    assert "".join(id_ for id_, _ in decision.verdict.queued) == waiting
    assert {one[0] for one in decision.verdict.scored} == set("abc") - set(waiting)
    order = [row.id for row in ranked(pool, ask, Random(0))]
    assert order[0] == expected
    assert set(order[3 - len(waiting) :]) == set(waiting)


def test_a_queue_that_is_sooner_over_than_a_free_slot_is_kept() -> None:
    rows = [
        row_of(endpoint("quick"), Fixed(0.5, 4), STILL),
        row_of(endpoint("slow"), Fixed(1.0, 0), STILL),
        row_of(endpoint("full"), Fixed(1.5, 4), STILL),
    ]
    decision = chosen(Pool.build(rows, STILL), Ask(0.0))
    assert decision.endpoint.id == "quick"
    assert [id_ for id_, _ in decision.verdict.queued] == ["full"]


def test_who_has_too_much_to_do_has_no_say_about_free_slots() -> None:
    loads = {"idle": Fixed(0.0, 4), "next": Fixed(1.0, 4), "behind": Fixed(9.0, 0)}
    pool = Pool.build([row_of(endpoint(id_), load, STILL) for id_, load in loads.items()], STILL)
    decision = chosen(pool, Ask(0.0, total=4, held={"next": 4}))
    assert decision.endpoint.id == "next"
    assert ([id_ for id_, _ in decision.verdict.gated], decision.verdict.queued) == (["behind"], ())
    assert [row.id for row in ranked(pool, Ask(0.0, total=4, held={"next": 4}), Random(0))] == [
        "next",
        "idle",
        "behind",
    ]


def test_a_sessions_own_endpoint_does_not_let_it_wait_for_a_slot_either() -> None:
    some = [endpoint(f"w{i}") for i in range(4)]
    ask = Ask(0.0, session="t/s", sticks=True)
    home = chosen(pool_of(*((e, 1.0) for e in some)), ask).endpoint.id
    rows = [row_of(e, Fixed(1.0, 4 if e.id == home else 3), STILL) for e in some]
    pool = Pool.build(rows, STILL, ring=lambda: Ring([e.id for e in some]))
    assert chosen(pool, ask).endpoint.id != home
    assert ranked(pool, ask, Random(0))[-1].id == home


@pytest.mark.parametrize(
    ("slots", "load", "waits"), [(0, 7, False), (0, 8, True), (2, 1, False), (2, 2, True)]
)
def test_slots_that_nobody_announced_are_taken_for_eight(slots: int, load: int, *, waits: bool) -> None:
    rows = [
        row_of(endpoint("a", slots=slots), Fixed(0.0, load), STILL),
        row_of(endpoint("b"), Fixed(0.0), STILL),
    ]
    assert bool(chosen(Pool.build(rows, STILL)).verdict.queued) is waits


def test_a_prompt_that_nobody_knows_goes_to_the_least_pending() -> None:
    pool = pool_of(*((endpoint(f"w{i}"), float(i)) for i in (3, 1, 2)))
    assert {chosen(pool, Ask(0.0, total=4), seed).endpoint.id for seed in range(20)} == {"w1"}


def test_who_knows_the_prompt_is_found_in_a_large_fleet_and_so_is_the_sessions_own() -> None:
    pool = pool_of(*((endpoint(f"w{i}"), 1.0) for i in range(1000)))
    assert {chosen(pool, Ask(0.0, total=4, held={"w7": 4}), seed).endpoint.id for seed in range(20)} == {"w7"}
    assert len({chosen(pool, Ask(0.0, session="t/s"), seed).endpoint.id for seed in range(20)}) == 1
    assert len({chosen(pool, Ask(0.0, session=str(s)), 1).endpoint.id for s in range(50)}) > 25


def test_a_session_sticks_until_its_own_endpoint_has_too_much_to_do() -> None:
    some = [endpoint(f"w{i}") for i in range(4)]
    ask = Ask(0.0, session="t/s", sticks=True)
    home = chosen(pool_of(*((e, 1.0) for e in some)), ask).endpoint.id
    busier = pool_of(*((e, 2.5 if e.id == home else 1.0) for e in some))
    assert chosen(busier, ask).endpoint.id == home
    assert chosen(busier, replace_ask(ask, sticks=False)).endpoint.id != home
    assert chosen(pool_of(*((e, 9.0 if e.id == home else 1.0) for e in some)), ask).endpoint.id != home
    unwell = pool_of(*((e, None if e.id == home else 1.0) for e in some))
    assert len({chosen(unwell, ask, seed).endpoint.id for seed in range(20)}) == 1, (
        "another, and always the same"
    )


def replace_ask(ask: Ask, *, sticks: bool) -> Ask:
    return Ask(ask.now_s, ask.cost, ask.total, ask.held, ask.session, sticks)


def test_only_the_sessions_of_who_leaves_move_on_the_ring() -> None:
    ids = [f"w{i}" for i in range(20)]
    before, after = Ring(ids), Ring(ids[1:])
    moved = 0
    for s in range(500):
        was, now = next(before.owners(str(s))), next(after.owners(str(s)))
        assert was in {now, "w0"}
        moved += was != now
    assert 0 < moved < 80
    assert list(Ring([]).owners("s")) == []


# Chance.


def test_a_few_calls_explore_but_never_a_suspect() -> None:
    scheduling = Scheduling(explore=0.1)
    pool = pool_of(
        (endpoint("a"), 0.0), (endpoint("b"), 1.0), (endpoint("c", suspect=True), 1.0), scheduling=scheduling
    )
    found = [chosen(pool, seed=seed) for seed in range(2000)]
    explored = Counter(d.endpoint.id for d in found if d.verdict.reason == "explored")
    assert 120 < explored.total() < 280
    assert set(explored) == {"a", "b"}


def test_a_new_endpoint_gets_calls() -> None:
    pool = pool_of((endpoint("old", s_per_cost=0.01), 1.0), (endpoint("new"), 0.0))
    assert chosen(pool).endpoint.id == "new"


def test_a_sample_is_of_different_ones_and_everybody_is_as_likely() -> None:
    random, seen = Random(1), Counter[int]()
    for _ in range(20_000):
        some = sample_of((*range(50), *range(50)), 8, random)
        assert len(set(some)) == 8
        seen.update(some)
    assert set(seen) == set(range(50))
    assert max(seen.values()) < 1.15 * min(seen.values())


# Filters.


@pytest.mark.parametrize(
    ("policy", "there", "expected"),
    [
        ("any", {}, True),
        ("any", {"region": "us"}, True),
        ("near", {"region": "eu"}, True),
        ("near", {"region": "uk"}, True),
        ("near", {"region": "us"}, False),
        ("near", {}, False),
        ("own", {"region": "eu"}, True),
        ("own", {"region": "uk"}, False),
    ],
)
def test_the_region_policy(policy: RegionPolicy, there: dict[str, str], *, expected: bool) -> None:
    scheduling = Scheduling(region_policy=policy, near_regions={"eu": ("uk",)})
    assert may_go_there(endpoint(**there), scheduling, "eu") is expected
    assert may_go_there(endpoint(device="remote"), scheduling, "eu"), "a vendor is in no region"
    assert policy == "any" or not may_go_there(endpoint(**there), scheduling, ""), "nobody knows where we are"


# Whatever the fleet is.

_SOME = st.builds(
    lambda device, loaded, loading, used, suspect, seconds, region: (
        endpoint(device=device, loaded=loaded, loading=loading, used=used, suspect=suspect, region=region),
        seconds,
    ),
    st.sampled_from(["cpu", "cuda:0", "remote"]),
    st.booleans(),
    st.booleans(),
    st.none() | st.floats(0, 1),
    st.booleans(),
    st.none() | st.floats(0, 1000),
    st.sampled_from(["eu", "us", ""]),
)


@given(
    some=st.lists(_SOME, max_size=30),
    tried=st.sets(st.integers(0, 29)),
    held=st.dictionaries(st.integers(0, 29), st.integers(1, 4)),
    sample=st.integers(1, 8),
    explore=st.floats(0, 1),
    owner=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_it_never_picks_who_is_out_and_every_term_is_between_0_and_1(
    *,
    some: list[Some],
    tried: set[int],
    held: dict[int, int],
    sample: int,
    explore: float,
    owner: bool,
    seed: int,
) -> None:
    scheduling = Scheduling(explore=explore, sample=sample)
    named = [(replace(e, id=f"w{i}"), seconds) for i, (e, seconds) in enumerate(some)]
    pool = pool_of(*named, scheduling=scheduling, region="eu")
    out = {("m#1", f"w{i}") for i in tried}
    ask = Ask(
        0.0,
        total=4,
        held={f"w{i}": n for i, n in held.items()},
        session="s" if owner else "",
        sticks=owner,
        tried=out,
    )
    well = {e.id for e, seconds in named if seconds is not None and ("m#1", e.id) not in out}
    order = [row.id for row in ranked(pool, ask, Random(seed))]
    assert sorted(order) == sorted(well)
    decision = decide(pool, ask, Random(seed))
    if decision is None:
        assert not well or len(named) > sample
        return
    assert decision.endpoint.id in well
    verdict = decision.verdict
    gated = {id_ for id_, _ in (*verdict.gated, *verdict.queued)}
    assert decision.endpoint.id not in gated
    assert well.isdisjoint(verdict.skipped)
    weights, factors = scheduling.weights, {row.id: row.factor for row in pool.rows}
    for id_, by_endpoint, seconds, read, soon, home, score_ in verdict.scored:
        base = sum(getattr(weights, n) * t for n, t in zip(BY_ENDPOINT, by_endpoint, strict=True))
        total = base + weights.prefix * read + weights.pending * soon + weights.session * home
        assert score_ == pytest.approx(factors[id_] * total), "what is told is what was gone by"
        assert id_ in well - gated
        assert seconds >= 0
        for term in (*by_endpoint, read, soon, home):
            assert 0 <= term <= 1
