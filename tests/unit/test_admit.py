"""Admission: scopes, allow lists, limits that are settled however a call ends, room, and who goes first."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from inferhub.core.call import Call, Chunk, Criticality, Delta, Emit, Finished, Frame, Handler, Started
from inferhub.core.errors import (
    REASONS,
    Forbidden,
    InferHubError,
    Invalid,
    ModelNotFound,
    NoEndpoint,
    Overloaded,
    RateLimited,
    ServerUnreachable,
    family,
)
from inferhub.core.quota import Quota, Unit, Window
from inferhub.core.tenancy import REALTIME_SCOPE, Principal, Role
from inferhub.core.usage import Usage
from inferhub.gateway.criticality import HEADER, criticality_of
from inferhub.gateway.problems import error_headers
from inferhub.modalities import modalities
from inferhub.modalities.tokens import DEFAULT_OUTPUT_TOKENS
from inferhub.modalities.transcription import Live, TranscriptDelta, TranscriptionRequest
from inferhub.pipeline.admit import Admit
from inferhub.pipeline.doorway import Doorway
from inferhub.pipeline.limiter import Limiter, QuotaBook
from inferhub.pipeline.onion import build
from inferhub.stores.catalog.checks import check_scopes
from inferhub.stores.catalog.keys import effective_scopes
from inferhub.stores.counters.memory import MemoryCounters
from inferhub.testing.calls import Collector, make_call
from inferhub.transport.codec import decode_error, encode_error

CALLER = Principal("ih_caller", Role.FREE, "ten_a", "prj_a")


def call_of(principal: Principal = CALLER, model: str = "m", **params: Any) -> Call:
    return replace(make_call("chat", model, **params), principal=principal)


def quota(unit: Unit, limit: int, window: Window) -> Quota:
    return Quota("quo_1", "ten_a", "key", "ih_caller", unit, window, limit)


SLOTS = quota(Unit.CONCURRENT, 2, Window.NOW)
TOKENS = quota(Unit.TOKENS, 5000, Window.DAY)
MONEY = quota(Unit.USD, 10_000, Window.DAY)
QUOTAS = (SLOTS, TOKENS, MONEY)


class Limits:
    def __init__(self, *quotas: Quota) -> None:
        self.counters = MemoryCounters()
        self.book = QuotaBook(quotas)
        self.limiter = Limiter(self.counters, lambda: self.book)
        self.ring = Admit(max_inflight=20, limiter=self.limiter, cost=lambda *_: 1000)

    async def used(self) -> list[int]:
        return [r.used for r in await self.counters.read(self.book.meters_for(CALLER))]


async def answers(call: Call, emit: Emit) -> None:
    for chunk in (Started("m", "w"), Delta(None), Finished(Usage(1, 1))):
        await emit(chunk)


def metered(limits: Limits, inner: Handler) -> Handler:
    """What the meter ring does: settles what was used, in its own `finally`."""

    async def handler(call: Call, emit: Emit) -> None:
        try:
            await inner(call, emit)
        finally:
            assert call.reservation is not None
            await limits.limiter.settle(call.reservation, Usage(20, 22), 77)

    return handler


# --- who may -----------------------------------------------------------------------------------


async def test_a_key_without_the_scope_is_told_which_one() -> None:
    reader = replace(CALLER, scopes=frozenset({"models:read", "inference:embedding"}))
    with pytest.raises(Forbidden, match="'inference:chat'") as caught:
        await build([Admit(max_inflight=1)], answers)(call_of(reader), Collector())
    assert caught.value.http == 403


@pytest.mark.parametrize("scope", ["inference:*", "inference:chat"])
async def test_either_scope_is_enough(scope: str) -> None:
    collected = Collector()
    await build([Admit(max_inflight=1)], answers)(
        call_of(replace(CALLER, scopes=frozenset({scope}))), collected
    )
    assert len(collected.chunks) == 3


async def _refusal(model: str) -> InferHubError:
    few = replace(CALLER, models=frozenset({"small", "llama-*"}))
    with pytest.raises(ModelNotFound) as caught:
        await build([Admit(max_inflight=1)], answers)(call_of(few, model), Collector())
    return caught.value


async def test_a_model_not_on_the_list_reads_like_one_that_does_not_exist() -> None:
    existing, made_up = await _refusal("secret-model"), await _refusal("no-such-model")
    assert existing.message.replace("secret-model", "no-such-model") == made_up.message
    assert (existing.http, existing.code) == (404, "model_not_found")


@pytest.mark.parametrize("model", ["small", "llama-3-8b"])
async def test_a_model_on_the_list_is_let_through(model: str) -> None:
    few = replace(CALLER, models=frozenset({"small", "llama-*"}))
    collected = Collector()
    await build([Admit(max_inflight=1)], answers)(call_of(few, model), collected)
    assert len(collected.chunks) == 3


# --- limits --------------------------------------------------------------------------------------


async def test_the_head_of_an_answer_carries_the_readings_and_the_call_its_reservation() -> None:
    limits = Limits(*QUOTAS)
    seen: list[Call] = []

    async def inner(call: Call, emit: Emit) -> None:
        seen.append(call)
        await answers(call, emit)

    collected = Collector()
    await build([limits.ring], metered(limits, inner))(call_of(max_tokens=100), collected)
    started = collected.chunks[0]
    assert isinstance(started, Started)
    assert [r.meter.unit for r in started.readings] == [Unit.CONCURRENT, Unit.TOKENS, Unit.USD]
    assert seen[0].reservation is not None
    assert await limits.used() == [0, 42, 77]


async def test_without_limits_nothing_is_added() -> None:
    limits = Limits()
    collected = Collector()
    await build([limits.ring], answers)(call_of(), collected)
    assert isinstance(collected.chunks[0], Started)
    assert collected.chunks[0].readings == ()


async def test_a_call_that_nobody_metered_gives_everything_back() -> None:
    limits = Limits(*QUOTAS)

    async def fails(call: Call, emit: Emit) -> None:
        raise NoEndpoint

    with pytest.raises(NoEndpoint) as caught:
        await build([limits.ring], fails)(call_of(), Collector())
    assert [r.meter.unit for r in caught.value.readings] == [Unit.CONCURRENT, Unit.TOKENS, Unit.USD]
    assert await limits.used() == [0, 0, 0]
    assert limits.limiter.open == 0


async def test_a_cancelled_call_gives_its_slot_back_and_pays_for_what_it_used() -> None:
    limits = Limits(*QUOTAS)
    is_running = asyncio.Event()

    async def hangs(call: Call, emit: Emit) -> None:
        is_running.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(
        build([limits.ring], metered(limits, hangs))(call_of(max_tokens=10), Collector())
    )
    await is_running.wait()
    assert (await limits.used())[0] == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await limits.used() == [0, 42, 77]


async def test_of_many_calls_at_once_only_so_many_run() -> None:
    limits = Limits(SLOTS)
    running = most = 0

    async def works(call: Call, emit: Emit) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    handler = build([limits.ring], works)
    done = await asyncio.gather(*[handler(call_of(), Collector()) for _ in range(10)], return_exceptions=True)
    assert most == SLOTS.limit
    assert all(r is None or isinstance(r, RateLimited) for r in done)
    assert await limits.used() == [0]


async def _let_in(limits: Limits, call: Call) -> Call:
    seen: list[Call] = []

    async def inner(call: Call, emit: Emit) -> None:
        seen.append(call)

    await build([limits.ring], metered(limits, inner))(call, Collector())
    return seen[0]


async def test_a_call_with_a_reservation_is_otherwise_the_same() -> None:
    call = call_of(max_tokens=5)
    let_in = await _let_in(Limits(*QUOTAS), call)
    assert let_in.reservation is not None
    assert replace(let_in, reservation=None) == call


@pytest.mark.parametrize("quotas", [(TOKENS,), (MONEY,)])
async def test_who_pays_for_length_cannot_leave_it_open(quotas: tuple[Quota, ...]) -> None:
    let_in = await _let_in(Limits(*quotas), call_of(seed=7))
    assert let_in.request.max_output_tokens == DEFAULT_OUTPUT_TOKENS
    sent = json.loads(let_in.body)
    assert sent.pop("max_completion_tokens") == DEFAULT_OUTPUT_TOKENS
    assert sent == json.loads(call_of(seed=7).body)


async def test_nobody_else_is_cut_short() -> None:
    let_in = await _let_in(Limits(SLOTS), call_of())
    assert let_in.request.max_output_tokens is None
    assert let_in.body == call_of().body


# --- estimates -----------------------------------------------------------------------------------


def estimate(modality: str, **params: Any) -> Usage:
    call = make_call(modality, **params)
    return modalities()[modality].estimate(call.request, len(call.body))


def _said(text: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


_TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "x": "y" * 600}}}


@pytest.mark.parametrize(
    ("params", "at_least", "at_most"),
    [
        ({"messages": _said("a" * 300)}, 100, 110),
        ({"messages": _said("a" * 300) * 3}, 300, 330),
        ({"messages": _said("語" * 100)}, 100, 110),
        ({"messages": _said([{"type": "text", "text": "a" * 300}])}, 100, 110),
        ({"messages": _said([{"type": "image_url", "image_url": {"url": "data:," + "A" * 90_000}}])}, 1500, 1500),
        ({"messages": _said([{"type": "image_url", "image_url": {"url": "x", "detail": "low"}}])}, 300, 300),
        ({"messages": _said([{"type": "file", "file": {"file_id": "f"}}])}, 4000, 4000),
        ({"messages": _said("hi"), "tools": [_TOOL]}, 200, 260),
        (
            {"messages": _said("hi"), "response_format": {"type": "json_schema", "json_schema": {
                "name": "s", "schema": {"type": "object", "description": "d" * 300}}}}, 100, 150,
        ),
    ],
)  # fmt: skip
def test_a_chats_input_is_estimated_upwards(params: dict[str, Any], at_least: int, at_most: int) -> None:
    assert at_least <= estimate("chat", **params).input_tokens <= at_most


def test_sound_in_a_chat_counts_as_sound_and_as_tokens() -> None:
    part = {"type": "input_audio", "input_audio": {"data": "A" * 4 * 16_000, "format": "wav"}}
    usage = estimate("chat", messages=_said([part]))
    assert usage.audio_ms == 3001
    assert usage.input_tokens >= 96


@pytest.mark.parametrize(
    ("modality", "params", "expected"),
    [
        ("chat", {}, DEFAULT_OUTPUT_TOKENS),
        ("chat", {"max_tokens": 7}, 7),
        ("chat", {"max_tokens": 7, "max_completion_tokens": 9}, 9),
        ("chat", {"max_tokens": 7, "n": 3}, 21),
        ("completion", {"max_tokens": 0}, 0),
        ("completion", {"max_tokens": None}, DEFAULT_OUTPUT_TOKENS),
        ("completion", {"prompt": ["a", "b"], "max_tokens": 5, "n": 2}, 20),
        ("completion", {"prompt": "a", "max_tokens": 5, "n": 2, "best_of": 4}, 20),
        ("embedding", {}, 0),
    ],
)
def test_the_output_is_the_clients_limit_for_every_choice(
    modality: str, params: dict[str, Any], expected: int
) -> None:
    usage = estimate(modality, **params)
    assert (usage.output_tokens, usage.source) == (expected, "estimated")


@pytest.mark.parametrize(
    ("given", "at_least", "at_most"),
    [
        ("a" * 300, 100, 110), (["a" * 300] * 2, 200, 220), ([1, 2, 3], 3, 3), ([[1, 2], [3]], 3, 3),
        ([2**40] * 50, 50, 50),
    ],
)  # fmt: skip
def test_token_ids_are_counted_and_texts_estimated(given: Any, at_least: int, at_most: int) -> None:
    assert at_least <= estimate("embedding", input=given).input_tokens <= at_most
    assert at_least <= estimate("completion", prompt=given).input_tokens <= at_most


# Counting tokens uses none.
@pytest.mark.parametrize("modality", sorted(modalities().keys() - {"token_count"}))
def test_every_modality_estimates_more_than_nothing_for_its_example(modality: str) -> None:
    usage = estimate(modality)
    assert usage.total_tokens or usage.images or usage.characters or usage.audio_ms


def test_an_estimate_never_needs_the_body() -> None:
    for record in modalities().values():
        request = msgspec.convert({"model": "m", **record.example}, record.request)
        assert isinstance(record.estimate(request, 0), Usage)


def _kinds(chunks: Sequence[Chunk]) -> list[type]:
    return [type(chunk) for chunk in chunks]


async def test_the_other_chunks_pass_untouched() -> None:
    limits = Limits(*QUOTAS)
    collected = Collector()
    await build([limits.ring], answers)(call_of(max_tokens=1), collected)
    assert _kinds(collected.chunks) == [Started, Delta, Finished]


SECONDS = quota(Unit.AUDIO_SECONDS, 60, Window.DAY)


async def _spoken(seconds: int) -> AsyncIterator[Frame]:
    for _ in range(seconds):
        yield Frame(bytes(32_000))


def _hearing(limits: Limits) -> Handler:
    """Says after each second how much it was, as an engine does, and is settled as the meter does it."""

    async def inner(call: Call, emit: Emit) -> None:
        assert call.incoming is not None
        heard_s = 0
        try:
            await emit(Started("m", "w"))
            async for _ in call.incoming:
                heard_s += 1
                await emit(Delta(TranscriptDelta("partial", text="word", duration_s=heard_s)))
            await emit(Finished(Usage(audio_ms=heard_s * 1000)))
        finally:
            assert call.reservation is not None
            await limits.limiter.settle(call.reservation, Usage(audio_ms=heard_s * 1000), 0)

    return build([limits.ring], inner)


def _listening(seconds: int, live: Live | None = None) -> Call:
    call = make_call("transcription")
    request = TranscriptionRequest(model="m", live=live or Live())
    return replace(call, principal=CALLER, request=request, incoming=_spoken(seconds))


@pytest.mark.parametrize("live", [Live(), Live(format="opus")], ids=["bytes tell", "only the engine tells"])
async def test_a_live_call_ends_where_its_limit_does(live: Live) -> None:
    limits = Limits(SECONDS, SLOTS)
    collector = Collector()
    with pytest.raises(RateLimited, match="audio"):
        await _hearing(limits)(_listening(300, live), collector)
    (end,) = [chunk for chunk in collector.chunks if isinstance(chunk, Finished)]
    # What an engine tells, it has heard already.
    most_s = 60 if live.format == "pcm16" else 61
    assert 60_000 <= end.usage.audio_ms <= most_s * 1000
    assert await limits.used() == [end.usage.audio_ms // 1000, 0]
    assert limits.limiter.open == 0


async def test_a_live_call_within_its_limit_is_settled_for_what_was_said() -> None:
    limits = Limits(SECONDS, SLOTS)
    await _hearing(limits)(_listening(45), Collector())
    assert await limits.used() == [45, 0]
    assert limits.limiter.open == 0


async def test_two_live_calls_share_what_is_left() -> None:
    limits = Limits(SECONDS)
    calls = [_hearing(limits)(_listening(50), Collector()) for _ in range(2)]
    await asyncio.gather(*calls, return_exceptions=True)
    (used,) = await limits.used()
    assert used <= 62
    assert limits.limiter.open == 0


async def test_a_live_call_that_is_cancelled_gives_back_what_it_held() -> None:
    limits = Limits(SECONDS)
    has_heard = asyncio.Event()

    async def inner(call: Call, emit: Emit) -> None:
        assert call.incoming is not None
        for _ in range(40):
            await anext(call.incoming)
        has_heard.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(build([limits.ring], inner)(_listening(50), Collector()))
    await has_heard.wait()
    task.cancel()
    await asyncio.wait([task])
    assert await limits.used() == [0]
    assert limits.limiter.open == 0


# --- room in the process -----------------------------------------------------------------------------


REALTIME, INTERACTIVE, BATCH = Criticality


def fill(doorway: Doorway, kind: Criticality, tenant: str = "ten_a") -> int:
    """How many more such calls there is room for."""
    for number in range(10_000):
        try:
            doorway.enter(kind, tenant)
        except Overloaded:
            return number
    raise AssertionError("nothing bounds it")


def test_the_last_of_the_room_is_for_the_more_critical() -> None:
    doorway = Doorway(100)
    assert fill(doorway, BATCH) == 65
    with pytest.raises(Overloaded) as batch:
        doorway.enter(BATCH, "ten_a")
    assert fill(doorway, INTERACTIVE) == 25
    with pytest.raises(Overloaded) as interactive:
        doorway.enter(INTERACTIVE, "ten_a")
    assert fill(doorway, REALTIME) == 10
    with pytest.raises(Overloaded) as realtime:
        doorway.enter(REALTIME, "ten_a")
    reasons = [caught.value.reason for caught in (batch, interactive, realtime)]
    assert reasons == ["shed_batch", "gateway_full", "gateway_full"]
    assert (batch.value.retry_after_s or 0) > (interactive.value.retry_after_s or 0) > 0
    doorway.leave("ten_a")
    assert fill(doorway, INTERACTIVE) == 0, "what a realtime call left is for realtime calls"
    assert fill(doorway, REALTIME) == 1


def test_a_tenant_that_floods_leaves_some_of_the_room_to_others() -> None:
    doorway = Doorway(100)
    assert fill(doorway, INTERACTIVE, "noisy") == 90
    assert fill(doorway, INTERACTIVE, "victim") == 5
    assert fill(doorway, INTERACTIVE, "noisy") == 0
    for _ in range(95):
        doorway.leave("noisy" if _ < 90 else "victim")
    assert fill(doorway, INTERACTIVE, "victim") == 90, "alone, it may have all of it"


@pytest.mark.parametrize("most", range(1, 12))
def test_however_small_the_room_it_has_a_place_for_everybody_and_no_more_than_it_has(most: int) -> None:
    for kind in Criticality:
        assert 1 <= fill(Doorway(most), kind) <= most
    assert fill(Doorway(most), REALTIME) == most


async def test_what_was_refused_leaves_nothing_behind() -> None:
    handler = build([Admit(max_inflight=1)], answers)
    for _ in range(5):
        await handler(call_of(), Collector())
    hanging = asyncio.Event()

    async def hang(call: Call, emit: Emit) -> None:
        await hanging.wait()

    ring = Admit(max_inflight=1)
    first = asyncio.ensure_future(build([ring], hang)(call_of(), Collector()))
    await asyncio.sleep(0)
    for _ in range(3):
        with pytest.raises(Overloaded, match="1 calls are in flight") as caught:
            await build([ring], answers)(call_of(), Collector())
        assert caught.value.reason == "gateway_full"
    hanging.set()
    await first
    await build([ring], answers)(call_of(), Collector())


# --- how critical a call is ---------------------------------------------------------------------------


RAISED = replace(CALLER, scopes=CALLER.scopes | {REALTIME_SCOPE})


@pytest.mark.parametrize(
    ("header", "tier", "principal", "kind"),
    [
        (None, None, CALLER, INTERACTIVE),
        (None, "auto", CALLER, INTERACTIVE),
        (b"batch", None, CALLER, BATCH),
        (b" Interactive ", "flex", CALLER, INTERACTIVE),
        (None, "flex", CALLER, BATCH),
        # A wish without the right is no reason to refuse a call.
        (None, "priority", CALLER, INTERACTIVE),
        (None, "priority", RAISED, REALTIME),
        (b"realtime", None, RAISED, REALTIME),
        (b"batch", "priority", RAISED, BATCH),
    ],
)
def test_who_says_how_critical_a_call_is(
    header: bytes | None, tier: str | None, principal: Principal, kind: Criticality
) -> None:
    request = make_call("chat", "m", service_tier=tier).request
    headers = {} if header is None else {HEADER: header}
    assert criticality_of(headers, request, principal) is kind


def test_nobody_raises_himself() -> None:
    request = make_call("chat", "m").request
    with pytest.raises(Forbidden, match="'criticality:realtime'"):
        criticality_of({HEADER: b"realtime"}, request, CALLER)
    with pytest.raises(Invalid, match="allowed: realtime, interactive, batch") as caught:
        criticality_of({HEADER: b"urgent"}, request, RAISED)
    assert caught.value.param == "x-inferhub-criticality"
    # No role has the right but the platform's own; a key is given it by name, and not one of `free`.
    assert [role for role in Role if REALTIME_SCOPE in effective_scopes(role, None)] == [Role.ADMIN]
    named = frozenset({"inference:chat", REALTIME_SCOPE})
    may_have = {role for role in Role if REALTIME_SCOPE in effective_scopes(role, named)}
    assert may_have == {Role.ADMIN, Role.TENANT_ADMIN, Role.ENTERPRISE}
    check_scopes(named, Role.ENTERPRISE)
    with pytest.raises(Invalid, match="does not have the scope 'criticality:realtime'"):
        check_scopes(named, Role.FREE)


# --- reasons ---------------------------------------------------------------------------------------------


def test_whatever_is_429_or_503_has_a_reason_that_is_explained() -> None:
    for kind in family(InferHubError):
        if (kind.http in (429, 503) and kind is not ServerUnreachable) or kind.default_reason:
            assert kind.default_reason in REASONS, kind
    headers = dict(error_headers(Overloaded(reason="shed_batch", retry_after_s=5.0)))
    assert headers[b"x-inferhub-reason"] == b"shed_batch"
    assert b"x-inferhub-reason" not in dict(error_headers(Invalid()))


def test_a_reason_crosses_the_wire_and_a_made_up_one_does_not() -> None:
    for error in (Overloaded(reason="cold_start"), NoEndpoint(), RateLimited(), Invalid()):
        assert decode_error(encode_error(error)).reason == error.reason
    sent = encode_error(Overloaded())
    sent.reason = "new\r\nset-cookie: a=b"
    assert decode_error(sent).reason == "queue_full"
