"""Contract items 43 and 45 to 47: tool calls and structured answers."""

from __future__ import annotations

import json
from typing import Any, Literal

import pytest
from openai import AsyncOpenAI
from pydantic import BaseModel

from inferhub.testing.raw_http import Event
from inferhub.testing.talk import CHAT, Talk, chat_body, chunks, content

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "get_time"}}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


def tool_deltas(events: list[Event]) -> list[dict[str, Any]]:
    choices = (choice for chunk in chunks(events) for choice in chunk["choices"])
    return [call for choice in choices for call in choice["delta"].get("tool_calls", ())]


def accumulated(deltas: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(id, name, arguments) as a client puts them together, checking each delta's form on the way."""
    calls: list[tuple[str, str, str]] = []
    for delta in deltas:
        if delta["index"] == len(calls):
            assert set(delta) == {"index", "id", "type", "function"}, delta
            assert delta["type"] == "function"
            assert delta["id"]
            assert delta["function"]["arguments"] == "", delta
            calls.append((delta["id"], delta["function"]["name"], ""))
        else:
            assert set(delta) == {"index", "function"}, delta
            assert set(delta["function"]) == {"arguments"}, delta
            call_id, name, arguments = calls[delta["index"]]
            calls[delta["index"]] = (call_id, name, arguments + delta["function"]["arguments"])
    assert len({call_id for call_id, _, _ in calls}) == len(calls)
    return calls


@pytest.mark.parametrize(
    ("model", "more", "names"),
    [
        ("echo", {"tools": [WEATHER]}, ["get_weather"]),
        ("smollm2-135m", {"tools": [WEATHER], "tool_choice": NAMED, "max_tokens": 60}, ["get_weather"]),
        ("remote", {"tools": [WEATHER], "user": "script:tools=3,split=7"}, ["tool0", "tool1", "tool2"]),
    ],
)
async def test_contract_043_tool_deltas(
    talk: Talk, model: str, more: dict[str, Any], names: list[str]
) -> None:
    events = await talk.stream(model, "What is the weather in Paris?", **more)
    calls = accumulated(tool_deltas(events))
    assert [name for _, name, _ in calls] == names
    assert chunks(events)[-1]["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("model", "more"),
    [
        ("echo", {"tools": [WEATHER]}),
        ("smollm2-135m", {"tools": [WEATHER], "tool_choice": NAMED, "temperature": 0, "max_tokens": 60}),
        ("remote", {"tools": [WEATHER], "user": "script:tools=2"}),
    ],
)
async def test_contract_045_arguments_agree_with_the_whole_answer(
    talk: Talk, model: str, more: dict[str, Any]
) -> None:
    question = "Weather in Paris? ünïcödé \\u00e9"
    streamed = accumulated(tool_deltas(await talk.stream(model, question, **more)))
    choice = (await talk.chat(model, question, **more)).json["choices"][0]
    whole = [
        (call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in choice["message"]["tool_calls"]
    ]
    assert [(name, json.loads(arguments)) for _, name, arguments in streamed] == whole
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    if model == "echo":
        assert whole[0][1] == {"text": question}


async def test_contract_046_tool_choice(talk: Talk) -> None:
    async def names(**more: Any) -> list[str] | None:
        answer = await talk.chat("echo", tools=[WEATHER, TIME], **more)
        assert answer.status == 200, answer.body
        calls = answer.json["choices"][0]["message"].get("tool_calls")
        return [call["function"]["name"] for call in calls] if calls else None

    assert await names(tool_choice="none") is None
    assert await names(tool_choice="auto") == ["get_weather"]
    assert await names(tool_choice="required") == ["get_weather"]
    assert await names(tool_choice={"type": "function", "function": {"name": "get_time"}}) == ["get_time"]
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}
    assert await names(tool_choice=allowed) == ["get_weather"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "sometimes", "tools": [WEATHER]}, "tool_choice"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "other"}}, "tools": [WEATHER]},
            "tool_choice",
        ),
        ({"tools": [{"type": "function", "function": {"name": "bad name!"}}]}, "tools"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 5}}}]}, "tools"),
    ],
)
async def test_contract_046_bad_tools(talk: Talk, more: dict[str, Any], param: str) -> None:
    answer = await talk.chat("echo", **more)
    assert answer.status == 400, answer.body
    assert (answer.error["param"] or "").startswith(param), answer.error


CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city":"Rome"}'},
}


@pytest.mark.parametrize("model", ["echo", "smollm2-135m", "remote"])
async def test_contract_046_a_tool_s_answer_is_read(talk: Talk, model: str) -> None:
    messages = [
        {"role": "user", "content": "Weather in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sunny"}]},
    ]
    answer = await talk.post(CHAT, {"model": model, "messages": messages, "max_tokens": 8})
    assert answer.status == 200, answer.body
    if model == "echo":
        assert answer.json["choices"][0]["message"]["content"] == "sunny"


async def test_contract_046_unmatched_tool_call_id(talk: Talk) -> None:
    messages = [
        {"role": "user", "content": "Weather in Rome?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_2", "content": "sunny"},
    ]
    answer = await talk.post(CHAT, {"model": "echo", "messages": messages})
    assert (answer.status, answer.error["param"]) == (400, "messages[2].tool_call_id")
    assert "'call_2'" in answer.error["message"]
    assert "call_1" in answer.error["message"]


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 20},
        "rating": {"type": "integer", "enum": [1, 2, 3]},
    },
    "required": ["city", "rating"],
    "additionalProperties": False,
}


def json_schema(schema: Any, **more: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True, **more}}


async def test_contract_047_the_answer_follows_the_schema(talk: Talk) -> None:
    more = {"response_format": json_schema(SCHEMA), "max_tokens": 80, "temperature": 0}
    whole = (await talk.chat("smollm2-135m", "Rate Paris.", **more)).json["choices"][0]["message"]["content"]
    streamed = content(await talk.stream("smollm2-135m", "Rate Paris.", **more))
    for text in (whole, streamed):
        found = json.loads(text)
        assert set(found) == {"city", "rating"}
        assert isinstance(found["city"], str)
        assert found["rating"] in (1, 2, 3)


async def test_contract_047_json_object(talk: Talk) -> None:
    json_object = {"type": "json_object"}
    echoed = (await talk.chat("echo", response_format=json_object)).json["choices"][0]["message"]["content"]
    assert json.loads(echoed) == {"echo": "one two three"}
    text = {"type": "text"}
    plain = (await talk.chat("echo", response_format=text)).json["choices"][0]["message"]["content"]
    assert plain == "one two three"


async def test_contract_047_parse_of_the_official_client(client: AsyncOpenAI) -> None:
    class Place(BaseModel):
        city: str
        size: Literal["small", "large"]

    parsed = await client.chat.completions.parse(
        model="smollm2-135m",
        messages=[{"role": "user", "content": "Describe Paris."}],
        response_format=Place,
        max_tokens=120,
        temperature=0,
    )
    place = parsed.choices[0].message.parsed
    assert isinstance(place, Place)
    assert parsed.choices[0].message.refusal is None


@pytest.mark.parametrize(
    ("response_format", "param"),
    [
        ({"type": "yaml"}, "response_format"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": SCHEMA}}, "response_format.json_schema.name"),
        (json_schema({"type": "strange"}), "response_format.json_schema.schema"),
        (json_schema({"properties": 5}), "response_format.json_schema.schema"),
        (json_schema([]), "response_format.json_schema.schema"),
    ],
)
@pytest.mark.parametrize("model", ["smollm2-135m", "remote"])
async def test_contract_047_bad_schemas(
    talk: Talk, model: str, response_format: dict[str, Any], param: str
) -> None:
    answer = await talk.chat(model, response_format=response_format)
    assert answer.status == 400, answer.body
    assert (answer.error["param"] or "").startswith(param), answer.error


async def test_contract_047_what_the_engine_cannot_enforce_is_refused(talk: Talk) -> None:
    """Better than an answer that does not validate."""
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "patternProperties": {"^x": {}}}
    answer = await talk.chat("smollm2-135m", response_format=json_schema(schema))
    assert answer.status == 400
    assert "patternProperties" in answer.error["message"]


async def test_contract_047_not_offered_is_told(talk: Talk) -> None:
    answer = await talk.chat("echo", response_format=json_schema(SCHEMA))
    assert (answer.status, answer.error["code"], answer.error["param"]) == (
        400,
        "unsupported_parameter",
        "response_format",
    )


async def test_contract_016_a_tool_call_that_breaks_off_is_an_error(talk: Talk) -> None:
    """Not a call with half its arguments."""
    body = chat_body(
        "remote", stream=True, tools=[WEATHER], user="script:tools=1,fail_at=3,gap_ms=150,mode=rst"
    )
    events = await talk.stream_of(CHAT, body)
    assert events[-1].json["error"]["code"] == "upstream_error"
    assert not any(c["choices"][0]["finish_reason"] for c in chunks(events[:-1]))
