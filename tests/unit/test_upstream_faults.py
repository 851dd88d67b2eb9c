"""Every fault of the scripted upstream in every dialect of chat it speaks, seen from the wire."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from inferhub.testing.strict import validate, validate_request
from inferhub.testing.upstream_bad_tools import BAD_TOOLS
from inferhub.testing.upstream_dialects.base import Event, Kind, UpstreamDialect, load_dialects
from inferhub.testing.upstream_player import CHANGES, INSTEAD, MODES, STRIKES
from inferhub.testing.upstream_process import Upstream
from inferhub.testing.upstream_script import Script

pytestmark = pytest.mark.asyncio(loop_scope="module")

MEDIA = frozenset({"openai_media"})
"""Dialects of sound and pictures, whose answers have other endings: `tests/backends/test_openai_media.py`."""
DIALECTS = {dialect.name: dialect for dialect in load_dialects() if dialect.name not in MEDIA}
REQUESTS: dict[str, dict[str, Any]] = {
    "openai": {"messages": [{"role": "user", "content": "hi"}], "stream_options": {"include_usage": True}},
    "responses": {"input": "hi"},
    "anthropic": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 100},
    "gemini": {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]},
}
PATHS = {
    "openai": ("/v1/chat/completions", "/v1/chat/completions"),
    "responses": ("/v1/responses", "/v1/responses"),
    "anthropic": ("/v1/messages", "/v1/messages"),
    "gemini": ("/v1beta/models/m:generateContent", "/v1beta/models/m:streamGenerateContent"),
}
"""Where a whole answer and where a stream is asked for."""
ENDLESS = frozenset({"endless", "keepalive", "idle", "hang", "role_only", "slowhdr", "bomb"})

NOT_OF_CHAT = frozenset({"", "floats", "short", "by_url", "inside_url"})
"""Modes that change embeddings or pictures only."""

PATIENCE_S = 30.0
"""Only a hang is longer."""

ENDED = frozenset({"error", "garbage", "half_json", "noterm", "oversize", "bad_chunk", "empty"})
"""Faults whose body has an honest end."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        yield running


@pytest.fixture(params=sorted(DIALECTS))
def dialect(request: pytest.FixtureRequest) -> UpstreamDialect:
    return DIALECTS[request.param]


def asked(dialect: UpstreamDialect, stream: bool) -> tuple[str, dict[str, Any]]:
    """(path, request)."""
    request = {"model": "m", **REQUESTS[dialect.name], "stream": stream}
    if dialect.name == "gemini":
        del request["stream"], request["model"]
    if not stream:
        request.pop("stream_options", None)
    return PATHS[dialect.name][stream], request


def events_of(dialect: UpstreamDialect, script: Script) -> list[Event]:
    path, request = asked(dialect, stream=True)
    assert dialect.answers(path)
    assert dialect.streams(request, path)
    return list(dialect.events(script, request, path))


async def play(
    upstream: Upstream, dialect: UpstreamDialect, script: str, *, stream: bool, until: bytes = b""
) -> bytes:
    """All that comes back; of an endless answer what comes up to `until`, and a moment longer."""
    path, request = asked(dialect, stream)
    body = json.dumps(request).encode()
    host, _, port = upstream.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {path} HTTP/1.1\r\ncontent-length: {len(body)}\r\nx-script: {script}\r\n\r\n"
    writer.write(head.encode() + body)
    received = bytearray()
    is_endless = script.partition("mode=")[2] in ENDLESS
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (until in received if is_endless else is_complete(received)):
                piece = await reader.read(65536)
                received += piece
                if not piece:
                    break
        if is_endless:
            async with asyncio.timeout(0.3):
                while piece := await reader.read(65536):
                    received += piece
    except (TimeoutError, ConnectionResetError):
        pass
    finally:
        writer.close()
    return bytes(received)


def is_complete(received: bytearray) -> bool:
    """Whether an HTTP answer is all there."""
    head, end, body = received.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    if not end:
        return False
    return len(body) >= int(length[1]) if length else body.endswith(b"\r\n0\r\n\r\n")


async def test_every_dialect_says_when_it_is_done(dialect: UpstreamDialect) -> None:
    for script in (Script(n=3), Script(tools=2), Script(think=2, n=1), Script(finish="length")):
        events = events_of(dialect, script)
        kinds = [event.kind for event in events]
        assert kinds.count(Kind.TERMINAL) == 1, kinds
        assert kinds[-1] is Kind.TERMINAL
        assert kinds.count(Kind.CONTENT) >= 1
        for event in events:
            assert event.data == b"[DONE]" or isinstance(json.loads(event.data), dict)
    path, request = asked(dialect, stream=False)
    assert not dialect.streams(request, path)
    assert isinstance(json.loads(dialect.answer(Script(), request, path)), dict)


async def test_usage_is_left_out_when_asked(dialect: UpstreamDialect) -> None:
    def count(script: Script) -> int:
        path, request = asked(dialect, stream=False)
        whole = dialect.answer(script, request, path)
        return b"".join([*(e.data for e in events_of(dialect, script)), whole]).lower().count(b"token")

    assert count(Script(mode="usage_missing")) < count(Script())


async def test_idle_and_padded_events_are_of_the_dialect(dialect: UpstreamDialect) -> None:
    path, request = asked(dialect, stream=True)
    assert dialect.idle(Script(), request, path).kind is Kind.OPENING
    padded = dialect.padded(Script(), request, path, 1000)
    assert padded.kind is Kind.CONTENT
    assert b"x" * 1000 in padded.data
    assert b"It broke." in dialect.broke(Script()).data
    problem = json.loads(dialect.problem(429, "Slowly.", Script(code="my_code")))
    assert "Slowly." in json.dumps(problem)


async def test_strict_means_by_the_vendor_s_rules(dialect: UpstreamDialect) -> None:
    for stream in (False, True):
        path, request = asked(dialect, stream)
        headers = {"content-type": "application/json", "anthropic-version": "2023-06-01"}
        headers |= {"x-api-key": "k", "x-goog-api-key": "k", "authorization": "Bearer k"}
        assert dialect.violations(path, headers, json.dumps(request).encode()) == []
        for wrong in ({**request, "temperature": "hot"}, {**request, "no_such_field": 1}):
            assert dialect.violations(path, headers, json.dumps(wrong).encode()), wrong


@pytest.mark.parametrize("mode", sorted(MODES - NOT_OF_CHAT))
async def test_every_mode_in_every_dialect(upstream: Upstream, dialect: UpstreamDialect, mode: str) -> None:
    whole = await play(upstream, dialect, f"n=3,mode={mode}", stream=False)
    strikes = mode in STRIKES and mode not in {"oversize", "role_only"}
    until = b"word1" if strikes else b""
    stream = await play(upstream, dialect, f"n=3,fail_at=2,mode={mode}", stream=True, until=until)
    good = await play(upstream, dialect, "n=3", stream=True)
    assert good.endswith(b"0\r\n\r\n")
    if mode in {"drop"}:
        assert whole == stream == b""
        return
    assert stream != good or mode in {"gzip", "usage_missing"}
    if strikes:
        assert b"word0" in stream
        assert b"word1" in stream
        assert b"word2" not in stream or mode == "half_json"
    assert stream.endswith(b"0\r\n\r\n") == (mode in ENDED or mode in CHANGES)


async def test_statuses_come_with_their_headers(upstream: Upstream, dialect: UpstreamDialect) -> None:
    answer = await play(upstream, dialect, "mode=429,retry_after_s=3,code=slow_down", stream=True)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429")
    assert b"retry-after: 3" in head
    assert b"says no" in body


async def test_every_mode_is_told_about() -> None:
    assert {"", *INSTEAD, *STRIKES, *CHANGES} == MODES


async def test_a_script_may_strike_only_the_first_times(upstream: Upstream, dialect: UpstreamDialect) -> None:
    await upstream.reset()
    script = "mode=503,times=2;" + dialect.name
    answers = [await play(upstream, dialect, script, stream=False) for _ in range(3)]
    assert [answer[9:12] for answer in answers] == [b"503", b"503", b"200"]


async def test_requests_without_a_script_meet_the_server_s(dialect: UpstreamDialect) -> None:
    async with Upstream(script="mode=503") as moody:
        assert (await play(moody, dialect, "", stream=True))[9:12] == b"503"
        assert (await play(moody, dialect, "n=1", stream=True))[9:12] == b"200"
        await moody.plays("")
        assert (await play(moody, dialect, "", stream=True))[9:12] == b"200"


async def test_a_strict_upstream_logs_violations(dialect: UpstreamDialect) -> None:
    async with Upstream(strict=True) as strict:
        await play(strict, dialect, "", stream=False)
        assert any("content-type" in violation for violation in await strict.violations())


async def test_bodies_are_cut_where_asked(upstream: Upstream, dialect: UpstreamDialect) -> None:
    whole = await play(upstream, dialect, "n=1,split=1", stream=True)
    assert whole.count(b"\r\n1\r\n") > 20


# --- OpenAI's own replies are as its document says ------------------------------------------------------


@pytest.mark.parametrize(
    "script", [Script(n=2), Script(tools=2), Script(think=1, n=1), Script(finish="length")]
)
@pytest.mark.parametrize("more", [{}, {"n": 2}, {"logprobs": True, "top_logprobs": 1}], ids=str)
async def test_chat_answers_fit_the_published_document(script: Script, more: dict[str, Any]) -> None:
    openai = DIALECTS["openai"]
    path, request = asked(openai, stream=True)
    request |= more
    whole = json.loads(openai.answer(script, request, path))
    assert validate("CreateChatCompletionResponse", whole) == []
    for event in openai.events(script, request, path):
        if event.kind is not Kind.TERMINAL:
            assert validate("CreateChatCompletionStreamResponse", json.loads(event.data)) == []


@pytest.mark.parametrize(
    ("path", "request_body", "schema"),
    [
        ("/v1/completions", {"prompt": ["a", "b"]}, "CreateCompletionResponse"),
        ("/v1/embeddings", {"input": ["a", "b"]}, "CreateEmbeddingResponse"),
        ("/v1/moderations", {"input": ["a", "hit"]}, "CreateModerationResponse"),
    ],
)
async def test_other_answers_fit_the_published_document(
    path: str, request_body: dict[str, Any], schema: str
) -> None:
    assert validate(schema, json.loads(DIALECTS["openai"].answer(Script(), request_body, path))) == []


async def test_the_document_refuses_what_it_should() -> None:
    def found(**fields: Any) -> list[str]:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
        return validate_request("CreateChatCompletionRequest", json.dumps(body).encode())

    assert found() == []
    assert found(temperature=3)
    assert found(top_k=1) == ["unknown field 'top_k'"]
    assert found(messages=[{"role": "wizard", "content": "x"}])
    assert found(tools=[{"type": "function", "function": {"description": "nameless"}}])
    assert validate_request("CreateChatCompletionRequest", b"{") != []
    assert validate_request("CreateChatCompletionRequest", b'{"temperature":NaN}') != []
    assert validate_request("CreateChatCompletionRequest", b"[]") == ["not an object"]


@pytest.mark.parametrize("bad", sorted(BAD_TOOLS))
async def test_bad_tools_are_bad(bad: str) -> None:
    path, request = asked(DIALECTS["openai"], stream=True)
    good = list(DIALECTS["openai"].events(Script(tools=2), request, path))
    assert list(DIALECTS["openai"].events(Script(tools=2, bad_tools=bad), request, path)) != good
