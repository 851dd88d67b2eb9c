"""When an answer is stored: before its end leaves, however it ends; and never one that nobody waited for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from inferhub.core.call import Call, Chunk, Delta, Emit, Finished
from inferhub.core.errors import NotFound, UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.gateway.responses.endpoint import Keeping
from inferhub.gateway.responses.kept import KeptResponses
from inferhub.modalities.base import Envelope
from inferhub.modalities.chat import ChatDelta
from inferhub.stores.responses.sqlite import open_responses
from inferhub.testing.calls import make_call
from inferhub.wire.openai_responses.request import ResponsesRequest

OWNER = "ten_1/prj_1"
REQUEST = ResponsesRequest(model="m", input="a", stream=True, previous_response_id="resp_before")
CALL = make_call("chat", stream=True)
USAGE = Usage(1, 1)
NATIVE = b'data: {"type":"response.completed","response":{"id":"resp_1","status":"completed","of":1.50}}\n\n'


@pytest_asyncio.fixture
async def kept(tmp_path: Path) -> AsyncIterator[KeptResponses]:
    store = await open_responses(f"sqlite:///{tmp_path}/r.db", max_bytes=2**30, timeout_s=30)
    yield KeptResponses(store, ttl_s=100, max_history_bytes=2**20)
    await store.close()


def keeping(kept: KeptResponses) -> Keeping:
    return Keeping(kept, OWNER, REQUEST, Envelope("resp_1", 1, "m"), [])


async def stored(kept: KeptResponses) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(bytes((await kept.find(OWNER, "resp_1")).response))
    except NotFound:
        return None
    return found


async def test_an_upstreams_response_is_there_when_its_end_leaves(kept: KeptResponses) -> None:
    seen: list[dict[str, Any] | None] = []

    async def inner(call: Call, emit: Emit) -> None:
        await emit(Delta(ChatDelta(content="a"), b"data: {}\n\n"))
        await emit(Delta(ChatDelta(finish_reason="stop"), NATIVE))
        await emit(Finished(USAGE, raw=b""))

    async def emit(chunk: Chunk) -> None:
        seen.append(await stored(kept))

    await keeping(kept).handler(inner)(CALL, emit)
    first, at_its_end, _ = seen
    assert first is None
    assert at_its_end is not None
    assert (at_its_end["of"], at_its_end["previous_response_id"]) == (1.5, "resp_before")


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_translated_response_is_there_when_the_call_ends(
    kept: KeptResponses, is_stream: bool
) -> None:
    async def inner(call: Call, emit: Emit) -> None:
        await emit(Delta(ChatDelta(content="a")))
        await emit(Finished(USAGE))

    async def emit(chunk: Chunk) -> None: ...

    one = keeping(kept)
    await one.handler(inner)(replace(CALL, stream=is_stream), emit)
    found = await stored(kept)
    assert found is not None
    assert (found["status"], found["previous_response_id"]) == ("completed", "resp_before")


async def test_one_that_broke_is_there_as_failed_and_a_refusal_is_not(kept: KeptResponses) -> None:
    async def refuse(call: Call, emit: Emit) -> None:
        raise UpstreamFailed

    async def break_off(call: Call, emit: Emit) -> None:
        await emit(Delta(ChatDelta(content="a")))
        raise UpstreamFailed

    async def emit(chunk: Chunk) -> None: ...

    with pytest.raises(UpstreamFailed):
        await keeping(kept).handler(refuse)(CALL, emit)
    assert await stored(kept) is None
    with pytest.raises(UpstreamFailed):
        await keeping(kept).handler(break_off)(CALL, emit)
    found = await stored(kept)
    assert found is not None
    assert found["status"] == "failed"


async def test_one_whose_client_hung_up_is_not_kept(kept: KeptResponses) -> None:
    has_begun = asyncio.Event()

    async def inner(call: Call, emit: Emit) -> None:
        await emit(Delta(ChatDelta(content="a")))
        has_begun.set()
        await asyncio.Event().wait()

    async def emit(chunk: Chunk) -> None: ...

    task = asyncio.create_task(keeping(kept).handler(inner)(CALL, emit))
    await has_begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await stored(kept) is None
