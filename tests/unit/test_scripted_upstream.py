"""The scripted upstream itself: other tests judge by what it does and logs, so it is checked too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from inferhub.testing.upstream_process import Upstream
from inferhub.testing.upstream_script import PROMPT_TOKENS, Script, read_script

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        yield running


async def exchange(upstream: Upstream, request: bytes) -> bytes:
    """Send raw bytes, read until the upstream closes or the answer's end mark."""
    host, _, port = upstream.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        writer.write_eof()
        return await asyncio.wait_for(reader.read(-1), 30)
    finally:
        writer.close()


def post(path: str = "/v1/chat/completions", headers: str = "", **fields: Any) -> bytes:
    body = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields})
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{headers}\r\n"
    return head.encode() + body


async def talk(upstream: Upstream, request: bytes, end: bytes) -> bytes:
    """Send a request on an open connection and read to `end`."""
    host, _, port = upstream.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.readuntil(end), 30)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_scripts_come_from_the_header_first_and_then_from_user() -> None:
    assert read_script("", None) is None
    assert read_script("", "somebody") is None
    assert read_script("", "script:n=5,mode=rst") == Script(n=5, mode="rst")
    assert read_script("n=6", "script:n=5") == Script(n=6)
    assert read_script("n=6;a label", None) == Script(n=6)
    for wrong in ("m=1", "n=x", "n"):
        with pytest.raises(msgspec.ValidationError):
            read_script(wrong, None)


async def test_the_official_client_understands_it(upstream: Upstream) -> None:
    async with AsyncOpenAI(base_url=upstream.url + "/v1", api_key="k", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "hi"}]
        whole = await client.chat.completions.create(model="m", messages=messages)
        assert whole.usage is not None
        assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (PROMPT_TOKENS, 8)
        stream = await client.chat.completions.create(
            model="m",
            messages=messages,
            stream=True,
            stream_options={"include_usage": True},
            extra_headers={"x-script": "n=3"},
        )
        chunks = [chunk async for chunk in stream]
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == "word0 word1 word2 "
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 3
        embedded = await client.embeddings.create(model="m", input=["a", "b"])
        assert [round(e.embedding[1], 6) for e in sorted(embedded.data, key=lambda e: e.index)] == [0.5, 1.0]
        completion = await client.completions.create(model="m", prompt="a")
        assert completion.choices[0].text.startswith("word0 ")
        assert [model.id async for model in client.models.list()] == ["scripted"]


async def test_the_log_has_ordered_times_and_the_request(upstream: Upstream) -> None:
    before_s = time.monotonic()
    await talk(
        upstream, post(headers="x-request-id: r1\r\nx-script: ttft_ms=20\r\n", stream=True), b"0\r\n\r\n"
    )
    record = await upstream.wait_for("r1", lambda r: r.done_s)
    assert record.first_byte_s is not None
    assert record.done_s is not None
    assert (
        before_s
        <= record.accepted_s
        <= record.read_s
        <= record.first_byte_s
        < record.done_s
        <= time.monotonic()
    )
    assert record.done_s - record.first_byte_s >= 0.02
    assert record.abort_s is None
    assert '"content":"hi"' in record.body
    assert record.pieces == 8 + 2


@pytest.mark.parametrize("half_close", [True, False])
async def test_a_client_that_leaves_is_seen(upstream: Upstream, half_close: bool) -> None:
    name = f"leaver-{half_close}"
    request = post(headers=f"idempotency-key: {name}\r\nx-script: gap_ms=60000\r\n", stream=True)
    if half_close:
        await exchange(upstream, request)
    else:
        await talk(upstream, request, b"\n\n")
    record = await upstream.wait_for(name, lambda r: r.abort_s)
    assert record.done_s is None


async def test_requests_are_named_by_user_when_no_header_names_them(upstream: Upstream) -> None:
    await talk(upstream, post(user="script:n=1;mine"), b"}}")
    assert (await upstream.wait_for("script:n=1;mine")).path == "/v1/chat/completions"


async def test_one_connection_serves_many_requests_even_when_sent_at_once(upstream: Upstream) -> None:
    await upstream.reset()
    plain, scripted = post(), post(headers="x-script: ttft_ms=10,n=1\r\n", stream=True)
    answer = await talk(upstream, plain + scripted + plain + scripted, b"[DONE]\n\n\r\n0\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200") == 2
    assert len({r.connection for r in await upstream.log()}) == 1


async def test_reset_empties_the_log(upstream: Upstream) -> None:
    await talk(upstream, post(), b"}}")
    assert await upstream.log()
    await upstream.reset()
    assert await upstream.log() == []


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (post(headers="x-script: nonsense=1\r\n"), b"400"),
        (post("/v1/elsewhere"), b"404"),
        (b"GET /nowhere HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /v1/completions HTTP/1.1\r\ncontent-length: 3\r\n\r\n{x}", b"400"),
    ],
)
async def test_its_own_refusals_name_the_mistake(
    upstream: Upstream, request_bytes: bytes, status: bytes
) -> None:
    assert (await talk(upstream, request_bytes, b"}}")).startswith(b"HTTP/1.1 " + status)


async def test_the_process_ends_with_its_block_and_with_its_parents_pipe() -> None:
    async with Upstream() as upstream:
        process = upstream._process
        assert process.stdin is not None
        process.stdin.close()
        assert await asyncio.wait_for(process.wait(), 30) == 0
    async with Upstream() as upstream:
        process = upstream._process
        assert process.returncode is None
    assert process.returncode == 0
