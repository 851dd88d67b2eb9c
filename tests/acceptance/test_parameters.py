"""What a body may not say, through the whole hub: 400 with the parameter's name, and never a failure of ours."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

from inferhub.testing.servers import Hub, running_hub
from inferhub.testing.talk import CHAT, COMPLETIONS, EMBEDDINGS, Talk, chat_body

SPEC = "models: [{name: echo, backend: echo}, {name: tiny, backend: echo, options: {context_tokens: 16}}]\n"
USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [USER]},
    f"{CHAT}/input_tokens": {"messages": [USER]},
    COMPLETIONS: {"prompt": "hi"},
    EMBEDDINGS: {"input": "hi"},
    "/v1/moderations": {"input": "hi"},
    "/v1/rerank": {"query": "hi", "documents": ["hi"]},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with running_hub("serve", tmp_path_factory.mktemp("parameters"), SPEC) as hub:
        yield hub


@pytest.fixture
def ask(plain: Hub) -> Talk:
    return Talk(plain.url, plain.admin_key)


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "name", ["api_base", "base_url", "api_key", "extra_headers", "extra_body", "aws_secret_access_key"]
)
async def test_where_models_are_is_not_the_clients_to_say(ask: Talk, path: str, name: str) -> None:
    answer = await ask.post(path, {"model": "echo", **BODIES[path], name: "http://evil.example/?k=s3cret"})
    assert answer.status == 400
    assert (answer.error["code"], answer.error["param"]) == ("unsupported_parameter", name)
    assert answer.error["type"] == "invalid_request_error"
    assert b"evil" not in answer.body


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize(
    "raw",
    [b"[]", b'"x"', b"1", b"null", b"{", b"", b'{"model":"\xff"}', b'{"model":NaN}', b'{"model":"\\ud800"}',
     b'{"model":"echo","model":"echo"}', b"[" * 5000, b'{"model":' + b"9" * 5000 + b"}"],
)  # fmt: skip
async def test_contract_037_broken_bodies(ask: Talk, path: str, raw: bytes) -> None:
    answer = await ask.post(path, raw)
    assert answer.status == 400, answer.body
    assert set(answer.error) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", "empty_array"),
        ({"tools": []}, "tools", "empty_array"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name", "invalid_value"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name", "invalid_value"),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "c9", "content": ""}]}, "messages[1].tool_call_id", None),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages[1].content", None),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type", None),
        ({"temperature": "0.5"}, "temperature", "invalid_type"),
        ({"temperature": 2.1}, "temperature", "invalid_value"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": 3}}}},
         "response_format.json_schema.schema", "invalid_json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {}}}},
         "response_format", "unsupported_parameter"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "unsupported_parameter"),
        ({"modalities": ["audio"]}, "modalities", "unsupported_parameter"),
        ({"service_tier": "scale"}, "service_tier", "unsupported_parameter"),
        ({"reasoning_effort": "high"}, "reasoning_effort", "unsupported_parameter"),
        ({"store": True}, "store", "unsupported_parameter"),
        ({"top_logprobs": 2}, "top_logprobs", "invalid_value"),
        ({"stream_options": {}}, "stream_options", "invalid_value"),
        ({"max_tokens": 4097}, "max_tokens", "context_length_exceeded"),
        ({"max_tokens": 5, "max_completion_tokens": 4097}, "max_completion_tokens", "context_length_exceeded"),
        ({"messages": [{"role": "user", "content": "hi " * 5000}]}, "messages", "context_length_exceeded"),
        ({"seed": 10**30}, "seed", "invalid_value"),
        ({"model": "nothing"}, None, "model_not_found"),
    ],
)  # fmt: skip
async def test_what_chat_refuses(
    ask: Talk, fields: dict[str, Any], param: str | None, code: str | None
) -> None:
    answer = await ask.post(CHAT, {"model": "echo", "messages": [USER], **fields})
    assert answer.status == (404 if code == "model_not_found" else 400), answer.body
    assert answer.error["param"] == param
    assert code is None or answer.error["code"] == code


async def test_the_length_that_limits_set_is_no_reason_to_refuse(ask: Talk) -> None:
    """Who has a limit of tokens gets an end to each answer, which may be more than a small model's context."""
    limit = {
        "level": "tenant",
        "subject_id": "ten_default",
        "unit": "tokens",
        "window": "day",
        "limit": 10**6,
    }
    made = await ask.post("/admin/v1/limits", limit)
    assert made.status == 200, made.body
    try:
        assert (await ask.chat("tiny", "hi")).status == 200
        assert (await ask.chat("tiny", "hi", max_tokens=17)).status == 400
        assert (await ask.chat("tiny", "hi", max_tokens=16)).status == 200
    finally:
        await ask.ask("DELETE", f"/admin/v1/limits/{made.json['id']}")


async def test_contract_032_unknown_parameters_are_named(ask: Talk) -> None:
    answer = await ask.chat("echo", frobnicate=1, min_p=0.1)
    assert answer.status == 200
    assert answer.head["x-inferhub-ignored-params"] == "frobnicate,min_p"


async def test_contract_033_the_newer_limit_wins(ask: Talk) -> None:
    answer = await ask.chat("echo", "one two three four", max_tokens=3, max_completion_tokens=2)
    assert answer.json["usage"]["completion_tokens"] == 2
    assert answer.json["choices"][0]["finish_reason"] == "length"


async def test_contract_035_logprobs_spell_the_answer(ask: Talk) -> None:
    answer = await ask.chat("echo", "one two", logprobs=True)
    choice = answer.json["choices"][0]
    tokens = choice["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == choice["message"]["content"]
    assert bytes(b for token in tokens for b in token["bytes"]).decode() == choice["message"]["content"]


async def test_contract_036_null_is_the_same_as_absent(ask: Talk) -> None:
    names = [
        "stream",
        "n",
        "stop",
        "tools",
        "tool_choice",
        "seed",
        "max_tokens",
        "response_format",
        "logprobs",
    ]
    answer = await ask.post(CHAT, {**chat_body("echo"), **dict.fromkeys(names)})
    assert answer.status == 200, answer.body


@pytest.mark.parametrize("content", [None, [{"type": "text", "text": "done"}]])
async def test_contract_046_a_tool_s_answer(ask: Talk, content: Any) -> None:
    told = {"role": "tool", "tool_call_id": "c1", "content": content or "done"}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, told]
    answer = await ask.post(CHAT, {"model": "echo", "messages": messages})
    assert answer.json["choices"][0]["message"]["content"] == "done"


@pytest.mark.parametrize("encoding", [None, "float", "base64"])
async def test_contract_050_embeddings(ask: Talk, encoding: str | None) -> None:
    # Each asks something else: an answer from the cache would have used nothing.
    texts = [f"a{encoding}", f"b{encoding}"]
    answer = await ask.post(
        EMBEDDINGS, {"model": "echo", "input": texts, "encoding_format": encoding, "dimensions": 8}
    )
    assert [item["index"] for item in answer.json["data"]] == [0, 1]
    vector = answer.json["data"][0]["embedding"]
    size = len(base64.b64decode(vector)) // 4 if encoding == "base64" else len(vector)
    assert size == 8
    assert answer.json["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
