"""The pass-through lane: what an upstream writes is what a client reads, and only the odd event is mended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from inferhub.backends.base import Backend
from inferhub.backends.openai_compatible import OpenAICompatible
from inferhub.core.call import Call, Finished, Native
from inferhub.core.models import ModelSpec
from inferhub.core.usage import Usage
from inferhub.testing.calls import make_call
from inferhub.testing.upstream_bad_tools import BAD_TOOLS
from inferhub.testing.upstream_process import Upstream

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream() as running:
        yield running


@asynccontextmanager
async def loaded(base_url: str, **options: Any) -> AsyncIterator[Backend]:
    options = {"base_url": base_url, **options}
    backend = OpenAICompatible(ModelSpec("m", "openai_compatible", options=options), None)
    await backend.load()
    try:
        yield backend
    finally:
        await backend.unload()


@asynccontextmanager
async def saying(body: bytes, kind: bytes = b"text/event-stream") -> AsyncIterator[str]:
    """A server that answers every request with this body."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0]))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (kind, len(body)))
        writer.write(body)
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def items_of(backend: Backend, call: Call) -> list[Any]:
    return [item async for item in backend.run(call)]


def raw_of(items: list[Any]) -> bytes:
    assert all(item.raw is not None for item in items)
    return b"".join(item.raw for item in items)


def scripted(modality: str, script: str, **params: Any) -> Call:
    return make_call(modality, user=f"script:{script}", **params)


# --- untouched ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framing", ["", "odd=1", "split=1", "split=5,odd=1"])
@pytest.mark.parametrize("modality", ["chat", "completion"])
async def test_a_real_upstreams_stream_comes_through_untouched(
    upstream: Upstream, framing: str, modality: str
) -> None:
    options = {"include_usage": True}
    call = scripted(modality, f"n=40,{framing}", stream=True, stream_options=options)
    async with loaded(upstream.url) as backend:
        items = await items_of(backend, call)
        plain = await items_of(backend, scripted(modality, "n=40", stream=True, stream_options=options))
    raw = raw_of(items)
    assert raw == raw_of(plain)
    events = [e.removeprefix(b"data: ") for e in raw.split(b"\n\n")]
    assert events.pop() == b""
    assert events.pop() == b"[DONE]"
    decoded = [msgspec.json.decode(e) for e in events]
    assert {e["id"] for e in decoded} == {"up-1"}
    assert decoded[-1]["choices"] == []
    assert decoded[-1]["usage"]["total_tokens"] == items[-1].usage.total_tokens


@pytest.mark.parametrize("modality", ["chat", "completion"])
async def test_a_whole_answer_comes_through_untouched(modality: str) -> None:
    choice = b'{"index":0,"message":{"role":"assistant","content":"a\\u00e9"},"text":"a\\u00e9","finish_reason":"stop"}'
    body = (
        b'\n{ "id":"up-1", "choices":[' + choice + b'], "created": 1.0, "odd": 1e3,'
        b' "usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}  \n'
    )
    async with saying(body) as url, loaded(url) as backend:
        items = await items_of(backend, make_call(modality))
    assert items[-1] == Finished(Usage(5, 2), raw=body)


@pytest.mark.parametrize(
    ("asked", "is_raw"),
    [({"encoding_format": "base64"}, True), ({"encoding_format": "float"}, False), ({}, False)],
)
async def test_embeddings_come_through_where_the_client_asked_for_what_we_ask_for(
    asked: dict[str, str], is_raw: bool
) -> None:
    body = b'{"data": [{"index":0, "embedding":"AACAPw=="}], "model":"up", "usage":{"prompt_tokens":1}}'
    async with saying(body) as url, loaded(url) as backend:
        items = await items_of(backend, make_call("embedding", **asked))
    assert items[-1].raw == (body if is_raw else None)


async def test_vectors_out_of_order_or_as_numbers_are_written_anew() -> None:
    for data in (
        b'[{"index":1,"embedding":"AACAPw=="},{"index":0,"embedding":"AACAPw=="}]',
        b'[{"index":0,"embedding":[1.0]},{"index":1,"embedding":[1.0]}]',
    ):
        async with saying(b'{"data": ' + data + b"}") as url, loaded(url) as backend:
            items = await items_of(
                backend, make_call("embedding", input=["a", "b"], encoding_format="base64")
            )
        assert items[-1].raw is None
        assert [item.payload.index for item in items[:-1]] == [0, 1]


@pytest.mark.parametrize(
    "change",
    [{"native": Native("anthropic_messages", b"{}")}, {"resume": "I was say"}],
    ids=["another dialect", "a resumed answer"],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_where_the_upstreams_bytes_are_not_the_clients_answer_there_are_none(
    upstream: Upstream, change: dict[str, Any], stream: bool
) -> None:
    async with loaded(upstream.url, prefill="append") as backend:
        items = await items_of(backend, replace(scripted("chat", "n=3", stream=stream), **change))
    assert [item.raw for item in items] == [None] * len(items)
    assert "".join(item.payload.content or "" for item in items[:-1]) == "word0 word1 word2 "


# --- mended --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("bad", ["", *BAD_TOOLS])
async def test_contract_043_bad_tool_calls_leave_well_formed(
    upstream: Upstream, bad: str, stream: bool
) -> None:
    call = scripted("chat", f"tools=2,bad_tools={bad}", stream=stream)
    async with loaded(upstream.url) as backend:
        items = await items_of(backend, call)
    raw = raw_of(items) if stream else items[-1].raw
    if not stream:
        message = msgspec.json.decode(raw)["choices"][0]["message"]
        calls = [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in message["tool_calls"]]
    else:
        calls = _accumulate(raw)
    assert [name for _, name, _ in calls] == ["tool0", "tool1"]
    assert len({call_id for call_id, _, _ in calls}) == 2
    for number, (_, _, arguments) in enumerate(calls):
        assert msgspec.json.decode(arguments) == ({} if bad == "no_arguments" and stream else {"x": number})
    assert b'"finish_reason":"tool_calls"' in raw
    assert raw.count(b'"finish_reason":"tool_calls"') == 1
    assert raw.count(b'"id":"up-1"') == raw.count(b'"id":"up-') > 0


def _accumulate(raw: bytes) -> list[tuple[str, str, str]]:
    """As official clients do it: by index, everything joined."""
    calls: list[list[str]] = []
    for line in raw.split(b"\n\n"):
        if line in (b"", b"data: [DONE]"):
            continue
        for choice in msgspec.json.decode(line.removeprefix(b"data: "))["choices"]:
            for piece in choice["delta"].get("tool_calls") or ():
                if piece["index"] == len(calls):
                    assert piece["type"] == "function"
                    assert piece["id"]
                    calls.append(["", "", ""])
                call = calls[piece["index"]]
                call[0] += piece.get("id") or ""
                call[1] += piece["function"].get("name") or ""
                call[2] += piece["function"].get("arguments") or ""
    return [(call_id, name, arguments) for call_id, name, arguments in calls]


async def test_contract_003_a_second_finish_is_dropped(upstream: Upstream) -> None:
    async with loaded(upstream.url) as backend:
        items = await items_of(backend, scripted("chat", "mode=finish_twice", stream=True))
    assert raw_of(items).count(b'"finish_reason":"stop"') == 1
