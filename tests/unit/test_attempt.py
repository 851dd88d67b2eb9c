"""The attempt ring: who is asked next, how long each is waited for, and what is never done twice."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from inferhub.core.call import Call, Chunk, Delta, Emit, Finished, Frame, Handler, Started
from inferhub.core.errors import (
    BackendRefused,
    ContentFiltered,
    ContextOverflow,
    DeadlineExceeded,
    EndpointLost,
    EndpointStalled,
    InferHubError,
    Invalid,
    NoEndpoint,
    Overloaded,
    UpstreamDenied,
    UpstreamFailed,
    UpstreamRateLimited,
)
from inferhub.core.models import Capability, ModelSpec, ModelStatus
from inferhub.core.serving import Endpoint
from inferhub.core.traffic import Cause, Fallback, Patience, Route, Target, alias
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.modalities.chat import ChatDelta, FunctionDelta, ToolCallDelta
from inferhub.modalities.completion import CompletionDelta
from inferhub.pipeline.attempt import Attempt
from inferhub.pipeline.directory import Directory
from inferhub.pipeline.dispatch import Dispatch
from inferhub.pipeline.onion import build
from inferhub.pipeline.patience import Limits, Watch
from inferhub.routing import BreakerLimits, Router, RouterLimits
from inferhub.telemetry.metrics import Metrics
from inferhub.testing.calls import Collector, make_call

USAGE = Usage(7, 1)
END = Finished(USAGE)
STOP = Delta(ChatDelta(finish_reason="stop"))
LIMITS = Limits(first_token_timeout_s=30, idle_timeout_s=30)
FEATURES = frozenset({*modalities()["chat"].features})


def word(text: str, raw: bytes | None = None) -> Delta:
    return Delta(ChatDelta(content=text), raw)


def saying(*steps: Any) -> Handler:
    """Chunks are emitted, errors raised, events awaited; `...` waits for ever."""

    async def infer(call: Call, emit: Emit) -> None:
        for step in steps:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
            elif step is ...:
                await asyncio.Event().wait()
            else:
                await emit(step)

    return infer


GOOD = (word("hi"), STOP, END)


class World:
    """Models that each run at one endpoint of their name, and the ring in front of them."""

    def __init__(
        self,
        models: dict[str, Handler | Sequence[Handler]],
        *,
        limits: Limits = LIMITS,
        max_attempts: int = 3,
        features: frozenset[str] = FEATURES,
        router_limits: RouterLimits | None = None,
    ) -> None:
        self.asked: list[Call] = []
        self.cancelled: list[str] = []
        self.metrics = Metrics()
        self.directory = Directory({name: self._endpoints(name, of, features) for name, of in models.items()})
        self.router = Router(router_limits or RouterLimits())
        ring = Attempt(
            self.router, lambda: self.directory, self.metrics, max_attempts=max_attempts, limits=limits
        )
        self.handler = build([ring], Dispatch(lambda: self.directory))

    def _endpoints(
        self, name: str, of: Handler | Sequence[Handler], features: frozenset[str]
    ) -> tuple[Endpoint, ...]:
        every = [Capability(modality, features) for modality in modalities()]
        status = ModelStatus(ModelSpec(name, "echo"), tuple(every), "cpu")
        if not isinstance(of, Sequence):
            return (Endpoint(name, status, self._watched(name, of)),)
        return tuple(
            Endpoint(f"{name}-{i}", status, self._watched(f"{name}-{i}", h)) for i, h in enumerate(of)
        )

    def _watched(self, name: str, infer: Handler) -> Handler:
        async def watched(call: Call, emit: Emit) -> None:
            self.asked.append(replace(call, endpoint=name))
            try:
                await infer(call, emit)
            except asyncio.CancelledError:
                self.cancelled.append(name)
                raise

        return watched

    def route(self, route: Route) -> World:
        self.directory = replace(
            self.directory, routes={route.name: route}, revision=self.directory.revision + 1
        )
        return self

    @property
    def names(self) -> list[str]:
        return [call.endpoint for call in self.asked]

    async def ask(self, model: str = "r", modality: str = "chat", **params: Any) -> list[Chunk]:
        emit = Collector()
        await self.handler(make_call(modality, model, **params), emit)
        return emit.chunks

    async def fail(self, model: str = "r", **params: Any) -> tuple[InferHubError, list[Chunk]]:
        emit = Collector()
        with pytest.raises(InferHubError) as caught:
            await self.handler(make_call("chat", model, **params), emit)
        return caught.value, emit.chunks

    def check_idle(self) -> None:
        """Nobody is counted who has left, and no task is left behind."""
        assert (self.router.budget.active, self.router.budget.retries) == (0, 0)
        assert all(condition.in_flight == 0 for condition in self.router.conditions().values())
        assert len(asyncio.all_tasks()) == 1


def text(chunks: Sequence[Chunk]) -> str:
    return "".join(
        (chunk.payload.content if isinstance(chunk.payload, ChatDelta) else chunk.payload.text) or ""
        for chunk in chunks
        if isinstance(chunk, Delta)
    )


def started(chunks: Sequence[Chunk]) -> Started:
    [first, *others] = [chunk for chunk in chunks if isinstance(chunk, Started)]
    assert chunks[0] is first
    return others[-1] if others else first


FALLBACK = Route("r", (Target("a"),), (Fallback("b"),))


# --- trying again ------------------------------------------------------------------------------


async def test_a_plain_model_is_asked_once_and_untouched() -> None:
    world = World({"m": saying(*GOOD)})
    assert await world.ask("m") == [Started("m", "m"), *GOOD]
    world.check_idle()


@pytest.mark.parametrize(
    "error",
    [
        EndpointLost(),
        UpstreamFailed(),
        UpstreamDenied(),
        UpstreamRateLimited(retry_after_s=5),
        Overloaded(),
        EndpointStalled(),
    ],
    ids=lambda error: error.code,
)
async def test_a_fallback_takes_over_and_the_trail_tells_of_it(
    error: InferHubError, caplog: pytest.LogCaptureFixture
) -> None:
    world = World({"a": saying(error), "b": saying(*GOOD)}).route(FALLBACK)
    with caplog.at_level(logging.INFO):
        chunks = await world.ask()
    begun = started(chunks)
    assert (begun.model, begun.endpoint, begun.attempt) == ("b", "b", 2)
    assert [(f.endpoint, f.code) for f in begun.trail] == [("a", error.code)]
    assert 0 <= begun.trail[0].after_s < 5
    assert (text(chunks), chunks[-1]) == ("hi", END)
    assert world.asked[0].key == world.asked[1].key
    [line] = [r for r in caplog.records if r.name == "inferhub.pipeline.attempt"]
    assert (line.request_id, line.endpoint) == (world.asked[0].id, "a")  # type: ignore[attr-defined]
    assert 'inferhub_attempts_failed_total{cause="' in world.metrics.exposition().decode()
    world.check_idle()


@pytest.mark.parametrize("error", [Invalid(), BackendRefused(), DeadlineExceeded()], ids=lambda e: e.code)
async def test_what_nobody_else_would_answer_is_not_asked_elsewhere(error: InferHubError) -> None:
    world = World({"a": saying(error), "b": saying(*GOOD)}).route(FALLBACK)
    caught, chunks = await world.fail()
    assert (caught, chunks, world.names) == (error, [], ["a"])


@pytest.mark.parametrize(
    ("cause", "error"),
    [
        (Cause.CONTEXT_LENGTH, ContextOverflow("too long", param="messages")),
        (Cause.CONTENT_FILTER, ContentFiltered()),
    ],
)
async def test_what_is_wrong_with_the_call_goes_only_to_fallbacks_for_it(
    cause: Cause, error: InferHubError
) -> None:
    models = {"a": saying(error), "b": saying(*GOOD)}
    caught, _ = await World(models).route(FALLBACK).fail()
    assert caught is error
    route = replace(FALLBACK, fallbacks=(Fallback("b", frozenset({cause})),))
    chunks = await World(models).route(route).ask()
    assert (started(chunks).model, started(chunks).trail[0].code) == ("b", error.code)


FILTERED = (Delta(ChatDelta(finish_reason="content_filter")), END)


async def test_an_answer_that_was_filtered_before_it_began_may_be_asked_for_elsewhere() -> None:
    route = replace(FALLBACK, fallbacks=(Fallback("b", frozenset({Cause.CONTENT_FILTER})),))
    models = {"a": saying(*FILTERED), "b": saying(*GOOD)}
    assert text(await World(models).route(route).ask()) == "hi"
    # Without such a fallback it is an answer like any other.
    assert (await World(models).route(FALLBACK).ask())[1:] == list(FILTERED)
    # So it is once something was said.
    late = (word("I "), *FILTERED)
    assert (await World({**models, "a": saying(*late)}).route(route).ask())[1:] == list(late)


async def test_one_endpoint_alone_is_asked_once_more_after_a_pause() -> None:
    failures = iter([UpstreamFailed()])

    async def infer(call: Call, emit: Emit) -> None:
        for error in failures:
            raise error
        await saying(*GOOD)(call, emit)

    world = World({"m": infer})
    begin = time.monotonic()
    chunks = await world.ask("m")
    assert time.monotonic() - begin >= 0.02
    assert (started(chunks).attempt, world.names) == (2, ["m", "m"])
    assert [call.attempt for call in world.asked] == [1, 2]


async def test_another_endpoint_of_the_model_is_asked_at_once() -> None:
    world = World({"m": [saying(EndpointLost()), saying(EndpointLost()), saying(EndpointLost())]})
    error, _ = await world.fail("m")
    assert sorted(world.names) == ["m-0", "m-1", "m-2"]
    assert (error.attempts, error.endpoint) == (3, world.names[-1])
    assert [f.endpoint for f in error.trail] == world.names[:2]


async def test_there_are_at_most_so_many_attempts() -> None:
    world = World({"m": [saying(EndpointLost())] * 5}, max_attempts=2)
    error, _ = await world.fail("m")
    assert (error.attempts, len(world.names)) == (2, 2)


async def test_nothing_is_begun_anew_after_the_first_content() -> None:
    world = World({"a": saying(word("one "), EndpointLost()), "b": saying(*GOOD)}).route(FALLBACK)
    error, chunks = await world.fail()
    assert (text(chunks), error.code, world.names) == ("one ", "endpoint_lost", ["a"])


async def test_a_role_alone_is_no_beginning() -> None:
    role = Delta(ChatDelta(), b"data: role\n\n")
    world = World({"a": saying(role, EndpointLost()), "b": saying(*GOOD)}).route(FALLBACK)
    chunks = await world.ask()
    assert chunks[1:] == list(GOOD)


async def test_what_came_before_the_content_is_passed_on_with_it() -> None:
    quiet = Delta(ChatDelta(), b"role;")
    world = World({"m": saying(quiet, quiet, word("hi", b"hi;"), quiet, Finished(USAGE, raw=b"done"))})
    chunks = await world.ask("m", stream=True)
    assert [chunk.raw for chunk in chunks[1:]] == [b"role;role;hi;", b"role;done"]  # type: ignore[union-attr]


async def test_endless_silence_is_bounded() -> None:
    quiet = [Delta(ChatDelta(), b"x" * 10_000)] * 20
    error, chunks = await World({"m": saying(*quiet, *GOOD)}, max_attempts=1).fail("m")
    assert (error.code, chunks) == ("upstream_error", [])


async def test_nothing_is_tried_past_the_deadline() -> None:
    async def slow(call: Call, emit: Emit) -> None:
        await asyncio.sleep(0.1)
        raise EndpointLost

    world = World({"a": slow, "b": saying(*GOOD)}).route(FALLBACK)
    error, _ = await world.fail(timeout_s=0.05)
    assert (error.attempts, error.code, world.names) == (1, "timeout", ["a"])


async def test_the_budget_keeps_an_outage_from_multiplying() -> None:
    """Many calls fail at once: only a share of them is tried elsewhere at the same time."""
    gate, here = asyncio.Event(), asyncio.Event()
    world = World(
        {"a": saying(gate, EndpointLost()), "b": saying(here, *GOOD)},
        router_limits=RouterLimits(BreakerLimits(failures_in_row=0)),
    ).route(Route("r", (Target("a"), Target("b", priority=1))))
    calls = [asyncio.create_task(world.ask()) for _ in range(50)]
    while len(world.asked) < 50:
        await asyncio.sleep(0)
    gate.set()
    while sum(not call.done() for call in calls) > world.names.count("b"):
        await asyncio.sleep(0)
    here.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert 3 <= world.names.count("b") <= 10
    assert sum(isinstance(outcome, EndpointLost) for outcome in outcomes) == 50 - world.names.count("b")
    assert "inferhub_retries_refused_total 4" in world.metrics.exposition().decode()
    world.check_idle()


async def test_a_fallback_takes_over_every_call_of_an_outage() -> None:
    """It is no retry, so no budget keeps it from doing what it is there for."""
    gate, here = asyncio.Event(), asyncio.Event()
    world = World(
        {"a": saying(gate, EndpointLost()), "b": saying(here, *GOOD)},
        router_limits=RouterLimits(BreakerLimits(failures_in_row=0), retry_share=0, retry_minimum=0),
    ).route(FALLBACK)
    calls = [asyncio.create_task(world.ask()) for _ in range(50)]
    while len(world.asked) < 50:
        await asyncio.sleep(0)
    gate.set()
    while world.names.count("b") < 50:
        await asyncio.sleep(0)
    here.set()
    await asyncio.gather(*calls)
    world.check_idle()


async def test_a_client_hears_the_soonest_time_to_come_back() -> None:
    models = {
        "a": saying(UpstreamRateLimited(retry_after_s=3)),
        "b": saying(UpstreamRateLimited(retry_after_s=9)),
    }
    world = World(models).route(FALLBACK)
    first, _ = await world.fail()
    assert (first.http, first.retry_after_s, world.names) == (429, 3, ["a", "b"])
    second, _ = await world.fail()
    assert second.http == 429
    assert 0 < (second.retry_after_s or 0) <= 3
    assert world.names == ["a", "b"], "an endpoint that asked to be left alone was not"


async def test_a_dead_endpoint_is_left_alone_until_its_probe() -> None:
    now_s = [100.0]
    world = World({"m": saying(*[EndpointLost()])}, max_attempts=1)
    world.router.clock = lambda: now_s[0]
    for _ in range(5):
        await world.fail("m")
    error, _ = await world.fail("m")
    assert (error.http, len(world.names)) == (503, 5)
    assert 0 < (error.retry_after_s or 0) <= 5
    now_s[0] += 6
    await world.fail("m")
    assert len(world.names) == 6


async def test_a_model_that_runs_nowhere_and_a_name_that_is_none() -> None:
    world = World({"m": ()})
    with pytest.raises(NoEndpoint):
        await world.ask("m")
    error, _ = await world.fail("mm")
    assert error.code == "model_not_found"


async def test_a_bug_is_nobodys_failure() -> None:
    async def buggy(call: Call, emit: Emit) -> None:
        raise ZeroDivisionError

    world = World({"a": buggy, "b": saying(*GOOD)}).route(FALLBACK)
    with pytest.raises(ZeroDivisionError):
        await world.ask()
    assert world.names == ["a"]
    world.check_idle()


# --- patience ----------------------------------------------------------------------------------

SHORT = Limits(first_token_timeout_s=0.05, idle_timeout_s=0.05)


async def test_silence_before_the_first_content_leads_elsewhere() -> None:
    world = World({"a": saying(...), "b": saying(*GOOD)}, limits=SHORT).route(FALLBACK)
    chunks = await world.ask()
    assert [(f.endpoint, f.code) for f in started(chunks).trail] == [("a", "endpoint_stalled")]
    assert world.cancelled == ["a"]


async def test_each_attempt_has_a_limit_of_its_own_and_the_call_one_for_all() -> None:
    world = World({"a": saying(...), "b": saying(...)}, limits=replace(SHORT, first_token_timeout_s=0.2))
    error, _ = await world.route(FALLBACK).fail(timeout_s=0.3)
    assert (error.code, error.attempts, error.endpoint) == ("timeout", 2, "b")
    assert [f.code for f in error.trail] == ["endpoint_stalled"]


@pytest.mark.parametrize("silence", [ChatDelta(), ChatDelta(content="")])
async def test_signs_of_life_are_no_content(silence: ChatDelta) -> None:
    async def chatty(call: Call, emit: Emit) -> None:
        while True:
            await emit(Delta(silence))
            await asyncio.sleep(0.005)

    async def trailing_off(call: Call, emit: Emit) -> None:
        await emit(word("well "))
        await chatty(call, emit)

    error, chunks = await World({"m": chatty}, limits=SHORT, max_attempts=1).fail("m")
    assert (error.code, chunks) == ("endpoint_stalled", [])
    assert "first_token_timeout_s" in error.message
    error, chunks = await World({"m": trailing_off}, limits=SHORT).fail("m")
    assert ("idle_timeout_s" in error.message, text(chunks)) == (True, "well ")


async def test_a_route_has_its_own_patience() -> None:
    route = replace(alias("r", "m"), patience=Patience(first_token_timeout_s=0.05))
    error, _ = await World({"m": saying(...)}, max_attempts=1).route(route).fail()
    assert "first_token_timeout_s" in error.message


async def test_a_slow_client_does_not_use_up_the_endpoints_time() -> None:
    async def slow_client(chunk: Chunk) -> None:
        await asyncio.sleep(0.15)

    world = World({"m": saying(*GOOD)}, limits=SHORT)
    await world.handler(make_call("chat", "m"), slow_client)


async def test_cancelling_during_the_pause_ends_the_call() -> None:
    world = World({"m": saying(UpstreamFailed())})
    task = asyncio.create_task(world.ask("m"))
    while not world.asked:
        await asyncio.sleep(0)
    await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(world.asked) == 1
    world.check_idle()


# --- hedging -----------------------------------------------------------------------------------

HEDGED = Route("r", (Target("a"), Target("b", priority=1)), hedge_after_s=0.05)


async def test_the_slower_endpoint_is_cancelled_at_once_and_leaves_nothing() -> None:
    world = World({"a": saying(..., *GOOD), "b": saying(*GOOD)}).route(HEDGED)
    chunks = await world.ask()
    begun = started(chunks)
    assert (begun.endpoint, begun.attempt) == ("b", 2)
    assert [(f.endpoint, f.code) for f in begun.trail] == [("a", "cancelled")]
    assert chunks[1:] == list(GOOD)
    assert (world.names, world.cancelled) == (["a", "b"], ["a"])
    world.check_idle()


async def test_the_first_may_still_win() -> None:
    world = World({}).route(HEDGED)
    beside = asyncio.Event()

    async def second(call: Call, emit: Emit) -> None:
        beside.set()
        await asyncio.Event().wait()

    world = World({"a": saying(beside, *GOOD), "b": second}).route(HEDGED)
    begun = started(await world.ask())
    assert (begun.endpoint, begun.attempt) == ("a", 2)
    assert (world.names, world.cancelled) == (["a", "b"], ["b"])
    world.check_idle()


async def test_a_quick_answer_is_not_hedged() -> None:
    world = World({"a": saying(*GOOD), "b": saying(*GOOD)}).route(replace(HEDGED, hedge_after_s=10))
    assert started(await world.ask()).trail == ()
    assert world.names == ["a"]


@pytest.mark.parametrize("loser", ["a", "b"])
async def test_one_that_fails_leaves_the_other_one_running(loser: str) -> None:
    both, failed = asyncio.Event(), asyncio.Event()

    async def fails(call: Call, emit: Emit) -> None:
        if loser == "a":
            await both.wait()
        asyncio.get_running_loop().call_later(0.02, failed.set)
        raise UpstreamFailed

    async def lasts(call: Call, emit: Emit) -> None:
        both.set()
        await failed.wait()
        await saying(*GOOD)(call, emit)

    winner = "b" if loser == "a" else "a"
    world = World({loser: fails, winner: lasts}).route(HEDGED)
    begun = started(await world.ask())
    assert (begun.endpoint, begun.attempt) == (winner, 2)
    assert [(f.endpoint, f.code) for f in begun.trail] == [(loser, "upstream_error")]
    assert world.cancelled == []
    world.check_idle()


async def test_when_both_fail_the_next_one_is_asked() -> None:
    both = asyncio.Event()

    async def second(call: Call, emit: Emit) -> None:
        both.set()
        raise EndpointLost

    route = replace(HEDGED, fallbacks=(Fallback("c"),))
    world = World({"a": saying(both, UpstreamFailed()), "b": second, "c": saying(*GOOD)}).route(route)
    begun = started(await world.ask())
    assert (begun.endpoint, begun.attempt) == ("c", 3)
    assert sorted((f.endpoint, f.code) for f in begun.trail) == [
        ("a", "upstream_error"),
        ("b", "endpoint_lost"),
    ]
    world.check_idle()


async def test_a_failure_before_the_hedge_goes_elsewhere_at_once() -> None:
    world = World({"a": saying(UpstreamFailed()), "b": saying(*GOOD)}).route(
        replace(HEDGED, hedge_after_s=10)
    )
    begun = started(await world.ask())
    assert (begun.endpoint, [f.endpoint for f in begun.trail]) == ("b", ["a"])


async def test_the_winners_failure_is_the_calls() -> None:
    world = World({"a": saying(...), "b": saying(word("one "), EndpointLost())}).route(HEDGED)
    error, chunks = await world.fail()
    assert (error.code, error.endpoint, text(chunks)) == ("endpoint_lost", "b", "one ")
    assert [f.endpoint for f in error.trail] == ["a"]
    world.check_idle()


async def test_cancelling_a_hedged_call_cancels_both() -> None:
    world = World({"a": saying(...), "b": saying(...)}).route(HEDGED)
    task = asyncio.create_task(world.ask())
    while len(world.asked) < 2:
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(world.cancelled) == ["a", "b"]
    world.check_idle()


async def test_what_the_client_raises_ends_both() -> None:
    class Gone(BaseException):
        pass

    async def gone(chunk: Chunk) -> None:
        raise Gone

    world = World({"a": saying(...), "b": saying(*GOOD)}).route(HEDGED)
    with pytest.raises(Gone):
        await world.handler(make_call("chat", "r"), gone)
    assert world.cancelled == ["a"]
    world.check_idle()


# --- continuing --------------------------------------------------------------------------------

RESUMED = Route("r", (Target("a"), Target("b", priority=1)), resume=True)


async def test_a_broken_answer_goes_on_elsewhere_without_a_gap_or_a_repetition() -> None:
    rest = (word("three"), STOP, Finished(Usage(9, 1)))
    world = World({"a": saying(word("one "), word("two "), EndpointLost()), "b": saying(*rest)}).route(
        RESUMED
    )
    chunks = await world.ask(stream=True, max_tokens=10)
    assert text(chunks) == "one two three"
    assert [chunk.payload.finish_reason for chunk in chunks if isinstance(chunk, Delta)] == [None] * 3 + [
        "stop"
    ]
    # The prompt of 7 counts once, though the second one read the delivered text as well.
    assert chunks[-1] == Finished(Usage(7, 3, source="estimated"))
    first, second = (chunk for chunk in chunks if isinstance(chunk, Started))
    assert (first.model, first.endpoint, first.attempt) == ("a", "a", 1)
    assert (second.model, second.endpoint, second.attempt) == ("a", "b", 2)
    assert [(f.endpoint, f.code) for f in second.trail] == [("a", "endpoint_lost")]
    asked = world.asked[1]
    assert (asked.resume, asked.request.max_tokens) == ("one two ", 8)
    assert b'"max_tokens":8' in asked.body
    world.check_idle()


async def test_it_goes_on_more_than_once() -> None:
    route = replace(RESUMED, targets=(*RESUMED.targets, Target("c", priority=2)))
    models = {
        "a": saying(word("one "), EndpointLost()),
        "b": saying(word("two "), UpstreamFailed()),
        "c": saying(word("three"), STOP, Finished(Usage(9, 1))),
    }
    world = World(models).route(route)
    chunks = await world.ask()
    assert (text(chunks), chunks[-1]) == ("one two three", Finished(Usage(7, 3, source="estimated")))
    assert [call.resume for call in world.asked] == ["", "one ", "one two "]


async def test_a_silent_endpoint_is_left_for_another() -> None:
    world = World({"a": saying(word("one "), ...), "b": saying(word("two"), STOP, END)}, limits=SHORT).route(
        RESUMED
    )
    assert text(await world.ask()) == "one two"


async def test_nothing_is_forwarded_as_the_upstream_wrote_it() -> None:
    """Two upstreams would write two envelopes into one stream."""
    raw = Finished(USAGE, raw=b"[DONE]")
    world = World(
        {"a": saying(word("one ", b"1;"), EndpointLost()), "b": saying(word("two", b"2;"), STOP, raw)}
    )
    chunks = await world.route(RESUMED).ask(stream=True)
    assert [chunk.raw for chunk in chunks if isinstance(chunk, Delta | Finished)] == [None] * 4


async def test_an_answer_that_is_as_long_as_it_may_be_only_lost_its_end() -> None:
    world = World({"a": saying(word("one "), word("two"), EndpointLost()), "b": saying(*GOOD)}).route(RESUMED)
    chunks = await world.ask(max_tokens=2)
    assert [chunk.payload.finish_reason for chunk in chunks if isinstance(chunk, Delta)] == [
        None,
        None,
        "length",
    ]
    assert chunks[-1] == Finished(Usage(0, 2, source="unknown"))
    assert world.names == ["a"]


async def test_a_completion_goes_on_too() -> None:
    rest = (Delta(CompletionDelta(text="two")), Delta(CompletionDelta(finish_reason="stop")), END)
    world = World({"a": saying(Delta(CompletionDelta(text="one ")), EndpointLost()), "b": saying(*rest)})
    chunks = await world.route(RESUMED).ask(modality="completion", prompt="count")
    assert text(chunks) == "one two"
    assert (world.asked[1].resume, world.asked[1].request.max_tokens) == ("one ", 15)


TOOL = ToolCallDelta(0, "call_1", "function", FunctionDelta("f", ""))


@pytest.mark.parametrize(
    ("said", "params"),
    [
        pytest.param([Delta(ChatDelta(tool_calls=[TOOL]))], {}, id="a tool call"),
        pytest.param([Delta(ChatDelta(reasoning_content="hm"))], {}, id="a thought"),
        pytest.param([word("one"), STOP], {}, id="the end was said"),
        pytest.param([word("one")], {"n": 2}, id="two choices"),
        pytest.param([word("one")], {"logprobs": True}, id="probabilities"),
        pytest.param([word("{")], {"response_format": {"type": "json_object"}}, id="a form"),
    ],
)
async def test_what_cannot_be_continued_is_an_error(said: list[Chunk], params: dict[str, Any]) -> None:
    world = World({"a": saying(*said, EndpointLost()), "b": saying(*GOOD)}).route(RESUMED)
    error, _ = await world.fail(**params)
    assert (error.code, world.names) == ("endpoint_lost", ["a"])


async def test_only_an_endpoint_that_can_start_from_text_goes_on() -> None:
    world = World(
        {"a": saying(word("one "), EndpointLost()), "b": saying(*GOOD)}, features=FEATURES - {"prefill"}
    ).route(RESUMED)
    error, chunks = await world.fail()
    assert (error.code, text(chunks), world.names) == ("endpoint_lost", "one ", ["a"])


async def test_a_continuation_that_fails_ends_the_answer_with_its_error() -> None:
    world = World({"a": saying(word("one "), EndpointLost()), "b": saying(UpstreamFailed())}).route(RESUMED)
    error, chunks = await world.fail()
    assert (error.code, error.attempts, text(chunks)) == ("upstream_error", 2, "one ")
    assert [f.code for f in error.trail] == ["endpoint_lost"]
    world.check_idle()


# --- the alarm itself --------------------------------------------------------------------------


async def test_a_hang_up_in_the_same_moment_wins_over_the_alarm() -> None:
    async def work() -> None:
        with Watch(Limits(first_token_timeout_s=0), time.monotonic() + 60):
            # The alarm rings and the client leaves before this task runs again.
            asyncio.get_running_loop().call_later(0.02, task.cancel)
            time.sleep(0.05)  # noqa: ASYNC251 - on purpose: both are due at once
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_an_alarm_that_rang_too_late_changes_nothing() -> None:
    with Watch(Limits(first_token_timeout_s=30), time.monotonic() + 60) as watch:
        watch.rest()
    assert asyncio.current_task() is not None
    await asyncio.sleep(0)


# --- clients that go on talking ----------------------------------------------------------------


async def talking(world: World, *, timeout_s: float = 30) -> list[Chunk]:
    async def frames() -> AsyncIterator[Frame]:
        yield Frame(b"said once")

    emit = Collector()
    await world.handler(replace(make_call("chat", "r", timeout_s=timeout_s), incoming=frames()), emit)
    return emit.chunks


async def test_who_listens_may_be_silent_for_as_long_as_the_client_is() -> None:
    async def listening(call: Call, emit: Emit) -> None:
        await asyncio.sleep(0.15)
        await emit(word("hm"))
        await asyncio.sleep(0.15)
        await emit(STOP)
        await emit(END)

    patient = replace(alias("r", "m"), patience=Patience(first_token_timeout_s=0.05, idle_timeout_s=0.05))
    for route in (alias("r", "m"), patient):
        assert text(await talking(World({"m": listening}, limits=SHORT).route(route))) == "hm"


async def test_the_end_of_the_session_ends_the_call_all_the_same() -> None:
    with pytest.raises(DeadlineExceeded):
        await talking(World({"m": saying(word("hm"), ...)}).route(alias("r", "m")), timeout_s=0.1)


@pytest.mark.parametrize("error", [EndpointLost(), Overloaded(), NoEndpoint(), UpstreamFailed()])
async def test_what_was_said_to_one_is_never_asked_of_another(error: InferHubError) -> None:
    world = World({"a": saying(error), "b": saying(*GOOD)}).route(FALLBACK)
    with pytest.raises(type(error)):
        await talking(world)
    assert world.names == ["a"]
    world.check_idle()


async def test_nobody_listens_beside_another() -> None:
    slow = asyncio.Event()
    asyncio.get_running_loop().call_later(0.15, slow.set)
    world = World({"a": saying(slow, *GOOD), "b": saying(*GOOD)}).route(HEDGED)
    await talking(world)
    assert world.names == ["a"]
