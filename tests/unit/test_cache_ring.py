"""The cache ring around the echo: what is kept, for whom, who computes, and what happens when things fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st

from inferhub.backends.echo import Echo
from inferhub.core.call import Call, Chunk, Delta, Emit, Finished, Handler, Started
from inferhub.core.errors import (
    ContextOverflow,
    DeadlineExceeded,
    ModelNotFound,
    Unsupported,
    UpstreamFailed,
)
from inferhub.core.models import ModelSpec, ModelStatus
from inferhub.core.serving import Endpoint
from inferhub.core.traffic import alias
from inferhub.core.usage import Usage
from inferhub.modalities import modalities
from inferhub.modalities.base import Envelope
from inferhub.modalities.chat import ChatDelta, FunctionDelta, TokenLogprob, ToolCallDelta
from inferhub.modalities.embedding import EmbeddingDelta
from inferhub.pipeline.attempt import Attempt
from inferhub.pipeline.cache import Cache
from inferhub.pipeline.cache.keys import Question, exact_key, fields_of
from inferhub.pipeline.cache.record import Answer, coalesce, decode, encode
from inferhub.pipeline.deadline import Deadline
from inferhub.pipeline.directory import Directory
from inferhub.pipeline.dispatch import Dispatch
from inferhub.pipeline.onion import build
from inferhub.routing import Router, RouterLimits
from inferhub.stores.cache.memory import MemoryAnswers
from inferhub.stores.cache.sealed import SealedAnswers
from inferhub.stores.cache.tiered import TieredAnswers
from inferhub.testing.calls import TESTER, Collector, make_call

MIB = 1024**2
ENVELOPE = Envelope("id", 0, "m")


class Hub:
    """A ring over an echo that counts what reaches it, and lets through what it is told to."""

    def __init__(self, **options: Any) -> None:
        self.calls: list[Call] = []
        self.version = "m#1"
        self.gate: Callable[[Call], Any] | None = None
        self.shared = MemoryAnswers(16 * MIB)
        self._options = options

    async def start(self) -> None:
        self.echo = Echo(ModelSpec("m", "echo", options=self._options), None)
        await self.echo.load()
        self.handler, self.store = self.gateway()

    def gateway(self, *, patience_s: float = 30.0) -> tuple[Handler, TieredAnswers]:
        """A process of its own, with the same shared store behind it."""
        store = TieredAnswers(MemoryAnswers(16 * MIB), SealedAnswers(self.shared, b"pepper of the tests"))
        attempt = Attempt(Router(RouterLimits()), self.directory)
        cache = Cache(store, self.directory, ttl_s=60, patience_s=patience_s)
        return build([cache, attempt], Dispatch(self.directory)), store

    def directory(self) -> Directory:
        status = ModelStatus(ModelSpec(self.version, "echo"), self.echo.capabilities, "cpu")
        return Directory({"m": (Endpoint("w1", status, self._infer),)}, {"route": alias("route", "m")})

    async def _infer(self, call: Call, emit: Emit) -> None:
        self.calls.append(call)
        if self.gate is not None:
            await self.gate(call)
        async with aclosing(self.echo.run(call)) as items:
            async for item in items:
                await emit(item)

    async def ask(self, modality: str = "chat", handler: Handler | None = None, **params: Any) -> list[Chunk]:
        return await self.send(a_call(modality, **params), handler)

    async def send(self, call: Call, handler: Handler | None = None) -> list[Chunk]:
        emit = Collector()
        await (handler or self.handler)(call, emit)
        check_order(emit.chunks)
        return emit.chunks


def a_call(modality: str = "chat", *, wish: Any = "auto", tenant: str = "ten_a", **params: Any) -> Call:
    if modality != "embedding":
        params.setdefault("temperature", 0)
    model = params.pop("model", "m")
    call = make_call(modality, model, **{k: v for k, v in params.items() if v is not None})
    return replace(call, cache=wish, principal=replace(TESTER, tenant_id=tenant))


def check_order(chunks: list[Chunk]) -> None:
    assert isinstance(chunks[0], Started)
    assert isinstance(chunks[-1], Finished)
    assert all(isinstance(chunk, Delta) for chunk in chunks[1:-1])


def told(chunks: list[Chunk]) -> str:
    assert isinstance(chunks[0], Started)
    return chunks[0].cache


def folded(chunks: list[Chunk], modality: str = "chat", **params: Any) -> bytes:
    record = modalities()[modality]
    call = a_call(modality, **params)
    end = chunks[-1]
    assert isinstance(end, Finished)
    payloads = [chunk.payload for chunk in chunks if isinstance(chunk, Delta)]
    return record.fold(call.request, ENVELOPE, payloads, end.usage)


@pytest_asyncio.fixture
async def hub() -> AsyncIterator[Hub]:
    hub = Hub()
    await hub.start()
    yield hub
    await hub.store.close()


# --- what is kept ------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["chat", "completion"])
@pytest.mark.parametrize(("first", "then"), [(False, False), (False, True), (True, False), (True, True)])
async def test_an_answer_is_given_again_streamed_or_not(
    hub: Hub, modality: str, first: bool, then: bool
) -> None:
    text = {"messages": [{"role": "user", "content": "one two three " * 30}]}
    params: dict[str, Any] = text if modality == "chat" else {"prompt": "one two three", "max_tokens": 3}
    miss = await hub.ask(modality, stream=first, **params)
    hit = await hub.ask(modality, stream=then, **params)
    assert (told(miss), told(hit)) == ("miss", "hit")
    assert len(hub.calls) == 1
    assert len(hit) < len(miss)
    assert hit[-1] == miss[-1]
    assert isinstance(hit[0], Started)
    assert (hit[0].model, hit[0].endpoint) == ("m", "cache")
    assert folded(hit, modality, **params) == folded(miss, modality, **params)
    record = modalities()[modality]
    assert record.writer is not None
    writer = record.writer(a_call(modality, stream=True, **params).request, ENVELOPE)
    events = [writer.delta(chunk.payload) for chunk in hit if isinstance(chunk, Delta)]
    assert b'"finish_reason":"stop"' in events[-1] or b'"finish_reason":"length"' in events[-1]


async def test_a_route_and_its_model_share_answers_and_another_version_does_not(hub: Hub) -> None:
    assert told(await hub.ask(model="route")) == "miss"
    assert told(await hub.ask(model="m")) == "hit"
    hub.version = "m#2"
    assert told(await hub.ask()) == "miss"
    hub.version = "m#1"
    assert told(await hub.ask()) == "hit"


async def test_tenants_never_share(hub: Hub) -> None:
    assert told(await hub.ask(tenant="ten_a")) == "miss"
    assert told(await hub.ask(tenant="ten_b")) == "miss"
    assert told(await hub.ask(tenant="ten_a")) == told(await hub.ask(tenant="ten_b")) == "hit"
    assert told(await hub.ask("embedding", tenant="ten_a", input="x")) == "miss"
    assert told(await hub.ask("embedding", tenant="ten_b", input="x")) == "miss"
    assert len(hub.calls) == 4


async def test_tenants_never_wait_for_each_other(hub: Hub) -> None:
    release = asyncio.Event()
    hub.gate = lambda call: release.wait()
    tasks = [asyncio.create_task(hub.ask(tenant=tenant)) for tenant in ("ten_a", "ten_b")]
    await until(lambda: len(hub.calls) == 2)
    release.set()
    assert [told(chunks) for chunks in await asyncio.gather(*tasks)] == ["miss", "miss"]


@pytest.mark.parametrize(
    ("params", "is_kept"),
    [
        ({}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": None}, False),
        ({"temperature": 0.7}, False),
        ({"temperature": 0.7, "seed": 1}, True),
        ({"n": 1}, True),
        ({"n": 2}, False),
        ({"store": True}, False),
        ({"store": False}, True),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, True),
    ],
)
async def test_only_deterministic_calls_are_kept_unless_asked(
    hub: Hub, params: dict[str, Any], is_kept: bool
) -> None:
    expected = ["miss", "hit"] if is_kept else ["", ""]
    if params.get("store"):
        # The echo offers no storing; what counts is that the cache is not asked.
        with pytest.raises(Unsupported):
            await hub.ask(**params)
        return
    assert [told(await hub.ask(**params)) for _ in range(2)] == expected
    opted_in = [told(await hub.ask(wish="on", **params)) for _ in range(2)]
    assert opted_in == (["hit", "hit"] if is_kept else ["miss", "hit"])


def test_what_lies_elsewhere_is_not_deterministic() -> None:
    from inferhub.pipeline.cache.policy import is_cacheable

    def with_part(part: dict[str, Any], **params: Any) -> Call:
        return a_call(messages=[{"role": "user", "content": [part]}], **params)

    def image(url: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": url}}

    assert is_cacheable(with_part(image("data:image/png;base64,AAAA")))
    assert not is_cacheable(with_part(image("https://example.com/now.png")))
    assert is_cacheable(with_part(image("https://example.com/now.png"), wish="on"))
    assert not is_cacheable(with_part({"type": "file", "file": {"file_id": "f"}}))
    assert not is_cacheable(a_call(web_search_options={}))
    assert not is_cacheable(a_call(store=True, wish="on"))
    assert is_cacheable(a_call("completion"))
    assert not is_cacheable(a_call("completion", best_of=2))


async def test_off_neither_reads_nor_writes(hub: Hub) -> None:
    assert told(await hub.ask(wish="off")) == ""
    assert told(await hub.ask()) == "miss"
    assert told(await hub.ask(wish="off")) == ""
    assert len(hub.calls) == 3


async def test_semantic_is_refused_where_there_is_none(hub: Hub) -> None:
    with pytest.raises(Unsupported, match="semantic_cache_model") as caught:
        await hub.ask(wish="semantic")
    assert caught.value.param == "x-inferhub-cache"


async def test_an_answer_ends_with_its_time() -> None:
    hub = Hub()
    await hub.start()
    now_s = [1000.0]
    store = TieredAnswers(MemoryAnswers(MIB, lambda: now_s[0]), None)
    handler = build([Cache(store, hub.directory, ttl_s=60)], Dispatch(hub.directory))
    assert told(await hub.ask(handler=handler)) == "miss"
    now_s[0] += 59
    assert told(await hub.ask(handler=handler)) == "hit"
    now_s[0] += 2
    assert told(await hub.ask(handler=handler)) == "miss"


@pytest.mark.parametrize("fail_at", [0, 2])
async def test_a_broken_answer_is_never_kept(fail_at: int) -> None:
    hub = Hub(fail_every=1, fail_at=fail_at)
    await hub.start()
    content = {"messages": [{"role": "user", "content": "one two three four"}]}
    for _ in range(2):
        with pytest.raises(UpstreamFailed):
            await hub.ask(**content)
    assert hub.shared.size_bytes == 0
    # Without content nothing had been said, and the attempt ring tried again each time.
    assert len(hub.calls) == (4 if fail_at == 0 else 2)


async def test_a_flaky_model_answers_once_and_then_from_the_cache() -> None:
    hub = Hub(fail_every=2)
    await hub.start()
    assert told(await hub.ask(user="x")) == "miss"
    first = await hub.ask(user="y", seed=1)
    # The second call of the echo failed and was tried again.
    assert isinstance(first[0], Started)
    assert (first[0].attempt, len(hub.calls)) == (2, 3)
    assert told(await hub.ask(seed=1)) == "hit"
    await hub.store.close()


async def test_errors_are_those_of_the_inside(hub: Hub) -> None:
    with pytest.raises(ModelNotFound):
        await hub.ask(model="nobody")
    with pytest.raises(ContextOverflow) as caught:
        await hub.ask(messages=[{"role": "user", "content": "word " * 5000}])
    assert caught.value.endpoint == "w1"


async def test_a_damaged_value_is_computed_again(hub: Hub) -> None:
    call = a_call()
    await hub.send(call)
    key = exact_key(Question(call, "m", "m#1", fields_of(call)))
    for junk in (b"", b"junk", encode(Answer([1, 2], Usage())), b"\x93\x90\x80\x90"):
        await hub.store.keep([(key, junk)], 60)
        assert told(await hub.send(call)) in ("miss", "hit")
        assert told(await hub.send(call)) == "hit"
    assert len(hub.calls) >= 4


async def test_another_gateway_finds_it_in_the_shared_store(hub: Hub) -> None:
    await hub.ask()
    handler, store = hub.gateway()
    assert told(await hub.ask(handler=handler)) == "hit"
    assert len(hub.calls) == 1
    await store.close()


async def test_ignored_parameters_are_named_again(hub: Hub) -> None:
    call = replace(a_call(strange=1), unknown_params=("strange",))
    for expected in ("miss", "hit"):
        chunks = await hub.send(call)
        assert isinstance(chunks[0], Started)
        assert (told(chunks), chunks[0].ignored_params) == (expected, ("strange",))


async def test_an_answer_that_is_too_large_is_passed_on_and_not_kept(hub: Hub) -> None:
    text = "x" * (5 * MIB)
    for _ in range(2):
        chunks = await hub.ask(messages=[{"role": "user", "content": text}])
        assert told(chunks) == "miss"
        assert sum(len(c.payload.content or "") for c in chunks if isinstance(c, Delta)) == len(text)


# --- what is the same --------------------------------------------------------------------------------


def key_of(call: Call) -> bytes:
    return exact_key(Question(call, "m", "m#1", fields_of(call)))


def with_body(body: str | bytes) -> Call:
    """The body as it came; its request is not looked at."""
    return replace(a_call(), body=body.encode() if isinstance(body, str) else body)


SAME = '{"model":"m","messages":[{"role":"user","content":"h\u00e9 \U0001f600"}],"temperature":0}'


@pytest.mark.parametrize(
    "other",
    [
        '{"temperature":0,"messages":[{"content":"h\u00e9 \U0001f600","role":"user"}],"model":"m"}',
        ' {"model" : "m" ,\n"messages":\t[ { "role":"user","content":"h\\u00e9 \\ud83d\\ude00" } ],"temperature": 0 } ',
        SAME[:-1] + ',"stream":true,"stream_options":{"include_usage":true}}',
        SAME[:-1] + ',"user":"u","metadata":{"a":"b"},"store":false,"n":null,"seed":null}',
        SAME.replace('"m"', '"route"'),
    ],
)
def test_the_same_request_in_other_words_of_json(other: str) -> None:
    assert key_of(with_body(other)) == key_of(with_body(SAME))


@pytest.mark.parametrize(
    "other",
    [
        SAME[:-1] + ',"max_tokens":5}',
        SAME[:-1] + ',"n":1}',
        SAME[:-1] + ',"strange":null}',
        SAME[:-1] + ',"strange":1}',
        SAME[:-1] + ',"seed":0}',
        SAME.replace("h\u00e9", "he\u0301"),
        SAME.replace("h\u00e9", "H\u00e9"),
        SAME.replace("h\u00e9 ", "h\u00e9  "),
        SAME.replace('"temperature":0', '"temperature":0.0000000001'),
        SAME.replace('{"role":"user","content"', '{"role":"user","name":null,"content"'),
        SAME.replace("user", "system"),
    ],
)
def test_another_request(other: str) -> None:
    assert key_of(with_body(other)) != key_of(with_body(SAME))


def test_numbers_that_only_some_decoders_tell_apart_stay_apart() -> None:
    spelled = [
        "0.1",
        "0.10000000000000001",
        "1",
        "1.0",
        "1e0",
        "12345678901234567890123",
        "12345678901234567890124",
        "1e400",
        "1e401",
    ]
    keys = {key_of(with_body(SAME[:-1] + f',"x":{number}}}')) for number in spelled}
    assert len(keys) == len(spelled)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
_bodies = st.dictionaries(
    st.sampled_from(["messages", "temperature", "tools", "x", "y", "stop"]), _json, max_size=5
)


def spelled_otherwise(value: Any, draw: Callable[[st.SearchStrategy[Any]], Any]) -> str:
    """The same JSON: members in another order, white space, escapes."""
    import json

    space = draw(st.sampled_from(["", " ", "\n\t"]))
    if isinstance(value, dict):
        names = draw(st.permutations(list(value)))
        inside = [f"{spelled_otherwise(n, draw)}{space}:{spelled_otherwise(value[n], draw)}" for n in names]
        return f"{{{space}{f'{space},'.join(inside)}{space}}}"
    if isinstance(value, list):
        return f"[{space}{f',{space}'.join(spelled_otherwise(item, draw) for item in value)}]"
    return json.dumps(value, ensure_ascii=draw(st.booleans()))


@given(_bodies, st.data())
@settings(max_examples=200, deadline=None)
def test_spelling_never_matters(body: dict[str, Any], data: st.DataObject) -> None:
    one, other = (spelled_otherwise(body, data.draw) for _ in range(2))
    assert key_of(with_body(one)) == key_of(with_body(other))


@given(_bodies, _bodies)
@settings(max_examples=300, deadline=None)
def test_different_requests_never_share_a_key(one: dict[str, Any], other: dict[str, Any]) -> None:
    import json

    def meaning(body: dict[str, Any]) -> str:
        # Of what is known, null is absent; type and value of everything else count.
        kept = {n: v for n, v in body.items() if v is not None or n in ("x", "y")}
        return json.dumps(kept, sort_keys=True)

    are_same = key_of(with_body(json.dumps(one))) == key_of(with_body(json.dumps(other)))
    assert are_same == (meaning(one) == meaning(other))


def test_tenant_version_and_modality_are_in_the_key() -> None:
    call = a_call()
    fields = fields_of(call)
    keys = {
        exact_key(Question(call, "m", "m#1", fields)),
        exact_key(Question(call, "m", "m#2", fields)),
        exact_key(Question(replace(call, modality="completion"), "m", "m#1", fields)),
        exact_key(Question(replace(call, principal=replace(TESTER, tenant_id="ten_z")), "m", "m#1", fields)),
    }
    assert len(keys) == 4


# --- how it is kept ----------------------------------------------------------------------------------


def test_pieces_are_joined_and_the_answer_stays_the_same() -> None:
    log = [TokenLogprob("a", -1.0)]
    pieces = [
        *(ChatDelta(0, f"w{n} ") for n in range(10)),
        ChatDelta(1, "other"),
        ChatDelta(0, "back"),
        ChatDelta(0, reasoning_content="hm"),
        ChatDelta(0, reasoning_content=" hm"),
        ChatDelta(0, "a", logprobs=log),
        ChatDelta(0, "b", logprobs=log),
        ChatDelta(0, tool_calls=[ToolCallDelta(0, "id", "function", FunctionDelta("f", ""))]),
        *(ChatDelta(0, tool_calls=[ToolCallDelta(0, function=FunctionDelta(None, c))]) for c in '{"a":1}'),
        ChatDelta(0, tool_calls=[ToolCallDelta(1, "id2", "function", FunctionDelta("g", ""))]),
        *(ChatDelta(0, tool_calls=[ToolCallDelta(1, function=FunctionDelta(None, c))]) for c in "{}"),
        ChatDelta(0, "x", finish_reason="stop"),
        ChatDelta(1, finish_reason="length"),
    ]
    before = msgspec.json.encode(pieces)
    joined = coalesce("chat", pieces)
    assert msgspec.json.encode(pieces) == before
    assert len(joined) == 12
    request = a_call().request
    fold = modalities()["chat"].fold
    assert fold(request, ENVELOPE, joined, Usage(1, 1)) == fold(request, ENVELOPE, pieces, Usage(1, 1))
    answer = Answer(joined, Usage(3, 4, 1, 2, "estimated", 5, 6, 7, 8), ("a", "b"))
    assert decode("chat", encode(answer)) == answer


def test_a_long_answer_stays_in_several_pieces() -> None:
    joined = coalesce("chat", [ChatDelta(0, "x" * 100) for _ in range(1000)])
    assert 20 <= len(joined) <= 30
    assert "".join(delta.content for delta in joined) == "x" * 100_000


# --- who computes ------------------------------------------------------------------------------------


async def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0)


async def settle_down() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_identical_calls_are_computed_once(hub: Hub) -> None:
    release = asyncio.Event()
    hub.gate = lambda call: release.wait()
    tasks = [asyncio.create_task(hub.ask(stream=bool(n % 2))) for n in range(50)]
    await settle_down()
    release.set()
    answers = await asyncio.gather(*tasks)
    assert len(hub.calls) == 1
    assert sorted(told(chunks) for chunks in answers) == ["hit"] * 49 + ["miss"]
    assert len({folded(chunks) for chunks in answers}) == 1


async def test_a_leader_that_is_cancelled_is_replaced_by_one(hub: Hub) -> None:
    release = asyncio.Event()
    hub.gate = lambda call: release.wait()
    tasks = [asyncio.create_task(hub.ask()) for _ in range(10)]
    await settle_down()
    for number in range(3):
        assert len(hub.calls) == number + 1
        tasks[number].cancel()
        await until(lambda number=number: len(hub.calls) == number + 2)  # type: ignore[misc]
    await settle_down()
    assert len(hub.calls) == 4
    release.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(a, asyncio.CancelledError) for a in answers] == [True] * 3 + [False] * 7
    assert len(hub.calls) == 4
    assert told(await hub.ask()) == "hit"


async def test_a_follower_that_is_cancelled_leaves_the_leader_alone(hub: Hub) -> None:
    release = asyncio.Event()
    hub.gate = lambda call: release.wait()
    leader, gone, other = [asyncio.create_task(hub.ask()) for _ in range(3)]
    await settle_down()
    gone.cancel()
    await settle_down()
    assert gone.cancelled()
    assert not leader.done()
    release.set()
    assert (told(await leader), told(await other)) == ("miss", "hit")
    assert len(hub.calls) == 1


async def test_a_leader_whose_client_hangs_up_in_the_middle_is_replaced(hub: Hub) -> None:
    begun = asyncio.Event()

    async def stuck(chunk: Chunk) -> None:
        begun.set()
        await asyncio.Event().wait()

    leader = asyncio.create_task(hub.handler(a_call(stream=True), stuck))
    await begun.wait()
    follower = asyncio.create_task(hub.ask())
    await settle_down()
    assert not follower.done()
    leader.cancel()
    assert told(await follower) == "miss"
    assert len(hub.calls) == 2


async def test_a_leader_that_fails_takes_nobody_with_it(hub: Hub) -> None:
    release = asyncio.Event()

    async def gate(call: Call) -> None:
        await release.wait()
        if len(hub.calls) <= 2:
            # The first one and its second attempt.
            raise UpstreamFailed("first")

    hub.gate = gate
    tasks = [asyncio.create_task(hub.ask()) for _ in range(5)]
    await settle_down()
    assert len(hub.calls) == 1
    release.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(answers[0], UpstreamFailed)
    assert [told(chunks) for chunks in answers[1:] if not isinstance(chunks, BaseException)] == [
        "miss",
        "hit",
        "hit",
        "hit",
    ]
    assert len(hub.calls) == 3


async def test_a_follower_waits_no_longer_than_its_own_deadline(hub: Hub) -> None:
    release = asyncio.Event()
    hub.gate = lambda call: release.wait()
    handler = build([Deadline()], hub.handler)
    leader = asyncio.create_task(hub.ask())
    await settle_down()
    with pytest.raises(DeadlineExceeded):
        await hub.send(replace(a_call(), deadline_s=time.monotonic() + 0.05), handler)
    release.set()
    assert told(await leader) == "miss"


async def test_patience_with_a_leader_ends_and_one_more_computes() -> None:
    hub = Hub()
    await hub.start()
    handler, store = hub.gateway(patience_s=0.1)
    releases = [asyncio.Event() for _ in range(3)]
    hub.gate = lambda call: releases[len(hub.calls) - 1].wait()
    tasks = [asyncio.create_task(hub.ask(handler=handler)) for _ in range(8)]
    await settle_down()
    assert len(hub.calls) == 1
    await until_calls(hub, 2)
    # Whoever was first gives it to all.
    releases[0].set()
    answers = await asyncio.gather(*[task for task in tasks if task is not tasks[1]][:1])
    assert told(answers[0]) == "miss"
    for release in releases:
        release.set()
    assert len(await asyncio.gather(*tasks)) == 8
    assert len(hub.calls) <= 3
    await store.close()
    await hub.store.close()


async def until_calls(hub: Hub, count: int) -> None:
    deadline_s = time.monotonic() + 30
    while len(hub.calls) < count:
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.005)


async def test_an_answer_that_came_while_the_shared_store_was_asked_is_not_computed_again(hub: Hub) -> None:
    late = asyncio.Event()

    class Late(MemoryAnswers):
        questions = 0

        async def get(self, key: bytes) -> bytes | None:
            self.questions += 1
            if self.questions == 1:
                await late.wait()
                return None
            return await super().get(key)

    store = TieredAnswers(MemoryAnswers(MIB), Late(MIB), timeout_s=30)
    handler = build([Cache(store, hub.directory, ttl_s=60)], Dispatch(hub.directory))
    slow = asyncio.create_task(hub.ask(handler=handler))
    await settle_down()
    assert told(await hub.ask(handler=handler)) == "miss"
    late.set()
    assert told(await slow) == "hit"
    assert len(hub.calls) == 1
    await store.close()


async def test_different_calls_do_not_wait_for_each_other(hub: Hub) -> None:
    release = asyncio.Event()

    async def gate(call: Call) -> None:
        if b"slow" in call.body:
            await release.wait()

    hub.gate = gate
    slow = asyncio.create_task(hub.ask(messages=[{"role": "user", "content": "slow"}]))
    await settle_down()
    assert told(await hub.ask()) == "miss"
    release.set()
    await slow


# --- embeddings --------------------------------------------------------------------------------------


def vectors(chunks: list[Chunk]) -> list[bytes]:
    payloads = [chunk.payload for chunk in chunks if isinstance(chunk, Delta)]
    assert all(isinstance(payload, EmbeddingDelta) for payload in payloads)
    assert [payload.index for payload in payloads] == list(range(len(payloads)))
    return [payload.vector for payload in payloads]


def tokens(chunks: list[Chunk]) -> int:
    assert isinstance(chunks[-1], Finished)
    return chunks[-1].usage.input_tokens


async def test_only_inputs_that_are_new_go_inward(hub: Hub) -> None:
    plain = vectors(await hub.ask("embedding", wish="off", input=["a", "b b", "c c c", "d"]))
    hub.calls.clear()
    first = await hub.ask("embedding", input=["a", "c c c"])
    assert (told(first), tokens(first)) == ("miss", 4)
    both = await hub.ask(
        "embedding", input=["a", "b b", "c c c", "d", "b b"], user="x", encoding_format="base64"
    )
    assert (told(both), tokens(both)) == ("miss", 3)
    assert vectors(both) == [*plain, plain[1]]
    assert [call.request.input for call in hub.calls] == [["a", "c c c"], ["b b", "d"]]
    assert msgspec.json.decode(hub.calls[1].body)["input"] == ["b b", "d"]
    assert msgspec.json.decode(hub.calls[1].body)["user"] == "x"
    again = await hub.ask("embedding", input="d")
    assert (told(again), tokens(again), vectors(again)) == ("hit", 0, [plain[3]])
    assert len(hub.calls) == 2


async def test_dimensions_and_kinds_of_input_are_told_apart(hub: Hub) -> None:
    await hub.ask("embedding", input="x")
    assert told(await hub.ask("embedding", input="x", dimensions=8)) == "miss"
    assert told(await hub.ask("embedding", input="x", dimensions=8)) == "hit"
    call = a_call("embedding", input="x")
    from inferhub.pipeline.cache.keys import item_keys

    question = Question(call, "m", "m#1", fields_of(call))
    assert len(set(item_keys(question, ["1", [1], "[1]", [1, 1], "1 1"]))) == 5


async def test_identical_embeddings_are_computed_once(hub: Hub) -> None:
    release = asyncio.Event()
    hub.gate = lambda call: release.wait()
    tasks = [asyncio.create_task(hub.ask("embedding", input=["a", "b"])) for _ in range(10)]
    await settle_down()
    tasks[3].cancel()
    tasks[0].cancel()
    await until(lambda: len(hub.calls) == 2)
    release.set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    good = [chunks for chunks in answers if not isinstance(chunks, BaseException)]
    assert len(good) == 8
    assert sorted(told(chunks) for chunks in good) == ["hit"] * 7 + ["miss"]
    assert len({tuple(vectors(chunks)) for chunks in good}) == 1
    assert len(hub.calls) == 2


async def test_a_model_that_leaves_a_vector_out_is_not_believed(hub: Hub) -> None:
    async def broken(call: Call, emit: Emit) -> None:
        await emit(Started("m", "w1"))
        await emit(Delta(EmbeddingDelta(0, b"\0" * 8)))
        await emit(Finished(Usage(1)))

    async def lying(call: Call, emit: Emit) -> None:
        await emit(Delta(EmbeddingDelta(7, b"\0" * 8)))

    for leaf in (broken, lying):
        handler = build([Cache(hub.store, hub.directory, ttl_s=60)], leaf)
        with pytest.raises(UpstreamFailed):
            await handler(a_call("embedding", input=["p", "q"]), Collector())
    assert told(await hub.ask("embedding", input=["p", "q"])) == "miss"


async def test_a_failing_embedding_is_not_kept_in_part() -> None:
    hub = Hub(fail_every=1, fail_at=1)
    await hub.start()
    with pytest.raises(UpstreamFailed):
        await hub.ask("embedding", input=["a", "b"])
    assert hub.shared.size_bytes == 0


# --- without its store -------------------------------------------------------------------------------


async def test_a_call_never_fails_because_of_the_store(hub: Hub) -> None:
    class Gone(MemoryAnswers):
        async def get(self, key: bytes) -> bytes | None:
            await asyncio.Event().wait()
            return None

    store = TieredAnswers(MemoryAnswers(MIB), Gone(MIB), timeout_s=0.05)
    handler = build([Cache(store, hub.directory, ttl_s=60)], Dispatch(hub.directory))
    assert told(await hub.ask(handler=handler)) == "miss"
    assert told(await hub.ask(handler=handler)) == "hit"
    assert store.state() == "memory"
    await store.close()
