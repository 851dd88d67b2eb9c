"""The OpenAI-compatible backend against the scripted upstream, a real process that really misbehaves."""

from __future__ import annotations

import asyncio
import base64
import gc
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from inferhub.backends import backend_class
from inferhub.backends.base import Backend, check_options
from inferhub.backends.remote import endpoint_base
from inferhub.core.call import Call, Delta, Finished
from inferhub.core.errors import (
    BackendRefused,
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
from inferhub.testing.calls import make_call
from inferhub.testing.upstream_process import Upstream
from inferhub.testing.upstream_script import PROMPT_TOKENS

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "sk-canary-0123456789abcdef"
ABORT_SEEN_WITHIN_S = 1.0
COUNTED = Usage(input_tokens=PROMPT_TOKENS, output_tokens=8, cached_tokens=3)
WORDS = "".join(f"word{i} " for i in range(8))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        yield running


def spec(base_url: str, **options: Any) -> ModelSpec:
    return ModelSpec("m", "openai_compatible", options={"base_url": base_url, "api_key": KEY, **options})


@asynccontextmanager
async def loaded(base_url: str, **options: Any) -> AsyncIterator[Backend]:
    backend = backend_class("openai_compatible")(spec(base_url, **options), None)
    await backend.load()
    try:
        yield backend
    finally:
        await backend.unload()


def scripted(modality: str, script: str = "", **params: Any) -> Call:
    """A call that the upstream answers by `script`."""
    call = make_call(modality, **params)
    fields = msgspec.json.decode(call.body)
    return replace(call, body=msgspec.json.encode({**fields, "user": f"script:{script}"}))


async def answer(backend: Backend, call: Call) -> tuple[list[Any], Usage]:
    items = [item async for item in backend.run(call)]
    assert [type(item) for item in items] == [Delta] * (len(items) - 1) + [Finished]
    return [item.payload for item in items[:-1]], items[-1].usage


async def failure(backend: Backend, call: Call) -> InferHubError:
    with pytest.raises(InferHubError) as caught:
        await answer(backend, call)
    return caught.value


def chat_text(deltas: list[Any], index: int = 0) -> str:
    return "".join(d.content or "" for d in deltas if d.index == index)


# --- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_contract_008_stream_and_whole_answer_agree_on_text_and_usage(
    upstream: Upstream, stream: bool
) -> None:
    async with loaded(upstream.url) as backend:
        chat, chat_usage = await answer(backend, scripted("chat", "n=8", stream=stream))
        text, text_usage = await answer(backend, scripted("completion", "n=8", stream=stream))
    assert (chat_text(chat), chat_usage) == (WORDS, COUNTED)
    assert ("".join(d.text for d in text), text_usage) == (WORDS, COUNTED)
    assert [d.finish_reason for d in chat if d.finish_reason] == ["stop"]
    assert [d.finish_reason for d in text if d.finish_reason] == ["stop"]
    assert len(chat) == (9 if stream else 2)


@pytest.mark.parametrize("stream", [True, False])
async def test_contract_004_every_choice_finishes_once(upstream: Upstream, stream: bool) -> None:
    async with loaded(upstream.url) as backend:
        chat, _ = await answer(backend, scripted("chat", "n=3", stream=stream, n=3))
        text, _ = await answer(backend, scripted("completion", "n=3", stream=stream, prompt=["a", "b"], n=2))
    for index in range(3):
        assert chat_text(chat, index) == "word0 word1 word2 "
    assert sorted(d.index for d in chat if d.finish_reason) == [0, 1, 2]
    assert sorted(d.index for d in text if d.finish_reason) == [0, 1, 2, 3]


@pytest.mark.parametrize("stream", [True, False])
async def test_contract_043_tool_calls_arrive_whole(upstream: Upstream, stream: bool) -> None:
    async with loaded(upstream.url) as backend:
        deltas, _ = await answer(backend, scripted("chat", "tools=2", stream=stream))
    calls = [call for d in deltas for call in d.tool_calls or ()]
    opening = [(c.index, c.id, c.function.name) for c in calls if c.id]
    assert opening == [(0, "call_0", "tool0"), (1, "call_1", "tool1")]
    for index in (0, 1):
        arguments = "".join(c.function.arguments or "" for c in calls if c.index == index)
        assert arguments == f'{{"x":{index}}}'
    assert [d.finish_reason for d in deltas if d.finish_reason] == ["tool_calls"]


@pytest.mark.parametrize("framing", ["split=1", "split=2", "split=3", "split=7", "odd=1", "odd=1,split=1"])
@pytest.mark.parametrize("modality", ["chat", "completion"])
async def test_contract_010_text_survives_every_split_and_framing(
    upstream: Upstream, framing: str, modality: str
) -> None:
    said = '👩‍🚀 naïve e\u0301 \u202eabc\u202c 漢字 \u0000\x1f "q" \\ \r\n\t \u2028 \U0010ffff end'
    params = {"messages": [{"role": "user", "content": said}]} if modality == "chat" else {"prompt": said}
    async with loaded(upstream.url) as backend:
        deltas, usage = await answer(backend, scripted(modality, f"echo=1,{framing}", stream=True, **params))
    texts = [d.content if modality == "chat" else d.text for d in deltas]
    assert "".join(text or "" for text in texts) == said
    assert usage.output_tokens == len(said)


@pytest.mark.parametrize("mode", ["", "mode=floats"])
async def test_contract_050_embeddings_become_little_endian_float32_in_order(
    upstream: Upstream, mode: str
) -> None:
    async with loaded(upstream.url) as backend:
        call = scripted("embedding", f"dim=4,{mode}", input=["a", "b", "c"], encoding_format="float")
        deltas, usage = await answer(backend, call)
    assert [d.index for d in deltas] == [0, 1, 2]
    assert deltas[1].vector == struct.pack("<4f", 2, 1, 2 / 3, 0.5)
    assert usage == Usage(input_tokens=3 * PROMPT_TOKENS)
    assert msgspec.json.decode((await upstream.log())[-1].body)["encoding_format"] == "base64"


async def test_an_upstream_that_finished_but_omits_done_is_accepted(upstream: Upstream) -> None:
    async with loaded(upstream.url) as backend:
        deltas, usage = await answer(backend, scripted("chat", "mode=noterm", stream=True))
    assert (chat_text(deltas), usage) == (WORDS, COUNTED)


@pytest.mark.parametrize("stream", [True, False])
async def test_missing_usage_is_unknown_and_not_zero(upstream: Upstream, stream: bool) -> None:
    async with loaded(upstream.url) as backend:
        _, usage = await answer(backend, scripted("chat", "mode=usage_missing", stream=stream))
    assert usage.source == "unknown"


async def test_a_compressed_answer_is_read(upstream: Upstream) -> None:
    async with loaded(upstream.url) as backend:
        deltas, _ = await answer(backend, scripted("chat", "mode=gzip"))
    assert chat_text(deltas) == WORDS


# --- what the upstream gets --------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
async def test_contract_034_the_clients_own_bytes_are_forwarded(upstream: Upstream, stream: bool) -> None:
    client_stream = b'"stream": true, "stream_options": {"include_usage": false},' if stream else b""
    body = (
        b'{"model": "m", ' + client_stream + b' "messages": [{"role":"user",  "content":"\\u00e9\xc3\xa9"}],'
        b' "temperature": 0.70, "seed": 12345678901234567890, "top_k": 1e1, "vendor": {"deep": [1.0, null]}}'
    )
    call = replace(make_call("chat", stream=stream), body=body)
    async with loaded(upstream.url, upstream_model='their "m"') as backend:
        await answer(backend, call)
    forwarded = (await upstream.log())[-1].body
    fields = msgspec.json.decode(forwarded, type=dict[str, msgspec.Raw])
    assert bytes(fields.pop("model")) == b'"their \\"m\\""'
    assert bytes(fields["messages"]) == b'[{"role":"user",  "content":"\\u00e9\xc3\xa9"}]'
    assert bytes(fields["temperature"]) == b"0.70"
    assert bytes(fields["seed"]) == b"12345678901234567890"
    assert bytes(fields["top_k"]) == b"1e1"
    assert bytes(fields["vendor"]) == b'{"deep": [1.0, null]}'
    expected = {"messages", "temperature", "seed", "top_k", "vendor"}
    assert set(fields) == (expected | {"stream", "stream_options"} if stream else expected)


async def test_contract_009_usage_is_always_asked_for_in_streams(upstream: Upstream) -> None:
    async with loaded(upstream.url) as backend:
        _, usage = await answer(backend, scripted("chat", stream=True))
    forwarded = msgspec.json.decode((await upstream.log())[-1].body)
    assert forwarded["stream_options"] == {"include_usage": True}
    assert usage == COUNTED


@pytest.mark.parametrize("modality", ["chat", "completion", "embedding"])
async def test_fields_that_would_redirect_the_operators_key_are_dropped(
    upstream: Upstream, modality: str
) -> None:
    evil = {"api_base": "http://x", "base_url": "http://x", "api_key": "x", "extra_headers": {"a": "b"}}
    async with loaded(upstream.url) as backend:
        await answer(backend, scripted(modality, **evil))
    assert not set(evil) & set(msgspec.json.decode((await upstream.log())[-1].body))


async def test_what_is_embedded_is_what_was_checked(upstream: Upstream) -> None:
    """vLLM embeds conversations too, and fetches the pictures in them from within the operator's network."""
    picture = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}
    async with loaded(upstream.url) as backend:
        await answer(backend, scripted("embedding", messages=[{"role": "user", "content": [picture]}]))
    assert "messages" not in msgspec.json.decode((await upstream.log())[-1].body)


async def test_only_our_own_headers_reach_the_upstream(upstream: Upstream) -> None:
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    call = replace(make_call("chat"), traceparent=parent)
    async with loaded(upstream.url, headers={"x-team": "canary"}) as backend:
        await answer(backend, call)
        await answer(backend, replace(call, traceparent=None))
    first, second = (await upstream.log())[-2:]
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert first.headers["content-type"] == "application/json"
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.headers["idempotency-key"].startswith(f"{call.key}-")
    assert first.headers["traceparent"] == parent
    assert first.headers["x-team"] == "canary"
    own = {"host", "accept-encoding", "user-agent", "content-length", "content-type"}
    assert set(second.headers) == own | {"authorization", "idempotency-key", "x-team"}


async def test_without_a_key_no_authorization_is_sent(upstream: Upstream) -> None:
    async with loaded(upstream.url, api_key=None) as backend:
        await answer(backend, make_call("chat"))
    assert "authorization" not in (await upstream.log())[-1].headers


async def test_calls_share_a_pooled_connection_streams_included(upstream: Upstream) -> None:
    async with loaded(upstream.url) as backend:
        await upstream.reset()
        for stream in (True, False, True, True, False):
            await answer(backend, scripted("chat", stream=stream))
        for modality in ("completion", "embedding"):
            await answer(backend, scripted(modality))
        await failure(backend, scripted("chat", "mode=500"))
        await answer(backend, scripted("chat"))
    assert len({record.connection for record in await upstream.log()}) == 1


# --- refusals and failures ---------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("mode=400,param=temperature,code=invalid_value", (BackendRefused, 400, "invalid_value")),
        ("mode=404,code=model_not_found", (BackendRefused, 400, "model_not_found")),
        ("mode=409", (BackendRefused, 400, "backend_refused")),
        ("mode=413", (BackendRefused, 400, "backend_refused")),
        ("mode=422", (BackendRefused, 400, "backend_refused")),
        ("mode=400,code=context_length_exceeded", (ContextOverflow, 400, "context_length_exceeded")),
        ("mode=401", (UpstreamDenied, 502, "upstream_denied")),
        ("mode=403", (UpstreamDenied, 502, "upstream_denied")),
        ("mode=429", (UpstreamRateLimited, 429, "upstream_rate_limited")),
        ("mode=429,code=insufficient_quota", (UpstreamExhausted, 429, "insufficient_quota")),
        ("mode=500", (UpstreamFailed, 502, "upstream_error")),
        ("mode=502", (UpstreamFailed, 502, "upstream_error")),
        ("mode=503,retry_after_s=3", (Overloaded, 503, "overloaded")),
        ("mode=529", (Overloaded, 503, "overloaded")),
        ("mode=418", (UpstreamFailed, 502, "upstream_error")),
        ("mode=307", (UpstreamFailed, 502, "upstream_error")),
        ("mode=201", (UpstreamFailed, 502, "upstream_error")),
    ],
)
async def test_contract_017_an_upstreams_status_becomes_our_error(
    upstream: Upstream, script: str, expected: tuple[type[InferHubError], int, str], stream: bool
) -> None:
    kind, http, code = expected
    async with loaded(upstream.url) as backend:
        error = await failure(backend, scripted("chat", script, stream=stream))
    assert type(error) is kind
    assert (error.http, error.wire_code) == (http, code)
    assert error.retryable == (kind in (UpstreamFailed, UpstreamRateLimited, Overloaded))
    assert error.param == ("temperature" if "param=" in script else None)
    assert error.retry_after_s == (3 if "retry_after_s" in script else None)
    if kind in (BackendRefused, ContextOverflow):
        assert error.message == "The scripted upstream says no."


@pytest.mark.parametrize(
    ("script", "least_s", "most_s"),
    [
        ("retry_after_s=5", 5, 5),
        ("retry_after_s=0.5", 0.5, 0.5),
        ("retry_after_ms=1500,retry_after_s=9", 1.5, 1.5),
        ("retry_date_s=1000", 900, 1001),
        ("retry_date_s=-1000", 0, 0),
    ],
)
async def test_retry_after_is_read_in_every_form(
    upstream: Upstream, script: str, least_s: float, most_s: float
) -> None:
    async with loaded(upstream.url) as backend:
        error = await failure(backend, scripted("chat", f"mode=429,{script}"))
    assert error.retry_after_s is not None
    assert least_s <= error.retry_after_s <= most_s


@pytest.mark.parametrize("stream", [True, False])
async def test_an_upstreams_message_is_cleaned_and_holds_no_secret(upstream: Upstream, stream: bool) -> None:
    async with loaded(upstream.url) as backend:
        error = await failure(backend, scripted("chat", "mode=400,leak=1", stream=stream))
    assert error.message == "The scripted upstream says no. Key: Bearer [redacted] [31mred  at 0x…"
    assert KEY not in repr(error) + repr(error.__cause__) + repr(backend._options)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("script", "streams"),
    [
        ("mode=rst,fail_at=3", (True, False)),
        ("mode=rst,fail_at=0", (True, False)),
        ("mode=garbage,fail_at=3", (True, False)),
        ("mode=half_json,fail_at=3", (True, False)),
        ("mode=error,fail_at=3", (True, False)),
        ("mode=error,fail_at=0", (True, False)),
        ("mode=noterm,fail_at=3", (True,)),
        ("mode=noterm,fail_at=0", (True,)),
        ("mode=bad_chunk,fail_at=3", (True,)),
        ("mode=html", (True, False)),
        ("mode=bomb", (True, False)),
        ("mode=endless", (True, False)),
    ],
)
@pytest.mark.parametrize("modality", ["chat", "completion"])
async def test_contract_016_a_broken_answer_is_never_a_clean_end(
    upstream: Upstream, script: str, streams: tuple[bool, ...], modality: str
) -> None:
    async with loaded(upstream.url) as backend:
        for stream in streams:
            call = scripted(modality, script, stream=stream)
            error = await failure(backend, call)
            assert type(error) is UpstreamFailed
            assert error.retryable
            assert not {"html", "not json", "word", "choi"} & set(error.message.split())
            # A limit on everything: the upstream was cut off, not read to its end.
            record = await upstream.wait_for(call.key, lambda r: r.done_s or r.abort_s)
            assert record.pieces * 65536 < 64 * 1024 * 1024
            # The connection's trouble ends with the call.
            assert chat_text((await answer(backend, scripted("chat")))[0]) == WORDS


@pytest.mark.parametrize("mode", ["garbage", "half_json", "html", "bomb", "endless", "error", "short", "rst"])
async def test_a_broken_list_of_embeddings_is_refused(upstream: Upstream, mode: str) -> None:
    async with loaded(upstream.url) as backend:
        error = await failure(backend, scripted("embedding", f"mode={mode}", input=["a", "b"]))
    assert type(error) is UpstreamFailed


async def test_events_before_the_failure_are_delivered(upstream: Upstream) -> None:
    said = []
    async with loaded(upstream.url) as backend:
        chunks = backend.run(scripted("chat", "mode=rst,fail_at=5", stream=True))
        try:
            async for item in chunks:
                assert isinstance(item, Delta)
                said.append(item.payload.content)
        except UpstreamFailed:
            said.append("failed")
    assert said == [*(f"word{i} " for i in range(5)), "failed"]


async def test_redirects_are_not_followed(upstream: Upstream) -> None:
    async with loaded(upstream.url) as backend:
        await upstream.reset()
        error = await failure(backend, scripted("chat", "mode=302"))
    assert "redirect" in error.message
    assert len(await upstream.log()) == 1


async def test_a_wrong_path_says_so(upstream: Upstream) -> None:
    async with loaded(upstream.url + "/elsewhere") as backend:
        error = await failure(backend, make_call("chat"))
    assert isinstance(error, BackendRefused | UpstreamFailed)
    assert "No such address" in error.message


# --- time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["hdr_ms=60000", "mode=slowhdr"])
async def test_contract_077_no_head_in_time_names_the_headers_timeout(
    upstream: Upstream, script: str
) -> None:
    async with loaded(upstream.url, headers_timeout_s=0.3, answer_timeout_s=0.4) as backend:
        stream = await failure(backend, scripted("chat", script, stream=True))
        whole = await failure(backend, scripted("chat", script))
    for error, limit_s in ((stream, 0.3), (whole, 0.4)):
        assert type(error) is EndpointStalled
        assert f"within {limit_s} s (headers timeout)" in error.message


async def test_contract_077_no_connection_in_time_names_the_connect_timeout() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        # With its queue full, the kernel leaves further connections unanswered.
        fillers = [socket.socket() for _ in range(4)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        try:
            async with loaded(
                f"http://127.0.0.1:{listener.getsockname()[1]}", connect_timeout_s=0.3
            ) as backend:
                error = await failure(backend, make_call("chat"))
        finally:
            for filler in fillers:
                filler.close()
    assert type(error) is EndpointStalled
    assert "0.3 s (connect timeout)" in error.message


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "no-such-host.invalid"])
async def test_an_upstream_that_is_not_there_is_a_failure(host: str) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with loaded("http://" + host.format(port=unused.getsockname()[1])) as backend:
            error = await failure(backend, make_call("chat"))
    assert type(error) is UpstreamFailed
    assert error.message == "The upstream cannot be reached."


async def test_an_upstream_that_hangs_up_without_an_answer_is_a_failure() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server, loaded(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as backend:
        error = await failure(backend, make_call("chat"))
    assert type(error) is UpstreamFailed


_CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "packets",
    [
        pytest.param([_CHUNKED + b"3\r\nabc\r\nzz\r\n"], id="all at once"),
        pytest.param([_CHUNKED, b"3\r\nabc\r\nzz\r\n"], id="head first"),
        pytest.param([_CHUNKED, b"3\r\nabc\r\n", b"zz\r\n"], id="one by one"),
        pytest.param([_CHUNKED + b"3\r\nabcdef\r\n"], id="chunk longer than its size"),
        pytest.param([b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"], id="length is no number"),
        pytest.param([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc", b""], id="body too short"),
        pytest.param([b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n"], id="huge header"),
        pytest.param([b"\x16\x03\x01\x02\x00\x01"], id="not HTTP"),
        pytest.param(
            [_CHUNKED.replace(b"chunked", b"chunked\r\ncontent-encoding: gzip"), b"3\r\nabc\r\n"],
            id="not gzip",
        ),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_broken_http_is_a_failure_and_never_a_hang(packets: list[bytes], stream: bool) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for packet in packets:
            if not packet:
                break
            writer.write(packet)
            # Long enough for most packets to be read one by one; the outcome must not depend on it.
            await asyncio.sleep(0.02)
        else:
            # Only the client can end this.
            await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, loaded(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as backend:
        error = await asyncio.wait_for(failure(backend, make_call("chat", stream=stream)), 30)
    assert type(error) is UpstreamFailed


async def test_a_reset_of_an_idle_pooled_connection_harms_nobody() -> None:
    resets: list[asyncio.StreamWriter] = []
    event = (
        b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    )

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        writer.write(_CHUNKED)
        await asyncio.sleep(0.01)
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event))
        resets.append(writer)

    complaints: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, loaded(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as backend:
            for _ in range(2):
                deltas, _ = await answer(backend, make_call("chat", stream=True))
                assert chat_text(deltas) == "a"
                sock = resets[-1].get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                resets[-1].transport.abort()
                # The reset is on the loop's doorstep; one turn lets it in.
                await asyncio.sleep(0.05)
        gc.collect()
    finally:
        loop.set_exception_handler(None)
    assert complaints == []
    assert len(resets) == 2


@pytest.mark.parametrize("ends", [True, False])
async def test_after_done_the_connection_is_kept_if_the_answer_ends_and_given_up_if_not(
    ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if ends:
        monkeypatch.setattr("inferhub.backends.http._DRAIN_TIMEOUT_S", 60)
    event = (
        b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
    )
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while head := await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
            writer.write(_CHUNKED + b"%x\r\n%b\r\n" % (len(event), event))
            await asyncio.sleep(0.05)
            if not ends:
                await reader.read(-1)
                break
            writer.write(b"0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, loaded(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as backend:
        for _ in range(2):
            deltas, _ = await answer(backend, make_call("chat", stream=True))
            assert chat_text(deltas) == "a"
    assert connections == (1 if ends else 2)


# Phase → script, streaming, deltas to take before leaving.
PHASES = {
    "waiting for headers": ("hdr_ms=60000", True, 0),
    "headers dripping": ("mode=slowhdr", True, 0),
    "before the first token": ("ttft_ms=60000", True, 0),
    "only keep-alives": ("mode=keepalive", True, 0),
    "mid-stream": ("gap_ms=5,n=10000", True, 3),
    "mid-stream, silent": ("mode=hang,fail_at=3", True, 3),
    "mid-stream, bursting": ("n=200000", True, 3),
    "not streaming": ("ttft_ms=60000", False, 0),
}


# An iterator can be closed only between its items.
@pytest.mark.parametrize(
    ("phase", "how"), [(p, "cancel") for p in PHASES] + [(p, "close") for p in PHASES if PHASES[p][2]]
)
async def test_contract_018_the_upstream_sees_the_abort_at_once(
    upstream: Upstream, phase: str, how: str
) -> None:
    script, stream, deltas_first = PHASES[phase]
    call = scripted("chat", script, stream=stream)
    reached = asyncio.Event()
    proceed = asyncio.Event()

    async def consume() -> None:
        async with aclosing(backend.run(call)) as chunks:  # type: ignore[type-var]
            for _ in range(deltas_first):
                await anext(chunks)
            if how == "close":
                reached.set()
                await proceed.wait()
                return
            if deltas_first:
                reached.set()
            async for _ in chunks:
                pass

    async with loaded(upstream.url) as backend:
        task = asyncio.create_task(consume())
        if deltas_first:
            await reached.wait()
        await upstream.wait_for(call.key, lambda r: stream is False or r.first_byte_s or "hdr" in script)
        left_s = time.monotonic()
        if how == "close":
            proceed.set()
            await task
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        record = await upstream.wait_for(call.key, lambda r: r.abort_s)
        assert record.abort_s is not None
        assert record.done_s is None
        assert record.abort_s - left_s < ABORT_SEEN_WITHIN_S
        # Nothing is left behind that a next call could trip over.
        assert chat_text((await answer(backend, scripted("chat")))[0]) == WORDS


async def test_contract_080_a_reader_that_pauses_pauses_the_upstream(upstream: Upstream) -> None:
    call = scripted("chat", "n=300000", stream=True)
    async with loaded(upstream.url) as backend, aclosing(backend.run(call)) as chunks:  # type: ignore[type-var]
        await anext(chunks)
        before = -1
        while (sent := (await upstream.wait_for(call.key)).pieces) != before:
            before = sent
            await asyncio.sleep(0.3)
        assert 0 < sent < 300_000


# --- options -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "base"),
    [
        ("http://h", "http://h/v1"),
        ("http://h/", "http://h/v1"),
        ("http://h:8000/v1", "http://h:8000/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("https://h/openai/v1", "https://h/openai/v1"),
        ("https://h/v1beta/openai/", "https://h/v1beta/openai"),
    ],
)
async def test_contract_040_base_url_with_and_without_v1(base_url: str, base: str) -> None:
    assert endpoint_base(base_url) == base


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/"])
async def test_contract_040_all_forms_reach_the_upstream(upstream: Upstream, tail: str) -> None:
    async with loaded(upstream.url + tail) as backend:
        await answer(backend, make_call("chat"))


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"base_url": "ftp://host"}, id="scheme"),
        pytest.param({"base_url": "host:80"}, id="no scheme"),
        pytest.param({"base_url": "http://"}, id="no host"),
        pytest.param({"base_url": "http://user:canary-pass@host"}, id="credentials in the address"),
        pytest.param({"base_url": "http://host/?key=canary-pass"}, id="query"),
        pytest.param({"base_url": "http://host\\@canary-pass"}, id="backslash"),
        pytest.param({"base_url": "http://ho st"}, id="space"),
        pytest.param({"base_url": "http://host:99999"}, id="port"),
        pytest.param({"base_url": None}, id="missing"),
        pytest.param({"api_key": ""}, id="empty key"),
        pytest.param({"api_key": "canary-pass\r\nx: y"}, id="key that breaks the header"),
        pytest.param({"headers": {"host": "canary-pass"}}, id="reserved header"),
        pytest.param({"headers": {"a b": "canary-pass"}}, id="header name"),
        pytest.param({"headers": {"x": "canary-pass\n"}}, id="header value"),
        pytest.param({"connect_timeout_s": 0}, id="no time to connect"),
        pytest.param({"max_connections": 0}, id="no connection"),
        pytest.param({"modalities": []}, id="no modality"),
        pytest.param({"modalities": ["video"]}, id="other modality"),
        pytest.param({"timeout": 5}, id="unknown option"),
    ],
)
async def test_wrong_options_are_refused_without_echoing_them(options: dict[str, Any]) -> None:
    with pytest.raises(SetupError) as caught:
        check_options(backend_class("openai_compatible"), spec(**{"base_url": "http://host", **options}))
    assert "canary-pass" not in str(caught.value)
    assert KEY not in str(caught.value)


async def test_capabilities_follow_the_options_and_promise_nothing_that_deltas_cannot_carry() -> None:
    async with loaded("http://127.0.0.1:9", modalities=["embedding", "chat", "chat"]) as backend:
        assert [c.modality for c in backend.capabilities] == ["embedding", "chat"]
        chat = backend.capabilities[1].features
    assert {"stream", "tools", "vision", "json_schema", "n"} <= chat
    assert not {"audio_output", "functions", "web_search_options"} & chat
    assert backend.remote


async def test_no_secret_in_any_representation() -> None:
    operators = spec("http://host", headers={"api-key": "canary-header"})
    options = check_options(backend_class("openai_compatible"), operators)
    shown = f"{options!r} {options!s} {list(options.__rich_repr__())} {operators!r}"  # type: ignore[attr-defined]
    assert "canary" not in shown
    assert base64.b64encode(KEY.encode()).decode() not in shown
