"""The Gemini backend against the scripted upstream: strict, a real process, and misbehaving on request."""

from __future__ import annotations

import asyncio
import math
import struct
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from google import genai
from google.genai import types

from inferhub.backends import backend_class
from inferhub.backends.base import Backend, check_options
from inferhub.backends.remote import endpoint_base
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import (
    BackendRefused,
    ContentFiltered,
    ContextOverflow,
    EndpointStalled,
    InferHubError,
    Overloaded,
    SetupError,
    UpstreamDenied,
    UpstreamExhausted,
    UpstreamFailed,
    UpstreamRateLimited,
)
from inferhub.core.models import ModelSpec
from inferhub.core.usage import Usage
from inferhub.hosting import check_model
from inferhub.settings.spec import load_spec
from inferhub.testing.calls import make_call
from inferhub.testing.strict_gemini import violations_of
from inferhub.testing.upstream_dialects.gemini import SIGNATURE
from inferhub.testing.upstream_player import CHANGES, INSTEAD, STRIKES, Record
from inferhub.testing.upstream_process import Upstream
from inferhub.testing.upstream_script import PROMPT_TOKENS

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "AIzaSyCanary0123456789abcdef"
ABORT_SEEN_WITHIN_S = 1.0
COUNTED = Usage(PROMPT_TOKENS, 8, 3)
WORDS = "".join(f"word{i} " for i in range(8))
TOOLS = [{"type": "function", "function": {"name": f"tool{i}"}} for i in range(2)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream(strict=True) as running:
        yield running
        broken = [(r.path, r.body, r.violations) for r in await running.log() if r.violations]
        assert not broken, broken


@asynccontextmanager
async def loaded(base_url: str, name: str = "gemini-2.5-flash", **options: Any) -> AsyncIterator[Backend]:
    spec = ModelSpec(name, "gemini", options={"base_url": base_url, "api_key": KEY, **options})
    backend = backend_class("gemini")(spec, None)
    await backend.load()
    try:
        yield backend
    finally:
        await backend.unload()


def scripted(script: str = "", text: str = "Hello", modality: str = "chat", **params: Any) -> Call:
    """A call that the upstream answers by `script`, which is an instruction of the conversation."""
    messages = [{"role": "system", "content": f"script:{script}"}, {"role": "user", "content": text}]
    return make_call(modality, **{"messages": messages, **params})


async def answer(backend: Backend, call: Call) -> tuple[list[Any], Usage]:
    items: list[Any] = [item async for item in backend.run(call)]
    assert [type(item) for item in items] == [Delta] * (len(items) - 1) + [Finished]
    return [item.payload for item in items[:-1]], items[-1].usage


async def failure(backend: Backend, call: Call) -> tuple[InferHubError, str]:
    """The error, and what was said before it."""
    said = ""
    try:
        async for item in backend.run(call):
            assert isinstance(item, Delta), "a broken answer ended cleanly"
            said += getattr(item.payload, "content", "") or ""
    except InferHubError as error:
        return error, said
    raise AssertionError("the answer ended without an error")


def text_of(deltas: list[Any], index: int = 0) -> str:
    return "".join(d.content or "" for d in deltas if d.index == index)


async def newest(upstream: Upstream) -> Record:
    return (await upstream.log())[-1]


# --- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_stream_and_whole_answer_agree(upstream: Upstream, stream: bool) -> None:
    async with loaded(upstream.url) as backend:
        deltas, usage = await answer(backend, scripted("n=8,odd=1" if stream else "n=8", stream=stream))
    assert (text_of(deltas), usage) == (WORDS, COUNTED)
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["stop"]
    assert len(deltas) == (9 if stream else 2)


@pytest.mark.parametrize("size", [1, 7, 1460])
async def test_however_the_network_cuts_it(upstream: Upstream, size: int) -> None:
    text = "naïve 🌊 👩‍👩‍👧 наступил день"
    async with loaded(upstream.url) as backend:
        deltas, _ = await answer(backend, scripted(f"echo=1,split={size}", text, stream=True))
    assert text_of(deltas) == text


@pytest.mark.parametrize("stream", [True, False])
async def test_the_request_is_googles(upstream: Upstream, stream: bool) -> None:
    async with loaded(upstream.url, name="mine", upstream_model="gemini-2.5-pro") as backend:
        call = scripted("n=2", stream=stream, temperature=0.5)
        await answer(backend, call)
    record = await newest(upstream)
    method = "streamGenerateContent" if stream else "generateContent"
    assert record.path == f"/v1beta/models/gemini-2.5-pro:{method}"
    assert record.query == ("alt=sse" if stream else "")
    assert record.headers["x-goog-api-key"] == KEY
    assert record.headers["idempotency-key"].startswith(f"{call.key}-")
    assert "authorization" not in record.headers


@pytest.mark.parametrize("stream", [True, False])
async def test_functions_thoughts_and_their_signatures(upstream: Upstream, stream: bool) -> None:
    async with loaded(upstream.url) as backend:
        asked = scripted("tools=2,think=2,bad_tools=no_id", stream=stream, tools=TOOLS)
        deltas, usage = await answer(backend, asked)
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert [(c.index, c.function.name, c.function.arguments) for c in calls] == [
        (0, "tool0", ""),
        (0, None, '{"x":0}'),
        (1, "tool1", ""),
        (1, None, '{"x":1}'),
    ]
    assert calls[0].id
    assert calls[2].id not in (None, calls[0].id)
    assert calls[0].extra_content == {"google": {"thought_signature": SIGNATURE}}
    assert "".join(d.reasoning_content or "" for d in deltas) == "thought0 thought1 "
    details = [detail for d in deltas for detail in d.reasoning_details or ()]
    assert [(detail.type, detail.signature) for detail in details] == [("reasoning.text", SIGNATURE)]
    assert deltas[-1].finish_reason == "tool_calls"
    assert usage == Usage(PROMPT_TOKENS, 2 + 2, 3, 2)


@pytest.mark.parametrize("stream", [True, False])
async def test_every_candidate_finishes_once(upstream: Upstream, stream: bool) -> None:
    async with loaded(upstream.url) as backend:
        deltas, _ = await answer(backend, scripted("n=3", stream=stream, n=3))
    assert [text_of(deltas, index) for index in range(3)] == ["word0 word1 word2 "] * 3
    assert sorted(d.index for d in deltas if d.finish_reason) == [0, 1, 2]


async def test_the_rest_of_a_piece_is_announced(upstream: Upstream) -> None:
    """So that whoever writes may join what came together; the last of a piece never waits."""
    async with loaded(upstream.url) as backend:
        items = [item async for item in backend.run(scripted("tools=1", stream=True, tools=TOOLS))]
    assert [item.more for item in items if isinstance(item, Delta)] == [True, False, True]


async def test_counting_tokens_generates_nothing(upstream: Upstream) -> None:
    async with loaded(upstream.url) as backend:
        call = scripted("", "one two three", "token_count", tools=TOOLS, temperature=1)
        deltas, usage = await answer(backend, call)
    assert [delta.input_tokens for delta in deltas] == [PROMPT_TOKENS + 3 + 1]
    assert usage == Usage()
    assert (await newest(upstream)).path.endswith(":countTokens")


async def test_embeddings_in_batches(upstream: Upstream) -> None:
    texts = [f"text {number}" for number in range(230)]
    await upstream.reset()
    async with loaded(upstream.url, name="gemini-embedding-001") as backend:
        assert [c.modality for c in backend.capabilities] == ["embedding"]
        deltas, usage = await answer(backend, make_call("embedding", input=texts, dimensions=8))
    assert [delta.index for delta in deltas] == list(range(230))
    assert all(math.isclose(math.hypot(*struct.unpack("<8f", d.vector)), 1, abs_tol=1e-6) for d in deltas)
    assert usage == Usage(PROMPT_TOKENS * 230)
    assert [r.path for r in await upstream.log()] == [
        "/v1beta/models/gemini-embedding-001:batchEmbedContents"
    ] * 3


# --- failures --------------------------------------------------------------------------------------

HANGS = {"hang", "keepalive", "idle", "role_only", "slowhdr"}
"""Faults that end only when someone loses patience; for streams that is the attempt's business."""
FAULTS = [
    (mode, stream)
    for mode in sorted({*INSTEAD, *STRIKES} - HANGS)
    for stream in (True, False)
    # A whole answer where one was asked for is none.
    if (mode, stream) != ("unstreamed", False)
]


@pytest.mark.parametrize(("mode", "stream"), FAULTS)
async def test_a_broken_answer_is_never_a_clean_end(upstream: Upstream, mode: str, stream: bool) -> None:
    async with loaded(upstream.url) as backend:
        error, said = await failure(backend, scripted(f"mode={mode}", stream=stream))
        assert type(error) is UpstreamFailed
        assert said in ("", WORDS) if mode == "noterm" else said == ""
        assert "Welcome" not in error.message


@pytest.mark.parametrize("mode", sorted({*STRIKES} - HANGS - {"oversize"}))
async def test_what_was_said_before_the_fault_arrives(upstream: Upstream, mode: str) -> None:
    async with loaded(upstream.url) as backend:
        error, said = await failure(backend, scripted(f"mode={mode},fail_at=3,gap_ms=5", stream=True))
    assert type(error) is UpstreamFailed
    assert said == "word0 word1 word2 "


async def test_what_came_in_one_piece_with_the_fault_arrives() -> None:
    event = b'data: {"candidates":[{"content":{"parts":[{"text":"%b"}]}}]}\r\n\r\n'
    body = event % b"one " + event % b"two" + b"data: what?\r\n\r\n"

    async def answer_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer_at_once, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with loaded(f"http://{host}:{port}") as backend:
            error, said = await failure(backend, scripted(stream=True))
    assert (type(error), said) == (UpstreamFailed, "one two")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("mode", sorted({*CHANGES} - {"floats", "short"}))
async def test_oddities_are_no_faults(upstream: Upstream, mode: str, stream: bool) -> None:
    async with loaded(upstream.url) as backend:
        deltas, usage = await answer(backend, scripted(f"mode={mode}", stream=stream))
    assert text_of(deltas) == WORDS
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["stop"]
    assert usage == (Usage(source="unknown") if mode == "usage_missing" else COUNTED)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        ("mode=400", BackendRefused),
        ("mode=400,code=context_length_exceeded", ContextOverflow),
        ("mode=400,code=API_KEY_INVALID", UpstreamDenied),
        ("mode=401", UpstreamDenied),
        ("mode=403", UpstreamDenied),
        ("mode=404", BackendRefused),
        ("mode=429", UpstreamRateLimited),
        ("mode=429,code=GenerateRequestsPerDayPerProjectPerModel-FreeTier", UpstreamExhausted),
        ("mode=500", UpstreamFailed),
        ("mode=503", Overloaded),
        ("mode=504", EndpointStalled),
        ("mode=307", UpstreamFailed),
        ("finish=blocked", ContentFiltered),
        ("finish=MALFORMED_FUNCTION_CALL,n=0", UpstreamFailed),
    ],
)
async def test_errors_have_their_kind(
    upstream: Upstream, script: str, kind: type[InferHubError], stream: bool
) -> None:
    async with loaded(upstream.url) as backend:
        error, said = await failure(backend, scripted(script + ",leak=1", stream=stream))
    assert (type(error), said) == (kind, "")
    assert KEY not in error.message
    assert "\x1b" not in error.message


async def test_how_long_to_wait(upstream: Upstream) -> None:
    async with loaded(upstream.url) as backend:
        error, _ = await failure(backend, scripted("mode=429,retry_after_s=17"))
    assert error.retry_after_s == 17


@pytest.mark.parametrize(("mode", "stream"), [("slowhdr", True), ("slowhdr", False), ("hang", False)])
async def test_patience_with_the_head_ends(upstream: Upstream, mode: str, stream: bool) -> None:
    async with loaded(upstream.url, headers_timeout_s=0.2, answer_timeout_s=0.2) as backend:
        error, _ = await failure(backend, scripted(f"mode={mode}", stream=stream))
    assert type(error) is EndpointStalled


@pytest.mark.parametrize("mode", ["short", "garbage", "half_json", "html", "500", "error"])
async def test_broken_embeddings(upstream: Upstream, mode: str) -> None:
    await upstream.plays(f"mode={mode}")
    try:
        async with loaded(upstream.url, name="gemini-embedding-001") as backend:
            error, _ = await failure(backend, make_call("embedding", input=["a", "b"]))
    finally:
        await upstream.plays("")
    assert type(error) is UpstreamFailed


async def test_nobody_listens() -> None:
    async with loaded("http://127.0.0.1:9") as backend:
        error, _ = await failure(backend, scripted())
    assert type(error) is UpstreamFailed


@pytest.mark.parametrize("script", ["mode=401,times=1", "mode=429,times=1"])
async def test_another_key_is_tried_where_one_is_refused(upstream: Upstream, script: str) -> None:
    async with loaded(upstream.url, api_key=None, api_keys=["AIzaOne", {"key": "AIzaTwo"}]) as backend:
        await upstream.reset()
        await answer(backend, scripted(script, stream=True))
        await answer(backend, scripted(stream=True))
    sent = [record.headers["x-goog-api-key"] for record in await upstream.log()]
    assert sent == ["AIzaOne", "AIzaTwo", "AIzaTwo"]


async def test_the_last_refusal_is_the_answer(upstream: Upstream) -> None:
    async with loaded(upstream.url, api_key=None, api_keys=["AIzaOne", "AIzaTwo"]) as backend:
        error, _ = await failure(backend, scripted("mode=429,retry_after_s=3"))
    assert type(error) is UpstreamRateLimited
    assert 0 < (error.retry_after_s or 0) <= 3


# --- cancellation and connections ------------------------------------------------------------------


@pytest.mark.parametrize("script", ["hdr_ms=60000", "ttft_ms=60000", "gap_ms=50,n=2000", "mode=idle"])
async def test_cancelling_reaches_the_upstream(upstream: Upstream, script: str) -> None:
    async with loaded(upstream.url) as backend:
        call = scripted(script, stream=True)

        async def consume() -> None:
            async with aclosing(backend.run(call)) as chunks:  # type: ignore[type-var]
                async for _ in chunks:
                    pass

        task = asyncio.create_task(consume())
        await upstream.wait_for(call.key)
        cancelled_s = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        record = await upstream.wait_for(call.key, lambda r: r.abort_s is not None)
    assert record.abort_s is not None
    assert record.abort_s - cancelled_s < ABORT_SEEN_WITHIN_S


@pytest.mark.parametrize("stream", [True, False])
async def test_connections_are_kept(upstream: Upstream, stream: bool) -> None:
    await upstream.reset()
    async with loaded(upstream.url) as backend:
        for _ in range(3):
            await answer(backend, scripted(stream=stream))
    assert len({record.connection for record in await upstream.log()}) == 1


# --- options and features --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"base_url": "ftp://x"}, "base_url"),
        ({"base_url": "https://user:pw@x"}, "base_url"),
        ({"base_url": "https://x/?key=1"}, "base_url"),
        ({"api_key": "a b\n"}, "api_key"),
        ({"api_key": ""}, "api_key"),
        ({"api_keys": ["x"]}, "api_key_file"),
        ({"api_key": None}, "api_key"),
        ({"api_key": None, "api_keys": ["good", "b\u00e4d"]}, "key 2 of 'api_keys'"),
        ({"safety_settings": {"HARM_CATEGORY_NOISE": "OFF"}}, "safety_settings"),
        ({"safety_settings": {"HARM_CATEGORY_HARASSMENT": "SOME"}}, "safety_settings"),
        ({"upstream_model": "../x:y?"}, "upstream_model"),
        ({"thinking": "much"}, "thinking"),
        ({"temperature": 1}, "temperature"),
    ],
)
async def test_bad_options_are_named(options: dict[str, Any], named: str) -> None:
    spec = ModelSpec("m", "gemini", options={"api_key": KEY, **options})
    with pytest.raises(SetupError, match=named) as caught:
        check_options(backend_class("gemini"), spec)
    assert "pw" not in caught.value.message


async def test_the_key_comes_from_googles_variable() -> None:
    text = "models: [{name: gemini-2.5-flash, backend: gemini}]"

    def key(env: dict[str, str], text: str = text) -> Any:
        found = load_spec(text, env=env, source="hub.yaml", check_model=check_model)
        return found.models[0].options["api_key"]

    assert key({"GEMINI_API_KEY": KEY}) == KEY
    with pytest.raises(SetupError, match="GEMINI_API_KEY"):
        key({})
    own = "models: [{name: m, backend: gemini, options: {api_key: mine}}]"
    assert key({"GEMINI_API_KEY": KEY}, own) == "mine"


async def test_where_the_models_are() -> None:
    assert endpoint_base("https://x.example/", "v1beta") == "https://x.example/v1beta"
    assert endpoint_base("https://x.example/v1", "v1beta") == "https://x.example/v1"


async def test_a_model_that_does_not_think_offers_no_thought(upstream: Upstream) -> None:
    async with loaded(upstream.url, name="gemini-2.0-flash") as plain, loaded(upstream.url) as thinking:
        offered = plain.capabilities[0].features
        assert thinking.capabilities[0].features - offered == {"reasoning_effort", "thinking"}
        never = {"remote_urls", "prefill", "logit_bias", "service_tier", "store", "audio_output", "verbosity"}
        assert not never & thinking.capabilities[0].features


async def test_the_operators_safety_settings_are_sent(upstream: Upstream) -> None:
    async with loaded(upstream.url, safety_settings={"HARM_CATEGORY_HARASSMENT": "BLOCK_NONE"}) as backend:
        await answer(backend, scripted())
    assert '"threshold":"BLOCK_NONE"' in (await newest(upstream)).body


async def test_the_key_is_in_no_representation(upstream: Upstream) -> None:
    options = check_options(backend_class("gemini"), ModelSpec("m", "gemini", options={"api_key": KEY}))
    assert KEY not in repr(options)


# --- the scripted upstream is honest ---------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Inheritance class:DeprecationWarning")
async def test_googles_own_client_has_no_violations_and_understands_the_answers(upstream: Upstream) -> None:
    """What the strict upstream refuses, Google's client would not send; what it says, that client reads."""
    client = genai.Client(api_key=KEY, http_options=types.HttpOptions(base_url=upstream.url))
    config = types.GenerateContentConfig(
        system_instruction="script:think=2,n=3",
        temperature=0.2,
        seed=1,
        stop_sequences=["END"],
        response_logprobs=True,
        logprobs=1,
        thinking_config=types.ThinkingConfig(thinking_budget=100, include_thoughts=True),
        safety_settings=[
            types.SafetySetting(
                category=types.HarmCategory.HARM_CATEGORY_HARASSMENT,
                threshold=types.HarmBlockThreshold.BLOCK_NONE,
            )
        ],
    )
    await upstream.reset()
    whole = await client.aio.models.generate_content(
        model="gemini-2.5-flash", contents="Hello", config=config
    )
    assert whole.text == "word0 word1 word2 "
    called = types.GenerateContentConfig(
        system_instruction="script:tools=2",
        tools=[types.Tool(function_declarations=[types.FunctionDeclaration(name="tool0")])],
    )
    streamed = [
        chunk
        async for chunk in await client.aio.models.generate_content_stream(
            model="gemini-2.5-flash", contents="Hello", config=called
        )
    ]
    assert [call.name for chunk in streamed for call in chunk.function_calls or ()] == ["tool0", "tool1"]
    turns = [
        types.UserContent("Hello"),
        types.ModelContent([part for chunk in streamed[:2] for part in chunk.candidates[0].content.parts]),  # type: ignore[index, union-attr]
        types.UserContent([types.Part.from_function_response(name=n, response={"a": 1}) for n in ("tool0", "tool1")]),
    ]  # fmt: skip
    await client.aio.models.generate_content(model="gemini-2.5-flash", contents=turns, config=called)
    counted = await client.aio.models.count_tokens(model="gemini-2.5-flash", contents="one two")
    assert counted.total_tokens == PROMPT_TOKENS + 2
    vectors = await client.aio.models.embed_content(model="gemini-embedding-001", contents=["a", "b"])
    assert len(vectors.embeddings or ()) == 2
    await client.aio.aclose()
    log = await upstream.log()
    assert len(log) == 5
    assert [record.violations for record in log] == [[]] * 5


async def test_the_strict_upstream_does_find_violations() -> None:
    def found(body: dict[str, Any]) -> str:
        headers = {"content-type": "application/json", "x-goog-api-key": "k"}
        path = "/v1/models/gemini-3-pro:generateContent"
        return " ".join(violations_of("generateContent", path, headers, msgspec.json.encode(body)))

    hello = {"role": "user", "parts": [{"text": "x"}]}
    call = {"role": "model", "parts": [{"functionCall": {"name": "a", "args": {}}}]}
    calling = {"functionCallingConfig": {"mode": "WHISPER"}}
    assert found({"contents": [hello]}) == ""
    assert "temperature" in found({"contents": [hello], "temperature": 1})
    assert "max_tokenz" in found({"contents": [hello], "generationConfig": {"max_tokenz": 1}})
    assert "WHISPER" in found({"contents": [hello], "toolConfig": calling})
    assert "role" in found({"contents": [{**hello, "role": "assistant"}]})
    assert "must not be empty" in found({"contents": [{"role": "user", "parts": []}]})
    assert "thought_signature" in found({"contents": [call]})
    assert "0 function responses for 1" in found({"contents": [call, hello]})
