"""Calls on their way: what the router remembers from one to the next, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from inferhub.core.call import Call, Emit
from inferhub.core.errors import (
    ContextOverflow,
    Draining,
    EndpointLost,
    Invalid,
    ModelNotFound,
    NoEndpoint,
    Overloaded,
    UpstreamFailed,
    UpstreamRateLimited,
)
from inferhub.core.models import Capability, ModelSpec, ModelStatus
from inferhub.core.serving import Endpoint
from inferhub.core.traffic import Cause, Fallback, Patience, Route, Spill, Target, alias
from inferhub.core.usage import Usage
from inferhub.pipeline.directory import Directory
from inferhub.routing import BreakerLimits, Candidate, Journey, Router, RouterLimits
from inferhub.routing.breaker import State
from inferhub.routing.condition import Condition, key_of
from inferhub.testing.calls import make_call


async def unused(call: Call, emit: Emit) -> None:
    raise AssertionError("routing calls nobody")


def endpoint(model: str, place: str, *features: str, running: int = 0) -> Endpoint:
    capability = Capability("chat", frozenset({"stream", *features}))
    return Endpoint(
        place, ModelStatus(ModelSpec(f"{model}#1", "echo"), (capability,), "cpu", running), unused
    )


@dataclass
class World:
    """A router, what it routes to, and its time."""

    routes: tuple[Route, ...] = ()
    endpoints: dict[str, tuple[Endpoint, ...]] = field(default_factory=dict)
    limits: RouterLimits = field(default_factory=lambda: RouterLimits(explore=0.0))
    cost: Callable[[str, str, Usage], int] = lambda *_: 0
    now_s: float = 1000.0
    revision: int = 1

    def __post_init__(self) -> None:
        if not self.endpoints:
            models = {model for route in self.routes for model in route.models}
            self.endpoints = {model: (endpoint(model, f"{model}-w"),) for model in models}
        self.router = Router(self.limits, cost=self.cost, clock=lambda: self.now_s, random=Random(5))

    @property
    def directory(self) -> Directory:
        return Directory(self.endpoints, {route.name: route for route in self.routes}, self.revision)

    def begin(self, name: str = "r", **params: Any) -> Journey:
        call = make_call("chat", name, **{"stream": True, **params})
        return self.router.begin(call, self.directory)

    def condition(self, model: str) -> Condition:
        return self.router.condition(key_of(self.endpoints[model][0]))

    def fail(self, error: Exception, name: str = "r") -> Candidate | None:
        """One call that fails where it goes first; who was asked."""
        with self.begin(name) as journey:
            candidate = journey.next(None)
            if candidate is not None:
                with pytest.raises(type(error)), journey.try_(candidate):
                    raise error
            return candidate

    def answer(self, after_s: float = 0.1, name: str = "r", usage: Usage | None = None) -> Candidate | None:
        """One call that is answered where it goes first."""
        with self.begin(name) as journey:
            candidate = journey.next(None)
            if candidate is not None:
                with journey.try_(candidate) as trial:
                    self.now_s += after_s
                    trial.first_content()
                    trial.succeeded(usage)
            return candidate


def model_of(candidate: Candidate | None) -> str | None:
    return None if candidate is None else candidate.model


def test_names() -> None:
    world = World(
        (Route("r", (Target("m"),), patience=Patience(first_token_timeout_s=3.0)),),
        {"m": (endpoint("m", "w"),), "cold": ()},
    )
    assert model_of(world.begin("r").next(None)) == "m"
    assert world.begin("r").patience.first_token_timeout_s == 3.0
    assert model_of(world.begin("m").next(None)) == "m"
    with pytest.raises(NoEndpoint, match="'cold' is known but not ready"):
        world.begin("cold")
    with pytest.raises(ModelNotFound, match="Did you mean 'cold'"):
        world.begin("colt")


def test_the_only_endpoint_is_asked_once_more_after_a_failure_and_only_then() -> None:
    for error, cause in (
        (EndpointLost("x"), Cause.FAILURE),
        (Draining("x"), Cause.FAILURE),
        (Overloaded("x"), Cause.OVERLOAD),
        (UpstreamRateLimited("x"), Cause.RATE_LIMIT),
    ):
        world = World((alias("r", "m"),))
        with world.begin() as journey:
            first = journey.next(None)
            assert first is not None
            journey.try_(first).__enter__().failed(error)
            again = journey.next(cause)
            assert (model_of(again) == "m") is (cause is Cause.FAILURE)
            if again is not None:
                assert ("again", 1) in again.why
                journey.try_(again).__enter__().failed(error)
                assert journey.next(cause) is None


def test_a_failed_endpoint_is_not_asked_again_while_there_are_others() -> None:
    world = World((Route("r", (Target("a"), Target("b")), (Fallback("c"),)),))
    with world.begin() as journey:
        asked = []
        candidate = journey.next(None)
        while candidate is not None:
            asked.append(candidate.model)
            with pytest.raises(UpstreamFailed), journey.try_(candidate):
                raise UpstreamFailed("x")
            candidate = journey.next(Cause.FAILURE)
    assert sorted(asked[:2]) == ["a", "b"]
    assert asked[2:] == ["c"]


def test_a_prompt_that_is_too_long_goes_to_the_fallback_for_it_and_on_from_there() -> None:
    long = frozenset({Cause.CONTEXT_LENGTH})
    route = Route("r", (Target("a"), Target("b")), (Fallback("plain"), Fallback("big", long)))
    big = (endpoint("big", "w1"), endpoint("big", "w2"))
    world = World((route,), {**{m: (endpoint(m, m),) for m in ("a", "b", "plain")}, "big": big})
    with world.begin() as journey:
        first = journey.next(None)
        assert first is not None
        journey.try_(first).__enter__().failed(ContextOverflow("x"))
        second = journey.next(Cause.CONTEXT_LENGTH)
        assert second is not None
        assert (second.model, second.is_fallback) == ("big", True)
        journey.try_(second).__enter__().failed(EndpointLost("x"))
        third = journey.next(Cause.FAILURE)
        assert third is not None
        assert (third.model, third.endpoint.id != second.endpoint.id) == ("big", True)
        journey.try_(third).__enter__().failed(ContextOverflow("x"))
        assert journey.next(Cause.CONTEXT_LENGTH) is None
    assert world.condition("big").breaker.state is State.CLOSED


def test_an_answer_is_continued_only_where_that_can_be_done() -> None:
    where = {"m": (endpoint("m", "w1", "prefill"), endpoint("m", "w2"), endpoint("m", "w3", "prefill"))}
    world = World((alias("r", "m"),), where)
    with world.begin() as journey:
        first = Candidate(where["m"][0], "m")
        with journey.try_(first) as trial:
            trial.first_content()
            trial.failed(EndpointLost("x"))
        found = journey.next(Cause.FAILURE, must=frozenset({"prefill"}))
        assert found is not None
        assert found.endpoint.id == "w3"


def test_a_replaced_endpoint_is_found_in_the_newer_directory() -> None:
    world = World((alias("r", "m"),))
    with world.begin() as journey:
        first = journey.next(None)
        assert first is not None
        journey.try_(first).__enter__().failed(Draining("x"))
        world.endpoints = {"m": (endpoint("m", "successor"),)}
        journey.refresh(world.directory)
        found = journey.next(Cause.FAILURE)
        assert found is not None
        assert found.endpoint.id == "successor"


# The breaker over calls.


def test_a_storm_opens_the_breaker_and_it_recovers() -> None:
    world = World((alias("r", "m"),))
    for _ in range(5):
        assert model_of(world.fail(UpstreamFailed("x"))) == "m"
    journey = world.begin()
    assert journey.next(None) is None
    refusal = journey.refusal()
    assert isinstance(refusal, Overloaded)
    assert refusal.http == 503
    assert refusal.retry_after_s is not None
    assert 4.0 <= refusal.retry_after_s <= 5.0
    world.now_s += refusal.retry_after_s
    assert model_of(world.fail(UpstreamFailed("x"))) == "m", "a probe"
    longer = world.begin().refusal().retry_after_s
    assert longer is not None
    assert 8.0 <= longer <= 10.0
    world.now_s += longer
    with world.begin() as probing:
        probe = probing.next(None)
        assert probe is not None
        with probing.try_(probe) as trial:
            assert world.begin().next(None) is None, "one probe at a time"
            trial.succeeded()
    assert model_of(world.answer()) == "m"
    assert world.condition("m").breaker.state is State.CLOSED
    assert model_of(world.fail(UpstreamFailed("x"))) == "m"
    assert model_of(world.fail(UpstreamFailed("x"))) == "m", "what was before the recovery is forgiven"


def test_failures_before_a_recovery_do_not_open_it_again() -> None:
    limits = RouterLimits(BreakerLimits(failures_in_row=100), explore=0.0)
    world = World((alias("r", "m"),), limits=limits)
    while world.fail(UpstreamFailed("x")):
        pass
    world.now_s += 5.0
    assert world.answer()
    assert world.answer()
    assert world.condition("m").breaker.state is State.CLOSED
    assert world.fail(UpstreamFailed("x")), "twenty of them are in the window still"
    assert world.condition("m").breaker.state is State.CLOSED


def test_a_probe_that_is_cancelled_makes_room_for_the_next() -> None:
    world = World((alias("r", "m"),))
    for _ in range(5):
        world.fail(UpstreamFailed("x"))
    world.now_s += 6
    with world.begin() as journey:
        probe = journey.next(None)
        assert probe is not None
        with pytest.raises(KeyboardInterrupt), journey.try_(probe):
            raise KeyboardInterrupt
    assert model_of(world.begin().next(None)) == "m"


def test_a_probe_whose_request_was_wrong_makes_room_too() -> None:
    world = World((alias("r", "m"),))
    for _ in range(5):
        world.fail(UpstreamFailed("x"))
    world.now_s += 6
    assert world.fail(Invalid("x"))
    assert model_of(world.begin().next(None)) == "m"


@pytest.mark.parametrize("error", [Invalid("x"), ContextOverflow("x"), Draining("x"), NoEndpoint("x")])
def test_what_is_no_fault_never_opens_it(error: Exception) -> None:
    world = World((alias("r", "m"),))
    for _ in range(50):
        assert model_of(world.fail(error)) == "m"


def test_a_rate_limit_is_waited_out_without_asking() -> None:
    world = World((alias("r", "m"),))
    world.fail(UpstreamRateLimited("x", retry_after_s=5.0))
    journey = world.begin()
    assert journey.next(None) is None
    refusal = journey.refusal()
    assert isinstance(refusal, UpstreamRateLimited)
    assert refusal.retry_after_s == pytest.approx(5.0)
    world.now_s += 5.0
    assert model_of(world.begin().next(None)) == "m"


def test_a_worker_that_is_full_is_asked_again_at_once_because_it_decides_itself() -> None:
    world = World((alias("r", "m"),))
    world.fail(Overloaded("x", retry_after_s=1.0))
    assert model_of(world.begin().next(None)) == "m"
    two = World((Route("r", (Target("a"), Target("b"))),))
    full = two.fail(Overloaded("x", retry_after_s=1.0))
    for _ in range(10):
        assert model_of(two.begin().next(None)) != model_of(full)


def test_zero_turns_the_breaker_off() -> None:
    world = World((alias("r", "m"),), limits=RouterLimits(BreakerLimits(failures_in_row=0)))
    for _ in range(100):
        assert world.fail(UpstreamFailed("x"))


def test_half_of_the_calls_failing_ends_in_calls_that_do_not() -> None:
    """One of two endpoints fails every call: after a while nearly none is sent there."""
    world = World((Route("r", (Target("good"), Target("bad"))),))
    asked: list[str] = []
    for _ in range(1000):
        world.now_s += 0.01
        with world.begin() as journey:
            candidate = journey.next(None)
            assert candidate is not None
            asked.append(candidate.model)
            with journey.try_(candidate) as trial:
                if candidate.model == "good":
                    trial.succeeded()
                else:
                    trial.failed(UpstreamFailed("x"))
    assert asked.count("bad") <= 5 + 3, "what opens it, and the probes of ten seconds"


# The budget.


def test_retries_and_hedges_share_a_budget() -> None:
    world = World((Route("r", (Target("a"), Target("b"))),))
    trials = []
    for _ in range(3):
        journey = world.begin().__enter__()
        first = journey.next(None)
        assert first is not None
        journey.try_(first).__enter__()
        second = journey.hedge()
        assert second is not None
        assert second.model != first.model
        trials.append(journey.try_(second).__enter__())
    late = world.begin().__enter__()
    first = late.next(None)
    assert first is not None
    late.try_(first).__enter__()
    assert late.hedge() is None
    assert not late.may_retry()
    trials[0].cancelled()
    assert late.may_retry()
    trials[0].cancelled()
    trials[0].failed(UpstreamFailed("x"))
    assert world.router.budget.retries == 2, "a trial ends once"


def test_a_hedge_goes_to_nobody_who_is_not_well() -> None:
    world = World((Route("r", (Target("a"), Target("b"))),))
    full = world.fail(Overloaded("x", retry_after_s=9.0))
    with world.begin() as journey:
        first = journey.next(None)
        assert first is not None
        assert first.model != model_of(full)
        with journey.try_(first):
            assert journey.hedge() is None


def test_nothing_stays_counted() -> None:
    world = World((Route("r", (Target("a"), Target("b"))),))
    for error in (UpstreamFailed("x"), Invalid("x"), Overloaded("x")):
        world.fail(error)
    world.answer()
    assert (world.router.budget.active, world.router.budget.retries) == (0, 0)
    assert {condition.in_flight for condition in world.router.conditions().values()} == {0}


# Load, prediction and spill-over.


def test_calls_go_where_fewest_are() -> None:
    where = {"m": tuple(endpoint("m", f"w{i}") for i in range(4))}
    world = World((alias("r", "m"),), where)
    for _ in range(40):
        journey = world.begin()
        candidate = journey.next(None)
        assert candidate is not None
        journey.try_(candidate).__enter__()
    assert {c.in_flight for c in world.router.conditions().values()} == {10}


def test_what_other_gateways_send_counts_and_ones_own_does_not_count_twice() -> None:
    world = World((alias("r", "m"),))
    journey = world.begin()
    candidate = journey.next(None)
    assert candidate is not None
    trial = journey.try_(candidate).__enter__()

    def reported() -> int:
        world.endpoints = {"m": (endpoint("m", "m-w", running=5),)}
        world.begin()
        return world.condition("m").load

    assert reported() == 5
    trial.succeeded()
    assert world.condition("m").load == 4
    world.begin()
    assert world.condition("m").load == 4, "no new report"
    assert reported() == 4, "one of the five may have been ours"
    assert reported() == 5


def test_who_is_gone_is_forgotten() -> None:
    world = World((alias("r", "m"),))
    world.answer()
    world.endpoints = {"m": (endpoint("m", "other"),)}
    world.revision += 1
    world.begin()
    assert [where for _, where in world.router.conditions()] == ["other"]


def hybrid(cap_usd: str | None = None) -> World:
    spill = Spill(1.0, Decimal(cap_usd) if cap_usd else None)
    route = Route("r", (Target("own"), Target("cloud", priority=1)), spill=spill)
    return World(
        (route,), cost=lambda model, _m, usage: 1000 * usage.output_tokens if model == "cloud" else 0
    )


def test_a_queue_at_home_spills_over_and_comes_back_when_it_is_gone() -> None:
    """Each call takes 0.3 s of the one machine: with three others before it, a fourth would be late."""
    world = hybrid()
    running: list[tuple[float, Any]] = []
    free_s = world.now_s
    models = []
    for step in range(300):
        world.now_s += 0.1 if step < 200 else 0.5
        while running and running[0][0] <= world.now_s:
            _, trial = running.pop(0)
            trial.first_content()
            trial.succeeded()
        candidate = (journey := world.begin()).next(None)
        assert candidate is not None
        models.append(candidate.model)
        trial = journey.try_(candidate).__enter__()
        if candidate.model == "cloud":
            trial.first_content()
            trial.succeeded()
        else:
            free_s = max(free_s, world.now_s) + 0.3
            running.append((free_s, trial))
            late_s = free_s - world.now_s
            assert step < 20 or late_s < 2.5, "the queue at home stays short"
    assert 0.2 < models[:200].count("own") / 200 < 0.6, "as much as the machine can do: a third"
    assert set(models[-50:]) == {"own"}


def spill_once(world: World, usage: Usage | None = None) -> str | None:
    return model_of(world.answer(0.0, usage=usage))


def test_the_cap_stops_spilling_until_its_hour_has_passed() -> None:
    world = hybrid("0.000010")
    for _ in range(10):
        world.condition("own").sampled(world.now_s, 0, 5.0)
    # A call counts its estimate, which is more than the cap, until it is known to be less.
    assert spill_once(world) == "own"
    world = hybrid("10")
    estimate = 0
    for _ in range(10):
        world.condition("own").sampled(world.now_s, 0, 5.0)
    with world.begin() as journey:
        candidate = journey.next(None)
        assert candidate is not None
        assert candidate.is_spilled
        with journey.try_(candidate) as trial:
            estimate = world.router.spend("r").total(world.now_s)
            assert estimate > 0
            trial.first_content()
            trial.succeeded(Usage(10, 7))
    assert world.router.spend("r").total(world.now_s) == 7000
    world.router.spend("r").add(10 * 10**9, world.now_s)
    assert spill_once(world) == "own"


def test_what_failed_before_it_began_was_not_spent() -> None:
    world = hybrid("10")
    for _ in range(10):
        world.condition("own").sampled(world.now_s, 0, 5.0)
    assert model_of(world.fail(UpstreamFailed("x"))) == "cloud"
    assert world.router.spend("r").total(world.now_s) == 0


def test_a_slow_start_is_forgotten_in_time() -> None:
    world = hybrid()
    for _ in range(5):
        world.condition("own").sampled(world.now_s, 0, 30.0)
    assert spill_once(world) == "cloud"
    world.now_s += 181
    assert spill_once(world) == "own"


def test_an_answer_in_one_piece_says_nothing_of_its_first_token() -> None:
    world = hybrid()
    for _ in range(10):
        with world.begin(stream=False) as journey:
            candidate = journey.next(None)
            assert model_of(candidate) == "own"
            assert candidate is not None
            with journey.try_(candidate) as trial:
                world.now_s += 8.0
                trial.first_content()
                trial.succeeded()
    assert model_of(world.begin().next(None)) == "own"


def test_a_stuck_endpoint_is_seen_before_anything_fails() -> None:
    world = hybrid()
    for _ in range(5):
        world.answer(0.1)
    journey = world.begin()
    candidate = journey.next(None)
    assert candidate is not None
    trial = journey.try_(candidate).__enter__()
    world.now_s += 0.9
    assert model_of(world.begin().next(None)) == "own"
    world.now_s += 0.2
    assert model_of(world.begin().next(None)) == "cloud"
    trial.first_content()
    assert model_of(world.begin().next(None)) == "own"


def test_calls_that_were_given_up_count_as_slow() -> None:
    world = World((Route("r", (Target("a"), Target("b")), prefer="latency"),))
    for model, took_s in (("a", 0.1), ("b", 0.5)):
        for _ in range(5):
            world.condition(model).sampled(world.now_s, 0, took_s)
    for _ in range(10):
        with world.begin() as journey:
            candidate = Candidate(world.endpoints["a"][0], "a")
            with journey.try_(candidate):
                world.now_s += 3.0
    assert model_of(world.begin().next(None)) == "b"


def test_a_plain_model_of_one_endpoint_costs_no_ordering() -> None:
    world = World(endpoints={"m": (endpoint("m", "w"),)})
    found = world.begin("m").next(None)
    assert found == Candidate(world.endpoints["m"][0], "m")


def test_the_session_of_one_tenant_is_not_the_session_of_another() -> None:
    where = {f"m{i}": (endpoint(f"m{i}", f"w{i}"),) for i in range(8)}
    route = Route("r", tuple(Target(model) for model in where), affinity=True)
    world = World((route,), where)

    def home(tenant: str, session: str) -> str | None:
        call = make_call("chat", "r")
        call = replace(call, session=session, principal=replace(call.principal, tenant_id=tenant))
        return model_of(world.router.begin(call, world.directory).next(None))

    for session in map(str, range(5)):
        assert len({home("ten_a", session) for _ in range(5)}) == 1
    assert [home("ten_a", str(i)) for i in range(20)] != [home("ten_b", str(i)) for i in range(20)]
