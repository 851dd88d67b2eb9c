"""Messages requests as chat requests: what is kept, what is refused and where, what is ignored."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from inferhub.core.errors import (
    Invalid,
)
from inferhub.modalities.chat import (
    ChatRequest,
)
from inferhub.modalities.chat.request import check as check_chat
from inferhub.wire.anthropic_messages.lift import Rules, lift
from inferhub.wire.anthropic_messages.lower import lower
from inferhub.wire.anthropic_messages.prompt import prompt_tokens
from inferhub.wire.anthropic_messages.request import CountTokensRequest, MessagesRequest, check

RULES = Rules("claude-opus-5", 16384)
PIXEL = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
TOOL = {"name": "f", "description": "d", "strict": True, "input_schema": {"type": "object", "properties": {}}}
HI = [{"role": "user", "content": "Hi"}]


def request(**params: Any) -> MessagesRequest:
    asked = msgspec.convert({"model": "m", "max_tokens": 10, "messages": HI, **params}, MessagesRequest)
    check(asked)
    return asked


def lowered(**params: Any) -> dict[str, Any]:
    """The chat request, checked as one that a client had sent."""
    done = lower(request(**params))
    check_chat(done.request)
    assert msgspec.json.decode(done.body, type=ChatRequest) == done.request
    tree: dict[str, Any] = json.loads(done.body)
    return tree


def dialogue(*content: Any) -> list[dict[str, Any]]:
    """A call of a tool, and a user's turn after it."""
    call = {"type": "tool_use", "id": "a", "name": "f", "input": {"x": [1, "é"]}}
    other = {"type": "tool_use", "id": "b", "name": "f", "input": {}}
    said = [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "I look."}]
    return [
        *HI,
        {"role": "assistant", "content": [*said, call, other]},
        {"role": "user", "content": list(content)},
    ]


def test_a_dialogue_with_tools_keeps_all_it_said() -> None:
    failed = {"type": "tool_result", "tool_use_id": "b", "content": [PIXEL], "is_error": True}
    text = {"type": "text", "text": "Go on.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    done = {"type": "tool_result", "tool_use_id": "a", "content": "1"}
    messages = lowered(messages=dialogue(done, failed, text), tools=[TOOL])["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "tool", "user"]
    assert messages[1]["content"] == "I look."
    assert messages[1]["reasoning_content"] == "hm"
    assert messages[1]["reasoning_details"][0]["signature"] == "s"
    calls = [(c["id"], json.loads(c["function"]["arguments"])) for c in messages[1]["tool_calls"]]
    assert calls == [("a", {"x": [1, "é"]}), ("b", {})]
    assert messages[2] == {"role": "tool", "tool_call_id": "a", "content": "1"}
    assert messages[3]["is_error"]
    assert messages[3]["content"][0]["image_url"]["url"] == "data:image/png;base64,iVBORw0KGgo="
    assert messages[4]["content"] == [text]


def test_what_tools_answer_comes_before_what_the_user_says() -> None:
    done = [{"type": "tool_result", "tool_use_id": name} for name in ("a", "b")]
    messages = lowered(messages=dialogue({"type": "text", "text": "?"}, *done))["messages"]
    assert [message["role"] for message in messages[2:]] == ["tool", "tool", "user"]


def test_a_dialogue_comes_back_from_chat_as_it_was() -> None:
    done = [{"type": "tool_result", "tool_use_id": name, "content": "1"} for name in ("a", "b")]
    turns = dialogue(*done, {"type": "text", "text": "Go on."})
    assert lift(lower(request(messages=turns)).request, RULES)["messages"][1:] == turns[1:]


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"stop_sequences": ["a", "b"]}, {"stop": ["a", "b"]}),
        ({"top_k": 5, "top_p": 0.5, "temperature": 0.0}, {"top_k": 5, "top_p": 0.5, "temperature": 0.0}),
        ({"top_k": 0}, {}),
        ({"metadata": {"user_id": "u"}}, {"user": "u"}),
        ({"service_tier": "standard_only"}, {"service_tier": "default"}),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
        ),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"output_config": {"effort": "max"}}, {"reasoning_effort": "xhigh"}),
        ({"tools": [TOOL], "tool_choice": {"type": "any"}}, {"tool_choice": "required"}),
        (
            {"tools": [TOOL], "tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
            {"tool_choice": "auto", "parallel_tool_calls": False},
        ),
        (
            {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "f"}},
            {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        ),
    ],
)
def test_parameters_have_their_counterparts(params: dict[str, Any], expected: dict[str, Any]) -> None:
    tree = lowered(**params)
    assert {
        k: v for k, v in tree.items() if k not in ("model", "messages", "max_tokens", "tools")
    } == expected


def test_tools_schemas_and_nulls_inside_them_are_kept() -> None:
    schema = {"type": "object", "properties": {"x": {"enum": [None, 1], "default": None}}}
    tree = lowered(tools=[{**TOOL, "input_schema": schema}], output_config={
        "format": {"type": "json_schema", "schema": schema}
    })  # fmt: skip
    assert tree["tools"][0]["function"] == {
        "name": "f", "description": "d", "strict": True, "parameters": schema,
    }  # fmt: skip
    assert tree["response_format"]["json_schema"]["schema"] == schema


def test_documents_become_files_or_text() -> None:
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "JVBERg=="}
    plain = {"type": "text", "media_type": "text/plain", "data": "All."}
    inner = {"type": "content", "content": [{"type": "text", "text": "In."}, PIXEL]}
    found = {"type": "search_result", "source": "https://a.b", "title": "T", "content": [
        {"type": "text", "text": "Found."}], "citations": {"enabled": True}}  # fmt: skip
    turns = [{"role": "user", "content": [
        {"type": "document", "source": pdf, "title": "a.pdf"},
        {"type": "document", "source": plain, "title": "Title"},
        {"type": "document", "source": inner},
        {"type": "document", "source": {"type": "url", "url": "https://a.b/c.pdf"}},
        found,
    ]}]  # fmt: skip
    done = lower(request(messages=turns))
    parts = json.loads(done.body)["messages"][0]["content"]
    assert parts[0]["file"] == {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERg=="}
    assert parts[1]["text"] == "Title\nAll."
    assert [part["type"] for part in parts[2:]] == ["text", "image_url", "file", "text"]
    assert parts[5]["text"] == "T\nhttps://a.b\nFound."
    assert done.ignored == ("citations",)


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": ""}]}]},
         "messages.0.content.0"),
        ({"messages": [{"role": "assistant", "content": [PIXEL]}]}, "messages.0.content.0"),
        ({"messages": dialogue({"type": "tool_result", "tool_use_id": "c"})},
         "messages.2.content.0.tool_use_id"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tools": [TOOL, TOOL]}, "tools.1.name"),
        ({"tools": [{**TOOL, "input_schema": {"type": "nothing"}}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": 1}}}},
         "output_config.format.schema"),
    ],
)  # fmt: skip
def test_wrong_requests_are_told_anthropics_path(params: dict[str, Any], param: str) -> None:
    with pytest.raises(Invalid) as error:
        request(**params)
    assert error.value.param == param


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools.0.bash_20250124"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"messages": [{"role": "assistant", "content": [{"type": "server_tool_use", "id": "1"}]}]},
         "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "file", "file_id": "f"}}]}]}, "messages.0.content.0.source"),
    ],
)  # fmt: skip
def test_what_only_anthropic_runs_is_left_out_and_needed_by_name(params: dict[str, Any], param: str) -> None:
    done = lower(request(**params))
    assert done.needs == {"anthropic_messages": param}
    assert msgspec.json.decode(done.body, type=ChatRequest) == done.request
    assert done.request.tools is None


def test_anthropics_own_tools_leave_the_clients_tools_in_place() -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
    done = lower(request(tools=[TOOL, search], tool_choice={"type": "any"}))
    assert done.needs == {"anthropic_messages": "tools.1.web_search_20250305"}
    assert [tool.function.name for tool in done.request.tools or ()] == ["f"]
    assert done.request.tool_choice == "required"
    chosen = lower(request(tools=[TOOL, search], tool_choice={"type": "tool", "name": "web_search"}))
    assert chosen.request.tool_choice is None
    count = msgspec.convert({"model": "m", "messages": HI, "tools": [search]}, CountTokensRequest)
    assert lower(count).needs == {"anthropic_count_tokens": "tools.0.web_search_20250305"}
    assert lower(request(tools=[TOOL])).needs == {}


def test_what_anthropic_allows_and_openai_does_not_is_taken() -> None:
    stops = [str(n) for n in range(40)]
    assert lower(request(stop_sequences=stops)).request.stop == stops
    tools = [{**TOOL, "name": f"{n:0>128}"} for n in range(200)]
    taken = lower(request(tools=tools)).request.tools or []
    assert [tool.function.name for tool in taken] == [tool["name"] for tool in tools]


def test_limits_that_chat_sets_lower_are_told_in_anthropics_words() -> None:
    with pytest.raises(Invalid) as error:
        lower(request(stop_sequences=[str(n) for n in range(300)]))
    assert error.value.param == "stop_sequences"


def test_the_prompt_is_estimated_near_its_size() -> None:
    words = request(
        system="You are brief. " * 20, messages=[{"role": "user", "content": "Hello there " * 50}]
    )
    assert 200 < prompt_tokens(words) < 300
    assert prompt_tokens(msgspec.convert({"model": "m", "messages": HI}, CountTokensRequest)) > 0
    assert prompt_tokens(request(messages=[{"role": "user", "content": [PIXEL]}])) > 1000
