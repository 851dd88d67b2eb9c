"""Anthropic's own client against InferHub: over Anthropic's API, over OpenAI-style servers, over own engines.

Every answer and event is checked by the SDK's types, closed against fields that those do not know.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest
import pytest_asyncio
from anthropic import types
from anthropic.types.shared import ErrorResponse
from pydantic import BaseModel

from inferhub.testing.raw_http import Event
from inferhub.testing.servers import SHAPES, Hub, running_hub
from inferhub.testing.talk import Talk, chat_body
from inferhub.testing.upstream_process import Upstream
from inferhub.testing.upstream_script import PROMPT_TOKENS

in_loop = pytest.mark.asyncio(loop_scope="module")

MESSAGES = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
KEY = "sk-ant-canary-0123456789"
SPEC = """\
models:
  - {{name: echo, backend: echo, slots: 64}}
  - {{name: breaks-late, backend: echo, options: {{fail_every: 1, fail_at: 2}}}}
  - {{name: remote, backend: openai_compatible, options: {{base_url: "{url}", api_key: sk-upstream-canary}}}}
  - {{name: claude, backend: anthropic,
     options: {{base_url: "{url}", api_key: {key}, upstream_model: claude-opus-5}}}}
"""
# One for each way to fail: an endpoint that fails too often is left alone for a while.
SPEC += "".join(
    f"  - {{{{name: ill-{name}, backend: {backend}, options: {{{{base_url: '{{url}}', api_key: {{key}}}}}}}}}}\n"
    for name, backend in (
        *((status, "anthropic") for status in ("529", "429", "400", "500", "401", "error", "noterm")),
        ("cut", "openai_compatible"),
    )
)
SETTINGS: dict[str, object] = {"head_hold_s": 0.2, "ping_interval_s": 0.3, "drain_grace_s": 2}
WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "The weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
WORDS = "".join(f"word{i} " for i in range(8))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def upstream() -> AsyncIterator[Upstream]:
    async with Upstream(strict=True) as running:
        yield running
        assert await running.violations() == []


@pytest.fixture(scope="module", params=SHAPES)
def hub(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> Iterator[Hub]:
    folder: Path = tmp_path_factory.mktemp(f"anthropic-{request.param}")
    spec = SPEC.format(url=upstream.url, key=KEY)
    with running_hub(request.param, folder, spec, SETTINGS) as running:
        yield running


@pytest.fixture
def talk(hub: Hub) -> Talk:
    return Talk(hub.url, hub.admin_key)


@pytest_asyncio.fixture(loop_scope="module")
async def client(hub: Hub) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with anthropic.AsyncAnthropic(base_url=hub.url, api_key=hub.admin_key, max_retries=0) as found:
        yield found


def body(model: str, content: Any = "one two three", **more: Any) -> dict[str, Any]:
    return {"model": model, "max_tokens": 64, "messages": [{"role": "user", "content": content}], **more}


def scripted(model: str, script: str, content: Any = "Hi", **more: Any) -> dict[str, Any]:
    """A request that the upstream answers by this script."""
    return body(model, content, metadata={"user_id": f"script:{script}"}, **more)


def closed(kind: type[BaseModel], instance: Any, where: str = "") -> list[str]:
    """Where `instance` breaks the SDK's model, unknown fields included."""
    found = kind.model_validate(instance)
    return list(_unknown(found, instance, where or kind.__name__))


def _unknown(found: Any, instance: Any, where: str) -> Iterator[str]:
    if isinstance(found, BaseModel):
        known = {field.alias or name for name, field in type(found).model_fields.items()}
        yield from (f"{where}.{name}" for name in instance if name not in known)
        for name in known & set(instance):
            yield from _unknown(getattr(found, name), instance[name], f"{where}.{name}")
    elif isinstance(found, list):
        for place, (inner, given) in enumerate(zip(found, instance, strict=True)):
            yield from _unknown(inner, given, f"{where}[{place}]")


EVENTS: dict[str, type[BaseModel]] = {
    "message_start": types.RawMessageStartEvent,
    "message_delta": types.RawMessageDeltaEvent,
    "message_stop": types.RawMessageStopEvent,
    "content_block_start": types.RawContentBlockStartEvent,
    "content_block_delta": types.RawContentBlockDeltaEvent,
    "content_block_stop": types.RawContentBlockStopEvent,
    "error": ErrorResponse,
}


def named(events: list[Event]) -> list[tuple[str, dict[str, Any]]]:
    """(name, data) of each event that is not a comment."""
    found = []
    for event in events:
        if not event.text.startswith(":"):
            name, data = event.text.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def checked(events: list[Event]) -> list[dict[str, Any]]:
    """The events of a stream that is whole: named, of the SDK's types, blocks one after the other."""
    found = named(events)
    assert [name for name, _ in found] == [data["type"] for _, data in found]
    told = [data for name, data in found if name != "ping"]
    problems = [problem for event in told for problem in closed(EVENTS[event["type"]], event)]
    assert not problems
    assert [event["type"] for event in told][0 :: len(told) - 1] == ["message_start", "message_stop"]
    opened: list[int] = []
    for event in told:
        if event["type"] == "content_block_start":
            assert event["index"] == len(opened)
            opened.append(event["index"])
        if event["type"].startswith("content_block"):
            assert event["index"] == opened[-1]
    return told


async def streamed(talk: Talk, request: dict[str, Any]) -> list[dict[str, Any]]:
    return checked(await talk.stream_of(MESSAGES, {**request, "stream": True}))


async def whole(talk: Talk, request: dict[str, Any]) -> dict[str, Any]:
    answer = await talk.post(MESSAGES, request)
    assert answer.status == 200, answer.body
    message: dict[str, Any] = json.loads(answer.body)
    assert closed(types.Message, message) == []
    return message


@pytest.mark.parametrize("model", ["echo", "remote", "claude"])
@in_loop
async def test_stream_and_whole_answer_say_the_same(talk: Talk, model: str) -> None:
    request = body(model)
    message = await whole(talk, request)
    events = await streamed(talk, request)
    pieces = [event["delta"]["text"] for event in events if event["type"] == "content_block_delta"]
    assert message["content"] == [{"type": "text", "text": "".join(pieces)}]
    start, end = events[0]["message"], events[-2]
    assert start["usage"]["input_tokens"] > 0 or start["usage"]["cache_read_input_tokens"] > 0
    assert (start["stop_reason"], end["delta"]["stop_reason"], message["stop_reason"]) == (
        None,
        "end_turn",
        "end_turn",
    )
    for name in ("input_tokens", "output_tokens", "cache_read_input_tokens"):
        assert end["usage"][name] == message["usage"][name]


@pytest.mark.parametrize("model", ["remote", "claude"])
@in_loop
async def test_usage_is_whole_in_the_ledger_and_disjoint_for_the_client(talk: Talk, model: str) -> None:
    usage = (await whole(talk, scripted(model, "n=5")))["usage"]
    classes = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
    assert sum(usage[name] for name in classes) == PROMPT_TOKENS
    assert (usage["cache_read_input_tokens"], usage["output_tokens"]) == (3, 5)
    # Through the other door, the same upstream answer counts the whole prompt.
    answer = await talk.chat(model, "Hi", user="script:n=5", max_tokens=9)
    assert answer.json["usage"]["prompt_tokens"] == PROMPT_TOKENS
    assert answer.json["usage"]["prompt_tokens_details"]["cached_tokens"] == 3


@pytest.mark.parametrize("model", ["remote", "claude"])
@in_loop
async def test_tools_stream_block_after_block(talk: Talk, model: str) -> None:
    request = scripted(model, "tools=2", tools=[WEATHER])
    message = await whole(talk, request)
    calls = [(b["type"], b["id"], b["name"], b["input"]) for b in message["content"]]
    assert calls == [("tool_use", f"call_{i}", f"tool{i}", {"x": i}) for i in range(2)]
    events = await streamed(talk, request)
    joined = ["", ""]
    for event in events:
        if event["type"] == "content_block_delta":
            joined[event["index"]] += event["delta"]["partial_json"]
    assert [json.loads(text) for text in joined] == [{"x": 0}, {"x": 1}]
    assert (events[-2]["delta"]["stop_reason"], message["stop_reason"]) == ("tool_use", "tool_use")


@pytest.mark.parametrize("model", ["remote", "claude"])
@in_loop
async def test_a_call_without_arguments_has_an_empty_input(talk: Talk, model: str) -> None:
    request = scripted(model, "tools=1,bad_tools=no_arguments", tools=[WEATHER])
    events = await streamed(talk, request)
    pieces = [e["delta"]["partial_json"] for e in events if e["type"] == "content_block_delta"]
    assert "".join(pieces) in ("", "{}")


@in_loop
async def test_thoughts_come_signed_and_go_back(talk: Talk, upstream: Upstream) -> None:
    """In both doors: Messages to Anthropic as it is, and chat by way of `reasoning_details`."""
    message = await whole(talk, scripted("claude", "think=2,n=2"))
    assert message["content"][0] == {
        "type": "thinking",
        "thinking": "thought0 thought1 ",
        "signature": "c2lnbmVk",
    }
    answer = await talk.chat("claude", "Hi", user="script:think=2,n=2")
    said = answer.json["choices"][0]["message"]
    assert said["reasoning_content"] == "thought0 thought1 "
    turns = [{"role": "user", "content": "Hi"}, said, {"role": "user", "content": "And?"}]
    again = await talk.post("/v1/chat/completions", {"model": "claude", "messages": turns})
    assert again.status == 200, again.body
    sent = json.loads((await upstream.log())[-1].body)
    assert sent["messages"][1]["content"][0] == message["content"][0]


@in_loop
async def test_thoughts_of_others_become_thinking_blocks(talk: Talk) -> None:
    events = await streamed(talk, scripted("remote", "think=2,n=1"))
    kinds = [e["content_block"]["type"] for e in events if e["type"] == "content_block_start"]
    assert kinds == ["thinking", "text"]


@pytest.mark.parametrize("model", ["echo", "remote", "claude"])
@in_loop
async def test_official_client_streams_with_tools_and_results(
    client: anthropic.AsyncAnthropic, model: str
) -> None:
    turns: Any = [
        {"role": "user", "content": "The weather?"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Rome"}},
                {"type": "tool_use", "id": "toolu_2", "name": "get_weather", "input": {"city": "Paris"}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"},
                {
                    "type": "tool_result",
                    "tool_use_id": "toolu_2",
                    "is_error": True,
                    "content": [{"type": "text", "text": "no such city"}],
                },
                {"type": "text", "text": "Thanks. Now say more."},
            ],
        },
    ]
    system: Any = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    async with client.messages.stream(
        model=model, max_tokens=64, messages=turns, system=system, tools=[WEATHER]
    ) as stream:
        async for _ in stream:
            pass
        message = await stream.get_final_message()
    assert message.content
    assert message.usage.input_tokens + (message.usage.cache_read_input_tokens or 0) > 0
    assert (stream.request_id or "").startswith("req_")


def test_synchronous_client_and_its_errors(hub: Hub) -> None:
    with anthropic.Anthropic(base_url=hub.url, api_key=hub.admin_key, max_retries=0) as client:
        turns: Any = [{"role": "user", "content": "one two"}]
        assert client.messages.create(model="echo", max_tokens=9, messages=turns).content[0].type == "text"
        with pytest.raises(anthropic.NotFoundError) as missing:
            client.messages.create(model="nobody", max_tokens=9, messages=turns)
        assert missing.value.type == "not_found_error"
        with pytest.raises(anthropic.BadRequestError):
            client.messages.create(model="echo", max_tokens=9, messages=[])
    with anthropic.Anthropic(base_url=hub.url, api_key="ih_wrong", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError) as denied:
            stranger.messages.create(model="echo", max_tokens=9, messages=turns)
        assert denied.value.type == "authentication_error"


@pytest.mark.parametrize(
    ("mode", "kind", "name"),
    [
        ("529", anthropic.InternalServerError, "overloaded_error"),
        ("429", anthropic.RateLimitError, "rate_limit_error"),
        ("400", anthropic.BadRequestError, "invalid_request_error"),
        ("500", anthropic.InternalServerError, "api_error"),
        ("401", anthropic.InternalServerError, "api_error"),
    ],
)
@in_loop
async def test_errors_of_the_upstream_reach_the_client_by_name(
    client: anthropic.AsyncAnthropic, mode: str, kind: type[anthropic.APIStatusError], name: str
) -> None:
    with pytest.raises(kind) as error:
        await client.messages.create(**scripted(f"ill-{mode}", f"mode={mode},leak=1"))
    told: Any = error.value.body
    assert (told["type"], told["error"]["type"]) == ("error", name)
    assert told["request_id"] == error.value.request_id
    assert KEY not in json.dumps(told)


@pytest.mark.parametrize("mode", ["error", "noterm", "cut"])
@in_loop
async def test_a_stream_that_breaks_ends_with_an_error_event(talk: Talk, mode: str) -> None:
    request = {**scripted(f"ill-{mode}", f"mode={mode},fail_at=3,gap_ms=5"), "stream": True}
    events = named(await talk.stream_of(MESSAGES, request))
    assert [name for name, _ in events].index("error") == len(events) - 1
    assert "message_stop" not in [name for name, _ in events]
    assert closed(ErrorResponse, events[-1][1]) == []


@in_loop
async def test_a_broken_stream_raises_in_the_official_client(client: anthropic.AsyncAnthropic) -> None:
    async with client.messages.stream(**body("breaks-late", "one two three four")) as stream:
        with pytest.raises(anthropic.APIStatusError):
            await stream.get_final_message()


# --- the pass-through lane ---------------------------------------------------------------------


@in_loop
async def test_bytes_pass_through_to_and_from_anthropic(talk: Talk, upstream: Upstream) -> None:
    raw = (
        b'{"model":"claude","max_tokens":40,"stream":true,"messages":[{"role":"user","content":'
        b'"\\u00e9\\ud83d\\ude00 1.50"}],"metadata":{"user_id":"script:n=3"},"top_k":40,"temperature":1.0}'
    )
    async with talk.opened(MESSAGES, raw) as call:
        head = await call.head()
        events = [event async for event in call.connection.events(head)]
    told = checked(events)
    assert (told[0]["message"]["id"], told[0]["message"]["model"]) == ("msg_up1", "claude-opus-5")
    record = (await upstream.log())[-1]
    assert b'"\\u00e9\\ud83d\\ude00 1.50"' in record.body.encode()
    assert '"temperature":1.0' in record.body
    assert json.loads(record.body)["model"] == "claude-opus-5"
    assert record.headers["x-api-key"] == KEY
    assert "authorization" not in record.headers


@in_loop
async def test_tools_that_anthropic_runs_are_asked_of_anthropic_alone(talk: Talk, upstream: Upstream) -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
    found = {"type": "web_search_result", "title": "t", "url": "https://e.example", "encrypted_content": "e"}
    turns = [
        {"role": "user", "content": "Search."},
        {
            "role": "assistant",
            "content": [
                {
                    "type": "server_tool_use",
                    "id": "srvtoolu_1",
                    "name": "web_search",
                    "input": {"query": "q"},
                },
                {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [found]},
            ],
        },
        {"role": "user", "content": "And?"},
    ]
    request = {**scripted("claude", "n=2"), "messages": turns, "tools": [search, WEATHER], "temperature": 0}
    for _ in range(2):
        await whole(talk, request)
        sent = json.loads((await upstream.log())[-1].body)
        assert (sent["tools"], sent["messages"]) == ([search, WEATHER], turns)
    # The same but for what chat cannot say is another question.
    await whole(talk, {**request, "tools": [{**search, "max_uses": 1}, WEATHER]})
    assert json.loads((await upstream.log())[-1].body)["tools"][0]["max_uses"] == 1
    counted = await talk.post(COUNT, {"model": "claude", "messages": turns, "tools": [search]})
    assert counted.status == 200, counted.body
    for model in ("echo", "remote"):
        refused = await talk.post(MESSAGES, {**request, "model": model})
        assert refused.status == 400
        assert "tools.0.web_search_20250305" in refused.json["error"]["message"]


@in_loop
async def test_unstreamed_bytes_pass_through(talk: Talk) -> None:
    message = await whole(talk, scripted("claude", "n=2"))
    assert (message["id"], message["model"]) == ("msg_up1", "claude-opus-5")
    assert message["usage"]["cache_creation_input_tokens"] == 2


@in_loop
async def test_headers_and_query_of_coding_agents_are_accepted(talk: Talk, upstream: Upstream) -> None:
    headers = {"anthropic-beta": "unknown-2030-01-01", "anthropic-version": "2023-06-01"}
    answer = await talk.post(f"{MESSAGES}?beta=true", body("claude"), **headers)
    assert answer.status == 200, answer.body
    assert "anthropic-beta" not in (await upstream.log())[-1].headers


# --- counting, keys, refusals --------------------------------------------------------------------


@in_loop
async def test_count_tokens_needs_no_limit_and_answers_one_number(
    client: anthropic.AsyncAnthropic, talk: Talk
) -> None:
    turns: Any = [{"role": "user", "content": "one two three"}]
    count = await client.messages.count_tokens(model="claude", messages=turns, system="Be brief.")
    assert count.input_tokens == PROMPT_TOKENS
    answer = await talk.post(COUNT, {"model": "claude", "messages": turns, "tools": [WEATHER]})
    assert answer.json == {"input_tokens": PROMPT_TOKENS}
    missing = await talk.post(COUNT, {"model": "claude", "messages": []})
    assert (missing.status, missing.json["error"]["type"]) == (400, "invalid_request_error")


@in_loop
async def test_a_key_counts_in_either_header(talk: Talk) -> None:
    key = talk.key
    for headers, status in (
        ({"x-api-key": key, "authorization": f"Bearer {key}"}, 200),
        ({"x-api-key": "ih_other", "authorization": f"Bearer {key}"}, 401),
        ({"x-api-key": "ih_other", "authorization": ""}, 401),
    ):
        answer = await talk.post(MESSAGES, body("echo"), **headers)
        assert answer.status == status, headers
    chat = await talk.post("/v1/chat/completions", chat_body("echo"), **{"x-api-key": key})
    assert chat.status == 200


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": 1.5}, "temperature"),
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "hologram"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search_20250305"),
        ({"container": "c"}, "container"),
        ({"mcp_servers": [{"type": "url", "url": "https://mcp.example"}]}, "mcp_servers"),
        ({"tools": [{"name": "f", "input_schema": {"type": 5}}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "tool", "name": "g"}, "tools": [WEATHER]}, "tool_choice.name"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x", "content": "1"}]}
                ]
            },
            "messages.0.content.0.tool_use_id",
        ),
    ],
)
@in_loop
async def test_bad_requests_are_told_where(talk: Talk, change: dict[str, Any], told: str) -> None:
    answer = await talk.post(MESSAGES, {**body("echo"), **change})
    assert (answer.status, answer.json["type"]) == (400, "error"), answer.body
    assert closed(ErrorResponse, answer.json) == []
    assert answer.json["error"]["type"] == "invalid_request_error"
    assert told in answer.json["error"]["message"]


@in_loop
async def test_chat_parameters_that_anthropic_lacks_are_refused_by_name(talk: Talk) -> None:
    for more, param in (
        ({"temperature": 1.4}, "temperature"),
        ({"n": 2}, "n"),
        ({"seed": 1}, "seed"),
        ({"logprobs": True}, "logprobs"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ):
        answer = await talk.chat("claude", "Hi", **more)
        error = answer.json["error"]
        assert (answer.status, error["code"], error["param"]) == (400, "unsupported_parameter", param)


@in_loop
async def test_chat_requests_become_clean_messages_requests(talk: Talk, upstream: Upstream) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    turns = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": None, "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}},
            {"id": "b", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
        ]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": "2"},
        {"role": "user", "content": [
            {"type": "text", "text": "This:"},
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="}},
        ]},
    ]  # fmt: skip
    answer = await talk.post("/v1/chat/completions", {
        "model": "claude", "messages": turns, "tools": [tool], "tool_choice": "required",
        "parallel_tool_calls": False, "stop": "END", "reasoning_effort": "high", "user": "u-1",
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
    })  # fmt: skip
    assert answer.status == 200, answer.body
    record = (await upstream.log())[-1]
    assert record.violations == []
    sent = json.loads(record.body)
    assert sent["max_tokens"] == 16384
    assert [turn["role"] for turn in sent["messages"]] == ["user", "assistant", "user"]
    assert sent["tool_choice"] == {"type": "any", "disable_parallel_tool_use": True}
    assert sent["output_config"]["effort"] == "high"


@in_loop
async def test_llama_answers_anthropics_client(
    tmp_path_factory: pytest.TempPathFactory, cache_dir: Path
) -> None:
    """An engine of our own, with a tool it has to call, and the count of its own tokenizer."""
    spec = "models:\n  - {name: smollm2, backend: llamacpp, weights: smollm2-135m, slots: 1}\n"
    folder = tmp_path_factory.mktemp("anthropic-llama")
    turns: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
    choice: Any = {"type": "tool", "name": "get_weather"}
    tools: Any = [WEATHER]
    with running_hub("serve", folder, spec, {**SETTINGS, "cache_dir": cache_dir}) as running:
        async with anthropic.AsyncAnthropic(base_url=running.url, api_key=running.admin_key) as client:
            async with client.messages.stream(
                model="smollm2", max_tokens=60, messages=turns, tools=tools, tool_choice=choice
            ) as stream:
                message = await stream.get_final_message()
            [block] = [block for block in message.content if block.type == "tool_use"]
            assert block.name == "get_weather"
            assert block.input["city"] in ("Paris", "Rome")
            assert message.stop_reason == "tool_use"
            said = await client.messages.create(
                model="smollm2",
                max_tokens=40,
                messages=turns,
                stop_sequences=["a"],
                extra_body={"temperature": 0.0},
            )
            assert said.stop_reason in ("stop_sequence", "end_turn", "max_tokens")
            count = await client.messages.count_tokens(model="smollm2", messages=turns)
            assert count.input_tokens == said.usage.input_tokens + (said.usage.cache_read_input_tokens or 0)
