"""What the scheduler is given: reports, prefixes and refusals, as the router takes them over; and its notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest

from inferhub.core.call import Call, Emit
from inferhub.core.errors import EndpointLost, NoEndpoint, Overloaded
from inferhub.core.models import Capability, ModelSpec, ModelStatus
from inferhub.core.scheduling import Scheduling
from inferhub.core.serving import Endpoint
from inferhub.core.traffic import Cause, Route, Target
from inferhub.modalities import modalities
from inferhub.pipeline.address import measured
from inferhub.pipeline.directory import Directory
from inferhub.routing import Candidate, Decisions, Router, RouterLimits
from inferhub.routing.condition import key_of
from inferhub.routing.prefix import MARKS, MAX_BYTES, OWN_S, PrefixIndex, hashes, share
from inferhub.testing.calls import make_call
from inferhub.worker.prefixes import MAX_TOLD, RecentPrefixes

CHAT = (Capability("chat", frozenset({"stream"})), Capability("embedding"))
STILL = Scheduling(explore=0.0)
LONG = "You answer like a lighthouse keeper. " * 100


async def unused(call: Call, emit: Emit) -> None:
    raise AssertionError("routing calls nobody")


def endpoint(id_: str, seq: int = 1, **changed: Any) -> Endpoint:
    labels = changed.pop("labels", {})
    status = ModelStatus(
        ModelSpec("m#1", "echo", slots=100), CHAT, "cuda:0", **{"s_per_cost": 0.001, **changed}
    )
    return Endpoint(id_, status, unused, labels=labels, report=(1, seq))


@dataclass
class World:
    endpoints: list[Endpoint]
    scheduling: Scheduling = STILL
    region: str = ""
    now_s: float = 1000.0
    decisions: Decisions = field(default_factory=Decisions)

    def __post_init__(self) -> None:
        self.router = Router(
            RouterLimits(),
            scheduling=lambda: self.scheduling,
            region=self.region,
            clock=lambda: self.now_s,
            random=Random(3),
            decisions=self.decisions,
        )
        self.routes: dict[str, Route] = {}

    def call(self, text: str = "hi", tenant: str = "ten_a", **params: Any) -> Call:
        call = make_call("chat", "m", messages=[{"role": "user", "content": text}], stream=True, **params)
        call = replace(call, principal=replace(call.principal, tenant_id=tenant))
        directory = Directory({"m": tuple(self.endpoints)}, self.routes)
        return measured(call, *self.router.measure(call, directory))

    def go(self, call: Call, ends: Callable[[Any], None] | None = None) -> Candidate | None:
        """Who is asked first; the call stays there unless `ends` ends it."""
        with self.router.begin(call, Directory({"m": tuple(self.endpoints)}, self.routes)) as journey:
            candidate = journey.next(None)
            if candidate is not None:
                trial = journey.try_(candidate).__enter__()
                if ends is not None:
                    ends(trial)
            return candidate

    def pending(self, id_: str) -> float | None:
        key = next(key_of(e) for e in self.endpoints if e.id == id_)
        return self.router.condition(key).pending_s(self.now_s, 1.0, 0.0)


# Reports.


def test_own_dispatches_count_until_a_report_has_them_and_no_report_counts_twice() -> None:
    world = World([endpoint("a"), endpoint("b", pending_cost=1e6)])
    call = world.call()
    assert call.cost > 0
    world.go(call)
    assert world.pending("a") == call.cost
    world.endpoints[0] = endpoint("a", 2, pending_cost=call.cost + 500)
    world.go(world.call(tenant="ten_b"), lambda trial: trial.succeeded())
    assert world.pending("a") == call.cost + 500, "500 are of another gateway, the rest is our own"
    same = replace(world.endpoints[0], model=replace(world.endpoints[0].model))
    world.endpoints[0] = same
    world.go(world.call(), lambda trial: trial.succeeded())
    assert world.pending("a") == call.cost + 500, "the same report in another object"


def test_what_ended_before_the_report_came_is_nobody_elses() -> None:
    world = World([endpoint("a"), endpoint("b", pending_cost=1e6)])
    call = world.call()
    world.go(call, lambda trial: trial.succeeded())
    world.endpoints[0] = endpoint("a", 2, pending_cost=call.cost)
    world.go(world.call(), lambda trial: trial.cancelled())
    assert world.pending("a") == 0.0


def test_the_depth_of_a_refusal_counts_until_the_next_report() -> None:
    world = World([endpoint("a"), endpoint("b")])
    full = Overloaded("x", retry_after_s=0.1)
    full.pending_s = 30.0
    first = world.go(world.call(), lambda trial: trial.failed(full))
    assert first is not None
    world.now_s += 1
    assert world.pending(first.endpoint.id) == 30.0
    for _ in range(5):
        other = world.go(world.call(), lambda trial: trial.succeeded())
        assert other is not None
        assert other.endpoint.id != first.endpoint.id
    world.endpoints = [endpoint("a", 2), endpoint("b", 2)]
    world.go(world.call(), lambda trial: trial.succeeded())
    assert world.pending(first.endpoint.id) == 0.0


def test_a_refused_call_goes_to_another_and_never_to_one_it_has_asked() -> None:
    world = World([endpoint(f"w{i}") for i in range(12)])
    journey = world.router.begin(world.call(), Directory({"m": tuple(world.endpoints)}))
    asked = []
    candidate = journey.next(None)
    while candidate is not None:
        asked.append(candidate.endpoint.id)
        journey.try_(candidate).__enter__().failed(Overloaded("x"))
        candidate = journey.next(Cause.OVERLOAD)
    assert sorted(asked) == sorted(e.id for e in world.endpoints), "in a fleet larger than the sample, too"


def test_the_few_who_are_well_are_found_in_a_large_fleet() -> None:
    world = World([endpoint(f"w{i}") for i in range(300)])
    directory = Directory({"m": tuple(world.endpoints)})
    world.router.begin(world.call(), directory)
    for e in world.endpoints[:-1]:
        for _ in range(5):
            world.router.condition(key_of(e)).failed(
                EndpointLost("x"), world.now_s, lambda: 0.5, is_probe=False
            )
    journey = world.router.begin(world.call(), directory)
    found = journey.next(None)
    assert found is not None
    assert found.endpoint.id == "w299"


def test_the_region_policy_keeps_calls_at_home() -> None:
    own = Scheduling(region_policy="own", explore=0.0)
    some = [
        endpoint("eu", labels={"region": "eu"}),
        *(endpoint(f"us{i}", labels={"region": "us"}) for i in range(3)),
    ]
    world = World(some, own, "eu")
    for _ in range(20):
        found = world.go(world.call())
        assert found is not None
        assert found.endpoint.id == "eu"
    with pytest.raises(NoEndpoint):
        World(some, own, "asia").go(world.call())


def test_another_scheduling_is_taken_over_with_the_next_snapshot() -> None:
    world = World(
        [endpoint("a", labels={"region": "eu"}), endpoint("b", labels={"region": "us"})], region="eu"
    )
    world.go(world.call(), lambda trial: trial.succeeded())
    world.scheduling = Scheduling(region_policy="own", explore=0.0)
    found = world.go(world.call(), lambda trial: trial.succeeded())
    assert found is not None
    assert found.endpoint.id == "a"


# Prefixes.


def test_hashes_agree_up_to_where_texts_part_and_never_between_tenants() -> None:
    text = bytes(range(256)) * 400
    one = hashes([text], "ten_a", "m")
    assert len(one) == len(MARKS)
    assert hashes([text[:100], text[100:5000], text[5000:]], "ten_a", "m") == one, (
        "however it is cut into pieces"
    )
    other = hashes([text[:2000], b"!", text[2001:]], "ten_a", "m")
    alike = sum(mark <= 2000 for mark in MARKS)
    assert one[:alike] == other[:alike]
    assert set(one[alike:]).isdisjoint(other)
    assert set(one).isdisjoint(hashes([text], "ten_b", "m"))
    assert set(one).isdisjoint(hashes([text], "ten_a", "n"))
    assert hashes([text[:MAX_BYTES], b"?" * 10**6], "ten_a", "m") == one, "no more is read than the limit"
    assert hashes([b"short"], "ten_a", "m") == ()


def test_the_share_of_a_prompt_is_by_its_bytes() -> None:
    assert (share(0, 4), share(4, 4), share(3, 0)) == (0.0, 1.0, 0.0)
    assert share(1, 2) == MARKS[0] / MARKS[1]


def test_a_prompt_is_all_that_the_model_reads() -> None:
    def of(**params: Any) -> bytes:
        call = make_call("chat", "m", **params)
        pieces = modalities()["chat"].prefix
        assert pieces is not None
        return b"".join(pieces(call.request))

    hi = [{"role": "user", "content": "hi"}]
    tool = {"type": "function", "function": {"name": "f"}}
    every = [
        of(messages=hi),
        of(messages=hi, tools=[tool]),
        of(messages=[{"role": "system", "content": "hi"}]),
        of(messages=[{"role": "user", "content": "h"}, {"role": "user", "content": "i"}]),
        of(messages=[{"role": "user", "content": [{"type": "text", "text": "hi"}]}]),
    ]
    assert len(set(every)) == len(every)
    longer = of(messages=[*hi, {"role": "assistant", "content": "yes"}])
    assert longer.startswith(every[0]), "the next turn begins with this one"


def test_a_conversation_goes_back_to_who_has_read_it_and_only_for_its_own_tenant() -> None:
    world = World([endpoint(f"w{i}") for i in range(50)])
    first = world.go(world.call(LONG), lambda trial: trial.succeeded())
    assert first is not None
    again = [world.go(world.call(LONG + "More?"), lambda trial: trial.succeeded()) for _ in range(10)]
    assert {found.endpoint.id for found in again if found} == {first.endpoint.id}
    others = [
        world.go(world.call(LONG, tenant=f"ten_{i}"), lambda trial: trial.succeeded()) for i in range(10)
    ]
    assert len({found.endpoint.id for found in others if found}) > 3
    told = world.call(LONG).prefixes[-2:]
    world.endpoints[20] = endpoint("w20", 2, prefixes=told)
    world.now_s += OWN_S + 1
    found = world.go(world.call(LONG), lambda trial: trial.succeeded())
    assert found is not None
    assert found.endpoint.id == "w20", "its worker reports that it has read it"


def test_prompts_are_not_hashed_for_a_single_endpoint() -> None:
    call = World([endpoint("a")]).call(LONG)
    assert (call.prefixes, call.cost) == ((), 0.0)
    world = World([endpoint("a"), endpoint("b")])
    assert world.call(LONG).prefixes
    world.routes = {"r": Route("r", (Target("m"),))}
    assert world.call("hi").prefixes == ()


def test_the_index_forgets_what_is_no_longer_told_and_is_bounded() -> None:
    index = PrefixIndex(max_own=3)
    index.told("a", (1, 2))
    index.told("b", (2, 3))
    assert index.held((1, 2), 0.0, 8, Random(1)) == {"a": 2, "b": 2}
    index.told("a", (1,))
    assert index.held((1, 2), 0.0, 8, Random(1)) == {"b": 2, "a": 1}
    index.keep([("", "a")])
    assert index.held((1, 2), 0.0, 8, Random(1)) == {"a": 1}
    index.sent("c", (10, 11, 12, 13), 5.0)
    assert index.held((10,), 5.0, 8, Random(1)) == {}, "the oldest went"
    assert index.held((10, 11), 5.0, 8, Random(1)) == {"c": 2}
    for i in range(100):
        index.told(f"w{i}", (77,))
    some = {tuple(index.held((77,), 0.0, 4, Random(seed))) for seed in range(10)}
    assert all(len(ids) == 4 for ids in some)
    assert len(some) > 5, "not always the same few"


def test_a_worker_tells_the_longest_and_what_calls_share() -> None:
    recent = RecentPrefixes()
    assert recent.digest() == ()
    recent.add((1, 2, 3, 4))
    assert recent.digest() == (3, 4)
    recent.add((1, 2, 30, 40))
    assert recent.digest() == (3, 4, 2, 30, 40), "2 is what both begin with"
    assert recent.digest() is recent.digest()
    for i in range(1000):
        recent.add((1, 2, 1000 + i))
    digest = recent.digest()
    assert len(digest) == MAX_TOLD
    assert {2, 1999} <= set(digest)
    recent.clear()
    assert recent.digest() == ()


# Notes.


def test_every_decision_is_kept_in_order_with_its_terms_and_its_outcome() -> None:
    world = World([endpoint("a"), endpoint("b", pending_cost=9000.0)])
    call = world.call(LONG)
    journey = world.router.begin(call, Directory({"m": tuple(world.endpoints)}))
    first = journey.next(None)
    assert first is not None
    journey.try_(first).__enter__().failed(EndpointLost("x"))
    second = journey.next(Cause.FAILURE)
    assert second is not None
    journey.try_(second).__enter__().succeeded()
    assert journey.next(Cause.FAILURE) is None
    [told] = world.decisions.of(call.id)
    assert told == world.decisions.of(call.key)[0]
    steps = told["steps"]
    assert [step["step"] for step in steps] == ["choice", "end", "choice", "end", "choice"]
    assert steps[0]["endpoint"] == "a"
    assert steps[0]["too_busy"][0]["endpoint"] == "b"
    assert steps[0]["gate_s"] is not None
    [candidate] = steps[0]["candidates"]
    assert candidate["terms"].keys() == {*Scheduling().weights.__dataclass_fields__}
    total = sum(candidate["terms"][name] * weight for name, weight in steps[0]["weights"].items())
    assert candidate["score"] == pytest.approx(total, abs=0.01)
    assert (steps[1]["outcome"], steps[3]["outcome"]) == ("endpoint_lost", "ok")
    assert steps[2]["not_well"] == ["a"]
    assert (steps[2]["endpoint"], steps[2]["after_failure"]) == ("b", "failure")
    assert steps[4]["endpoint"] is None


def test_the_notes_are_bounded_by_number_and_by_memory() -> None:
    few = World([endpoint("a"), endpoint("b")], decisions=Decisions(max_calls=5))
    calls = [few.call() for _ in range(20)]
    for call in calls:
        few.go(call, lambda trial: trial.succeeded())
    assert [bool(few.decisions.of(call.id)) for call in calls] == [False] * 15 + [True] * 5
    small = World([endpoint("a"), endpoint("b")], decisions=Decisions(max_bytes=10_000))
    calls = [small.call() for _ in range(20)]
    for call in calls:
        small.go(call, lambda trial: trial.succeeded())
    kept = [bool(small.decisions.of(call.id)) for call in calls]
    assert kept == sorted(kept)
    assert 3 < sum(kept) < 12
    assert small.decisions.of("nobody's") == []


def test_who_has_no_free_slot_is_told_apart_from_who_has_too_much_to_do() -> None:
    world = World([endpoint("a", running=100, pending_cost=1.0), endpoint("b", running=99, pending_cost=1.0)])
    call = world.call()
    assert getattr(world.go(call), "endpoint", None) is world.endpoints[1]
    choice = world.decisions.of(call.id)[0]["steps"][0]
    assert [one["endpoint"] for one in choice["would_wait"]] == ["a"]
    assert (choice["too_busy"], choice["gate_s"]) == ([], None)


def test_a_call_without_a_choice_is_noted_too() -> None:
    world = World([endpoint("a")])
    call = world.call()
    world.go(call, lambda trial: trial.succeeded())
    assert [step.get("reason") for step in world.decisions.of(call.id)[0]["steps"]] == ["only", None]
