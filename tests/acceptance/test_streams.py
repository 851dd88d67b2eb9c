"""Contract items 1 to 17: how a stream is framed, what its chunks hold, and how it fails."""

from __future__ import annotations

import itertools
import json
import time
from typing import Any

import pytest
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk

from inferhub.testing.servers import Hub, wait_for
from inferhub.testing.talk import CHAT, COMPLETIONS, Talk, chat_body, chunks, content
from inferhub.testing.upstream_process import Upstream
from inferhub.testing.upstream_script import CREATED as UPSTREAM_CREATED

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
STREAMING_MODELS = ("echo", "smollm2-135m", "remote")


@pytest.mark.parametrize("model", STREAMING_MODELS)
async def test_contract_001_framing_of_a_stream(talk: Talk, model: str) -> None:
    async with talk.opened(CHAT, chat_body(model, stream=True, max_tokens=5)) as call:
        head = await call.head()
        body = (await call.connection.body(head)).decode()
    assert head.status == 200
    assert head["content-type"] == "text/event-stream; charset=utf-8"
    assert head["cache-control"] == "no-cache"
    assert head["x-accel-buffering"] == "no"
    assert head["content-length"] is None
    assert body.endswith("data: [DONE]\n\n")
    events = body.removesuffix("\n\n").split("\n\n")
    assert all(event.startswith("data: ") and "\n" not in event for event in events if event != ": ping")


async def test_contract_001_framing_of_a_completions_stream(talk: Talk) -> None:
    events = await talk.stream_of(COMPLETIONS, {"model": "echo", "prompt": "a b c", "stream": True})
    assert events[-1].data == "[DONE]"
    assert {chunk["object"] for chunk in chunks(events)} == {"text_completion"}
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks(events)) == "a b c"


@pytest.mark.parametrize("model", STREAMING_MODELS)
async def test_contract_002_role_once_and_one_identity(talk: Talk, model: str) -> None:
    found = chunks(await talk.stream(model, max_tokens=5))
    first = found[0]["choices"][0]["delta"]
    # The scripted upstream says its first word at once; its events come as it wrote them.
    assert first == {"role": "assistant", "content": "word0 " if model == "remote" else ""}
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in found[1:])
    for key in ("id", "created", "model", "object"):
        assert len({chunk[key] for chunk in found}) == 1, key
    assert found[0]["object"] == "chat.completion.chunk"
    if model == "remote":
        assert (found[0]["id"], found[0]["created"]) == ("up-1", UPSTREAM_CREATED)
    else:
        assert found[0]["id"].startswith("chatcmpl-")
        assert found[0]["model"] == model


@pytest.mark.parametrize("model", STREAMING_MODELS)
async def test_contract_003_exactly_one_finish(talk: Talk, model: str) -> None:
    choices = [chunk["choices"][0] for chunk in chunks(await talk.stream(model, max_tokens=5))]
    finishing = [choice for choice in choices if choice["finish_reason"]]
    assert len(finishing) == 1
    assert finishing[0]["delta"] == {}
    assert finishing[0] is choices[-1]
    assert all("finish_reason" in choice for choice in choices)


@pytest.mark.parametrize("model", ["echo", "remote"])
async def test_contract_004_every_choice_finishes(talk: Talk, model: str) -> None:
    choices = [chunk["choices"][0] for chunk in chunks(await talk.stream(model, n=3))]
    assert sorted(c["index"] for c in choices if c["finish_reason"]) == [0, 1, 2]
    assert sorted(c["index"] for c in choices if "role" in c["delta"]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("more", "reason"),
    [({}, "stop"), ({"max_tokens": 2}, "length"), ({"tools": [WEATHER]}, "tool_calls")],
)
async def test_contract_005_finish_reason_agrees(talk: Talk, more: dict[str, object], reason: str) -> None:
    streamed = chunks(await talk.stream("echo", **more))[-1]["choices"][0]["finish_reason"]
    whole = (await talk.chat("echo", **more)).json["choices"][0]["finish_reason"]
    assert streamed == whole == reason


async def test_contract_005_the_real_model_says_length(talk: Talk) -> None:
    streamed = chunks(await talk.stream("smollm2-135m", "Count to one hundred.", max_tokens=3))
    assert streamed[-1]["choices"][0]["finish_reason"] == "length"
    whole = (await talk.chat("smollm2-135m", "Count to one hundred.", max_tokens=3)).json
    assert whole["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("model", STREAMING_MODELS)
async def test_contract_006_usage_chunk_only_when_asked(talk: Talk, model: str) -> None:
    silent = chunks(await talk.stream(model, max_tokens=5))
    assert all("usage" not in chunk and chunk["choices"] for chunk in silent)
    asked = chunks(await talk.stream(model, max_tokens=5, stream_options={"include_usage": True}))
    assert asked[-1]["choices"] == []
    assert asked[-1]["usage"]["total_tokens"] > 0
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in asked[:-1])


@pytest.mark.parametrize("stream", [False, None])
async def test_contract_007_stream_options_need_stream(talk: Talk, stream: bool | None) -> None:
    answer = await talk.chat("echo", stream=stream, stream_options={"include_usage": True})
    assert answer.status == 400
    assert answer.error["param"] == "stream_options"


@pytest.mark.parametrize("model", STREAMING_MODELS)
async def test_contract_008_usage_adds_up_and_agrees(talk: Talk, model: str) -> None:
    more = {"max_tokens": 8, "temperature": 0, "seed": 1}
    whole = (await talk.chat(model, "Say hello to me.", **more)).json["usage"]
    events = await talk.stream(model, "Say hello to me.", stream_options={"include_usage": True}, **more)
    streamed = chunks(events)[-1]["usage"]
    for usage in (whole, streamed):
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        assert usage["completion_tokens_details"]["reasoning_tokens"] >= 0
    for count in ("prompt_tokens", "completion_tokens"):
        assert whole[count] == streamed[count], count


async def test_contract_008_cached_tokens_of_an_upstream_are_kept(talk: Talk) -> None:
    assert (await talk.chat("remote")).json["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
    events = await talk.stream("remote", stream_options={"include_usage": True})
    assert chunks(events)[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 3


async def test_contract_009_tokens_are_counted_though_nobody_asked(
    talk: Talk, hub: Hub, upstream: Upstream
) -> None:
    before = _tokens(hub, "remote")
    async with talk.opened(CHAT, chat_body("remote", stream=True, user="script:n=11")) as call:
        head = await call.head()
        events = [event async for event in call.connection.events(head)]
    assert all("usage" not in chunk for chunk in chunks(events))
    wait_for(lambda: _tokens(hub, "remote") == before + 11, 5, "11 tokens to be counted")
    record = await upstream.wait_for(call.request_id)
    assert json.loads(record.body)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("address", "body"),
    [
        (CHAT, chat_body("remote", stream=True)),
        (COMPLETIONS, {"model": "remote", "prompt": "x", "stream": True}),
    ],
)
async def test_contract_009_nothing_of_usage_reaches_who_did_not_ask(
    talk: Talk, address: str, body: dict[str, Any]
) -> None:
    """The upstream is asked on everybody's behalf, and then has a null in every event."""
    async with talk.opened(address, body) as call:
        head = await call.head()
        assert b'"usage"' not in await call.connection.body(head)


def _tokens(hub: Hub, model: str) -> float:
    return hub.metric("inferhub_tokens_total", model=model, type="output")


TEXT = "naïve 👩‍👩‍👧‍👦 e\u0301 漢字 🇪🇺 \U0001f9d1\U0001f3fd‍🚀 ok"


@pytest.mark.parametrize("split", [1, 2, 3, 5])
async def test_contract_010_split_characters_arrive_whole(talk: Talk, split: int) -> None:
    events = await talk.stream("remote", TEXT, user=f"script:echo=1,split={split}")
    assert content(events) == TEXT


async def test_contract_010_unicode_through_the_hub(talk: Talk) -> None:
    assert content(await talk.stream("echo", TEXT)) == TEXT
    assert (await talk.chat("echo", TEXT)).json["choices"][0]["message"]["content"] == TEXT


@pytest.mark.parametrize("split", [0, 1, 7])
async def test_contract_011_unusual_framing_is_understood(talk: Talk, split: int) -> None:
    events = await talk.stream("remote", TEXT, user=f"script:echo=1,odd=1,split={split}")
    assert content(events) == TEXT
    assert events[-1].data == "[DONE]"


async def test_contract_012_pings_before_and_between_tokens(talk: Talk) -> None:
    events = await talk.stream("remote", user="script:ttft_ms=600,gap_ms=500,n=1")
    kinds = ["ping" if event.text == ": ping" else "data" for event in events]
    first_data = kinds.index("data")
    assert "ping" in kinds[:first_data], kinds
    assert "ping" in kinds[first_data:], kinds
    assert all(event.data is not None for event in events if event.text != ": ping")


async def test_contract_012_official_clients_ignore_pings(client: AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model="remote",
        messages=[{"role": "user", "content": "x"}],
        stream=True,
        user="script:ttft_ms=600,n=2",
    )
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == "word0 word1 "


async def test_contract_013_headers_leave_before_the_first_token(talk: Talk) -> None:
    async with talk.opened(CHAT, chat_body("glacial", stream=True)) as call:
        head = await call.head(timeout_s=10)
    assert head.status == 200
    assert head["content-type"] == "text/event-stream; charset=utf-8"


async def test_contract_014_streams_are_never_compressed(talk: Talk) -> None:
    body = chat_body("echo", stream=True)
    async with talk.opened(CHAT, body, accept_encoding="gzip, deflate, br") as call:
        head = await call.head()
        assert head["content-encoding"] is None
        assert b"[DONE]" in await call.connection.body(head)


async def test_contract_015_chunks_are_passed_on_at_once(talk: Talk, upstream: Upstream) -> None:
    """Clocked by the upstream: it waits between pieces, so pieces held together would arrive together."""
    gap_ms, count = 100, 12
    async with talk.opened(
        CHAT, chat_body("remote", stream=True, user=f"script:gap_ms={gap_ms},n={count}")
    ) as call:
        head = await call.head()
        seen = [
            event.at_s async for event in call.connection.events(head) if event.data and '"word' in event.data
        ]
    record = await upstream.wait_for(call.request_id, lambda r: r.done_s)
    assert record.first_byte_s is not None
    # Each piece leaves the upstream not before its turn. A busy machine may make single ones late.
    late_ms = sorted(1000 * (at - record.first_byte_s) - gap_ms * i for i, at in enumerate(seen))
    print(f"median delay {late_ms[count // 2]:.1f} ms, longest {late_ms[-1]:.1f} ms")
    assert len(seen) == count
    gaps_s = [b - a for a, b in itertools.pairwise(seen)]
    assert sum(gap > gap_ms / 2000 for gap in gaps_s) >= count // 2, gaps_s


@pytest.mark.parametrize("model", ["breaks-late", "remote"])
async def test_contract_016_error_after_the_head_is_an_event(talk: Talk, hub: Hub, model: str) -> None:
    before = _failures(hub, model)
    events = await talk.stream(model, "a b c d", user="script:fail_at=2,mode=error,gap_ms=50")
    error = events[-1].json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == "upstream_error"
    assert all(event.data != "[DONE]" for event in events)
    assert len(content(events).split()) == 2
    wait_for(lambda: _failures(hub, model) == before + 1, 5, "the failure to be recorded")


def _failures(hub: Hub, model: str) -> float:
    return hub.metric("inferhub_requests_total", model=model, outcome="upstream_error")


async def test_contract_016_the_official_client_sees_the_error(client: AsyncOpenAI) -> None:
    from openai import APIError

    stream = await client.chat.completions.create(
        model="breaks-late", messages=[{"role": "user", "content": "a b c"}], stream=True
    )
    seen: list[ChatCompletionChunk] = []

    async def read() -> None:
        async for chunk in stream:
            seen.append(chunk)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(APIError, match="on purpose"):
        await read()
    assert seen


@pytest.mark.parametrize("mode", ["rst", "garbage", "half_json", "noterm"])
async def test_contract_016_a_broken_upstream_is_never_an_empty_success(talk: Talk, mode: str) -> None:
    events = await talk.stream("remote", user=f"script:fail_at=2,gap_ms=50,mode={mode}")
    assert events[-1].json["error"]["code"] == "upstream_error", mode
    assert all(event.data != "[DONE]" for event in events)


async def test_contract_017_error_before_the_first_byte_is_a_status(talk: Talk) -> None:
    for model, status, code in (
        ("broken", 502, "upstream_error"),
        ("nope", 404, "model_not_found"),
        ("remote-dead", 502, "upstream_error"),
    ):
        answer = await talk.chat(model, stream=True)
        assert (answer.status, answer.error["code"]) == (status, code)
        assert answer.head["content-type"] == "application/json"


async def test_stream_pieces_are_not_collected(talk: Talk) -> None:
    """The first token of a slow answer is there long before the last."""
    begin = time.monotonic()
    events = await talk.stream("slow", " ".join(["word"] * 25))
    first = next(event.at_s for event in events if event.data and "word" in event.data)
    assert events[-1].at_s - first > 0.5, (first - begin, events[-1].at_s - begin)
