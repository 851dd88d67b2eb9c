"""Chat requests as Messages requests, each checked by the types of Anthropic's own SDK."""

from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest

from inferhub.core.errors import (
    Invalid,
    Unsupported,
)
from inferhub.modalities.chat import (
    ChatRequest,
)
from inferhub.modalities.chat import check as check_chat
from inferhub.testing.upstream_dialects.anthropic import DIALECT
from inferhub.wire.anthropic_messages.lift import Rules, lift, lift_prompt

RULES = Rules("claude-opus-5", 16384)
OLD = Rules("claude-haiku-4-5", 16384, "budget")
HI = [{"role": "user", "content": "Hi"}]


def chat(**params: Any) -> ChatRequest:
    asked = msgspec.convert({"model": "m", "messages": HI, **params}, ChatRequest)
    check_chat(asked)
    return asked


def lifted(rules: Rules = RULES, **params: Any) -> dict[str, Any]:
    """The Messages request, checked by Anthropic's own types."""
    tree = lift(chat(**params), rules)
    headers = {"x-api-key": "k", "anthropic-version": "v", "content-type": "application/json"}
    assert DIALECT.violations("/v1/messages", headers, msgspec.json.encode(tree)) == []
    return tree


def test_roles_are_merged_and_instructions_lead() -> None:
    turns = [
        {"role": "system", "content": "A."},
        {"role": "user", "content": "1"},
        {"role": "user", "content": "2"},
        {"role": "developer", "content": "B."},
        {"role": "assistant", "content": "3"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"role": "tool", "tool_call_id": "a", "content": "4", "is_error": True,
         "cache_control": {"type": "ephemeral"}},
        {"role": "user", "content": "5"},
    ]  # fmt: skip
    tree = lifted(messages=turns)
    assert [block["text"] for block in tree["system"]] == ["A.", "B."]
    kinds = [[turn["role"], *(b["type"] for b in turn["content"])] for turn in tree["messages"]]
    assert kinds == [
        ["user", "text", "text"],
        ["assistant", "text", "tool_use"],
        ["user", "tool_result", "text"],
    ]
    assert tree["messages"][1]["content"][1]["input"] == {}
    result = tree["messages"][2]["content"][0]
    assert (result["is_error"], result["cache_control"]) == (True, {"type": "ephemeral"})


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"stop": "x"}, {"stop_sequences": ["x"]}),
        ({"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 6, "max_tokens": 5}, {"max_tokens": 6}),
        ({"user": "u"}, {"metadata": {"user_id": "u"}}),
        ({"safety_identifier": "s"}, {"metadata": {"user_id": "s"}}),
        ({"service_tier": "default"}, {"service_tier": "standard_only"}),
        ({"temperature": 1, "top_p": 0.9}, {"temperature": 1, "top_p": 0.9}),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}),
        (
            {"reasoning_effort": "minimal"},
            {"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}},
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}},
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}},
        ),
        ({"seed": None, "frequency_penalty": 0, "logprobs": False}, {}),
    ],
)  # fmt: skip
def test_chat_parameters_have_their_counterparts(params: dict[str, Any], expected: dict[str, Any]) -> None:
    tree = lifted(**params)
    expected = {"max_tokens": 16384, **expected}
    assert {k: v for k, v in tree.items() if k not in ("model", "messages")} == expected


def test_older_models_think_within_a_budget() -> None:
    assert lifted(OLD, reasoning_effort="high")["thinking"]["budget_tokens"] == 16384
    assert lifted(OLD, reasoning_effort="high")["max_tokens"] == 2 * 16384
    assert lifted(OLD, reasoning_effort="high", max_tokens=4000)["thinking"]["budget_tokens"] == 2000
    with pytest.raises(Unsupported, match="reasoning_effort"):
        lifted(OLD, reasoning_effort="low", max_tokens=100)
    budget = {"type": "enabled", "budget_tokens": 20000}
    assert lifted(OLD, thinking=budget)["max_tokens"] > 20000


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "strict": True, "parameters": {"type": "object"}}}


@pytest.mark.parametrize(
    ("choice", "lifted_choice", "names"),
    [
        ("none", {"type": "none"}, ["f", "g"]),
        ("auto", {"type": "auto"}, ["f", "g"]),
        ("required", {"type": "any"}, ["f", "g"]),
        ({"type": "function", "function": {"name": "g"}}, {"type": "tool", "name": "g"}, ["f", "g"]),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [function("g")]}},
            {"type": "any"},
            ["g"],
        ),
        (None, None, ["f", "g"]),
    ],
)
def test_tool_choices(choice: Any, lifted_choice: Any, names: list[str]) -> None:
    tree = lifted(tools=[function("f"), function("g")], tool_choice=choice)
    assert tree.get("tool_choice") == lifted_choice
    assert [tool["name"] for tool in tree["tools"]] == names
    serial = lifted(tools=[function("f"), function("g")], tool_choice=choice, parallel_tool_calls=False)
    assert serial["tool_choice"].get("disable_parallel_tool_use", False) is (choice != "none")


def test_pictures_and_files() -> None:
    text = base64.b64encode("né".encode()).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": "https://a.b/c.png", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "data:image/webp;base64,AAAA"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,AAAA"}},
        {"type": "file", "file": {"file_data": f"data:text/plain;base64,{text}"}},
        {"type": "file", "file": {"file_id": "file_1"}},
    ]
    content = lifted(messages=[{"role": "user", "content": parts}])["messages"][0]["content"]
    assert [block["source"]["type"] for block in content] == ["url", "base64", "base64", "text", "file"]
    assert content[2]["title"] == "a.pdf"
    assert content[3]["source"]["data"] == "né"


@pytest.mark.parametrize(
    ("part", "where"),
    [
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, ""),
        ({"type": "image_url", "image_url": {"url": "data:image/tiff;base64,AA"}}, ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": "http://a.b/c.png"}}, ".image_url.url"),
        ({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}, ".image_url.url"),
        ({"type": "file", "file": {"file_data": "data:application/zip;base64,AA"}}, ".file.file_data"),
    ],
)
def test_parts_that_anthropic_does_not_take(part: dict[str, Any], where: str) -> None:
    with pytest.raises(Invalid) as error:
        lift(chat(messages=[{"role": "user", "content": [part]}]), RULES)
    assert error.value.param == f"messages[0].content[0]{where}"


def test_thoughts_of_others_are_not_sent_to_anthropic() -> None:
    details = [
        {"type": "reasoning.text", "text": "mine", "signature": "s", "format": "anthropic-claude-v1"},
        {"type": "reasoning.encrypted", "data": "d", "format": "anthropic-claude-v1"},
        {"type": "reasoning.text", "text": "unsigned"},
        {"type": "reasoning.encrypted", "data": "theirs", "format": "openai-responses-v1"},
    ]
    said = {"role": "assistant", "content": "x", "reasoning_details": details}
    content = lifted(messages=[*HI, said, *HI])["messages"][1]["content"]
    assert [block["type"] for block in content] == ["thinking", "redacted_thinking", "text"]


def test_a_count_has_only_what_makes_the_prompt() -> None:
    tree = lift_prompt(chat(max_tokens=5, temperature=0.5, stream=True, tools=[function("f")]), RULES)
    assert set(tree) == {"model", "messages", "tools"}
    headers = {"x-api-key": "k", "anthropic-version": "v", "content-type": "application/json"}
    assert DIALECT.violations("/v1/messages/count_tokens", headers, msgspec.json.encode(tree)) == []


def test_the_strict_upstream_sees_what_anthropic_would_refuse() -> None:
    wrong = {
        "model": "m",
        "max_tokens": 100,
        "temperature": 2,
        "seed": 1,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "", "name": "n"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "It "},
        ],
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    found = "\n".join(DIALECT.violations("/v1/messages", {}, msgspec.json.encode(wrong)))
    for word in (
        *("x-api-key", "anthropic-version", "content-type", "temperature", "'seed'", "max_tokens", "tools"),
        *("unknown fields ['name']", "non-empty", "tool_use without tool_result", "trailing whitespace"),
    ):
        assert word in found, word
