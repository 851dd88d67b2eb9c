"""What the llama.cpp engine is made to write: JSON that fits a schema, and tool calls."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from inferhub.backends.llamacpp import LlamaCpp
from inferhub.core.call import Call
from inferhub.core.errors import Invalid
from inferhub.testing.calls import make_call
from inferhub.testing.contract import finish

pytestmark = pytest.mark.asyncio(loop_scope="module")


def chat(text: str = "Say hello.", **params: Any) -> Call:
    return make_call(
        "chat", messages=[{"role": "user", "content": text}], **{"temperature": 0, "max_tokens": 8} | params
    )


# --- structured output -------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 150}, {"type": "null"}]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 2},
        "code": {"type": "string", "pattern": "^[a-z]{2}-[0-9]{3}$"},
    },
    "required": ["name", "age", "tags", "code"],
    "additionalProperties": False,
    "$defs": {"tag": {"enum": ["red", "green"]}},
}


def formatted(schema: dict[str, Any], **params: Any) -> Call:
    spec = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    return chat("Describe a person.", response_format=spec, **params)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_contract_047_output_validates(llama: LlamaCpp, seed: int) -> None:
    result = await finish(llama, formatted(SCHEMA, max_tokens=200, seed=seed, temperature=1.0))
    assert result.finish_reasons()[0] == ["stop"]
    jsonschema.validate(json.loads(result.text()), SCHEMA)


async def test_contract_047_what_cannot_be_enforced_is_refused(llama: LlamaCpp) -> None:
    with pytest.raises(Invalid, match="'not' cannot be enforced") as caught:
        await finish(llama, formatted({"type": "object", "properties": {"a": {"not": {}}}}))
    assert caught.value.param == "response_format"
    assert "schema.properties.a" in caught.value.message


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/missing"},
        {"$ref": "https://example.com/schema.json"},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}},
        {"enum": []},
    ],
)
async def test_contract_047_what_the_engine_refuses_names_the_parameter(
    llama: LlamaCpp, schema: dict[str, Any]
) -> None:
    with pytest.raises(Invalid) as caught:
        await finish(llama, formatted(schema))
    assert caught.value.param == "response_format"


# --- tools -------------------------------------------------------------------------------------


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": sorted(properties)}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [
    tool("get_weather", city={"type": "string", "maxLength": 20}),
    tool("get_time", zone={"type": "string", "maxLength": 10}),
]
ALLOWED = {
    "type": "allowed_tools",
    "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "get_time"}}]},
}


async def call_tool(
    llama: LlamaCpp, choice: Any, tools: Any = TOOLS, **params: Any
) -> tuple[str, str, list[str]]:
    """Name, arguments and finish reasons of the one call."""
    result = await finish(llama, chat("Weather?", tools=tools, tool_choice=choice, max_tokens=120, **params))
    deltas = [d for p in result.payloads for d in p.tool_calls or ()]
    assert {d.index for d in deltas} == {0}
    assert result.text() == ""
    first, *others = deltas
    assert first.id
    assert first.type == "function"
    assert first.function.arguments == ""
    assert all(d.id is None and d.function.name is None for d in others)
    return (
        first.function.name,
        "".join(d.function.arguments for d in others),
        result.finish_reasons()[0],
    )


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"get_weather", "get_time"}),
        ({"type": "function", "function": {"name": "get_time"}}, {"get_time"}),
        ({"type": "function", "function": {"name": "get_weather"}}, {"get_weather"}),
        (ALLOWED, {"get_time"}),
    ],
)
async def test_contract_046_forced_tools_are_called(llama: LlamaCpp, choice: Any, names: set[str]) -> None:
    name, arguments, reasons = await call_tool(llama, choice)
    assert name in names
    schema = next(t["function"]["parameters"] for t in TOOLS if t["function"]["name"] == name)
    jsonschema.validate(json.loads(arguments), schema)
    assert reasons == ["tool_calls"]


async def test_contract_045_a_tool_without_parameters_gets_an_object(llama: LlamaCpp) -> None:
    ping = [{"type": "function", "function": {"name": "ping", "description": "Ping.", "strict": True}}]
    name, arguments, reasons = await call_tool(llama, "required", ping)
    assert (name, json.loads(arguments), reasons) == ("ping", {}, ["tool_calls"])


async def test_contract_005_a_cut_tool_call_says_length(llama: LlamaCpp) -> None:
    long = [tool("write", text={"type": "string", "minLength": 400})]
    result = await finish(llama, chat("Write.", tools=long, tool_choice="required", max_tokens=40))
    deltas = [d for p in result.payloads for d in p.tool_calls or ()]
    assert deltas[0].function.name == "write"
    assert len(deltas) > 3, "the arguments did not stream"
    assert result.finish_reasons()[0] == ["length"]


async def test_contract_046_tools_are_shown_unless_the_choice_is_none(llama: LlamaCpp) -> None:
    plain = (await finish(llama, chat())).usage.input_tokens
    auto = (await finish(llama, chat(tools=TOOLS))).usage.input_tokens
    none = (await finish(llama, chat(tools=TOOLS, tool_choice="none"))).usage.input_tokens
    assert none == plain
    assert auto > plain + 50


async def test_contract_046_tool_answers_reach_the_model(llama: LlamaCpp) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "get_time", "arguments": '{"zone":"UTC"}'}}
    messages = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "12:00"}]},
    ]
    short = await finish(llama, make_call("chat", messages=messages, max_tokens=4))
    messages[2]["content"] = "12:00 " * 50
    long = await finish(llama, make_call("chat", messages=messages, max_tokens=4, tools=TOOLS))
    assert long.usage.input_tokens > short.usage.input_tokens + 100


async def test_tools_that_cannot_be_followed_are_refused(llama: LlamaCpp) -> None:
    broken = [tool("f", x={"$ref": "#/nowhere"})]
    for choice in ("auto", "required"):
        with pytest.raises(Invalid) as caught:
            await finish(llama, chat(tools=broken, tool_choice=choice))
        assert caught.value.param == "tools"
