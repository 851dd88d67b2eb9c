"""Bytes to request: every way a body can be wrong is an `Invalid` that says what and where."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferhub.core.errors import Invalid, Unsupported
from inferhub.gateway.payload import check_depth, parse_request, read_object
from inferhub.modalities import modalities

CHAT = modalities()["chat"]
USER = [{"role": "user", "content": "hi"}]


def parse(**fields: object) -> tuple[object, tuple[str, ...]]:
    return parse_request(CHAT, json.dumps({"model": "m", "messages": USER, **fields}).encode(), 64)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"  ",
        b"{",
        b"[]",
        b'"x"',
        b"1",
        b"null",
        b"{'model': 1}",
        b'{"model": NaN}',
        b'{"model": "m", "messages": [], "temperature": Infinity}',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800", "messages": []}',
        b'{"model": "a", "model": "b"}',
        b'{"model": "m", "messages": [{"role": "user", "role": "user", "content": ""}]}',
        b'{"n": ' + b"1" * 5000 + b"}",
        b"\xef\xbb\xbf{}",
    ],
)
def test_broken_bodies_are_refused(body: bytes) -> None:
    with pytest.raises(Invalid):
        parse_request(CHAT, body, 64)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"model": None}, "model", "null"),
        ({"messages": []}, "messages", "empty"),
        ({"messages": "hi"}, "messages", '"hi"'),
        ({"messages": [{"role": "wizard", "content": ""}]}, "messages[0].role", "wizard"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role", "required"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "required"),
        ({"messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages[0].content[0].type", '"x"'),
        ({"temperature": "0.5"}, "temperature", "0.5"),
        ({"temperature": 3}, "temperature", "<= 2"),
        ({"n": 0}, "n", ">= 1"),
        ({"n": True}, "n", "int"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs", "<= 20"),
        ({"top_logprobs": 2}, "top_logprobs", "logprobs"),
        ({"stop": ["a"] * 5}, "stop", "4"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
        ({"tool_choice": "required"}, "tool_choice", "tools"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
         "response_format.json_schema.name", "required"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 1}}}},
         "response_format.json_schema.schema", "not valid"),
        ({"messages": [*USER, {"role": "tool", "content": "x", "tool_call_id": "c1"}]},
         "messages[1].tool_call_id", "c1"),
    ],
)  # fmt: skip
def test_refusals_name_parameter_value_and_remedy(fields: dict[str, object], param: str, words: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse(**fields)
    assert caught.value.param == param
    assert words in caught.value.message


def test_null_is_the_same_as_absent() -> None:
    names = [name for name in CHAT.request.__struct_fields__ if name not in {"model", "messages"}]
    assert parse(**dict.fromkeys(names)) == parse()


def test_unknown_names_are_reported_and_allowed() -> None:
    _, unknown = parse(frobnicate=1, min_p=3)
    assert unknown == ("frobnicate", "min_p")


def test_depth_counts_brackets_outside_strings_only() -> None:
    check_depth(b"[" * 64 + b"]" * 64, 64)
    check_depth(json.dumps({"a": "[" * 500 + '\\"{'}).encode(), 64)
    check_depth(b"[" + b"[]," * 500 + b"1]", 64)
    with pytest.raises(Invalid, match="64 levels"):
        check_depth(b"[" * 65 + b"]" * 65, 64)
    with pytest.raises(Invalid):
        check_depth(b'{"a":' * 100_000, 64)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    with pytest.raises(Invalid):
        parse_request(CHAT, body, 64)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(sorted(CHAT.request.__struct_fields__)), JSON))
def test_no_object_raises_anything_else(fields: dict[str, object]) -> None:
    try:
        parse_request(CHAT, json.dumps(fields).encode(), 64)
    except Invalid:
        return


@pytest.mark.parametrize(
    "name",
    [
        "api_base", "base_url", "api_key", "api_version", "extra_headers", "extra_body", "extra_query",
        "custom_llm_provider", "aws_secret_access_key", "azure_ad_token", "vertex_credentials", "API_BASE",
        "litellm_params", "proxy", "ssl_verify",
    ],
)  # fmt: skip
@pytest.mark.parametrize("modality", sorted(modalities()))
def test_a_request_says_nothing_of_where_models_are(modality: str, name: str) -> None:
    record = modalities()[modality]
    body = json.dumps({"model": "m", **record.example, name: "http://evil.example"}).encode()
    with pytest.raises(Unsupported) as refused:
        parse_request(record, body, 64)
    assert (refused.value.http, refused.value.param) == (400, name)
    assert refused.value.wire_code == "unsupported_parameter"
    assert "evil" not in refused.value.message


@pytest.mark.parametrize("name", ["models", "fallbacks", "Plugins", "route", "model_list", "preset"])
@pytest.mark.parametrize("modality", sorted(modalities()))
def test_a_request_names_one_model_which_the_caller_may_call(modality: str, name: str) -> None:
    record = modalities()[modality]
    body = json.dumps({"model": "m", **record.example, name: ["dearer"]}).encode()
    with pytest.raises(Unsupported) as refused:
        parse_request(record, body, 64)
    assert refused.value.param == name


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Max_Tokens", "max_tokens"), ("MODEL", "model"), ("STREAM", "stream"), ("max_to\u212aens", "max_tokens"),
        ("n_predict", "max_tokens"), ("max_new_tokens", "max_tokens"), ("max_output_tokens", "max_tokens"),
    ],
)  # fmt: skip
def test_no_other_spelling_slips_past_what_was_checked(name: str, meant: str) -> None:
    """Servers in Go take names in any case, llama.cpp's takes `n_predict` before `max_tokens`."""
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], name: 9}).encode()
    with pytest.raises(Unsupported) as refused:
        parse_request(CHAT, body, 64)
    assert refused.value.param == name
    assert f"use '{meant}'" in refused.value.message


TOOL = {"type": "function", "function": {"name": "f"}}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
CALLED = {"role": "assistant", "tool_calls": [CALL]}
NAMED = {"type": "function", "function": {"name": "g"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": []}, "tools"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a" * 65}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "retrieval"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice.function.name"),
        (
            {"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {
                "mode": "auto", "tools": [{"type": "function", "function": {"name": "g"}}]}}},
            "tool_choice.allowed_tools.tools[0]",
        ),
        ({"messages": [*USER, CALLED, {"role": "tool", "tool_call_id": "c2", "content": ""}]}, "messages[2].tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "messages[0].content[0].file"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "response_format.json_schema.name"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "nothing"}}}},
            "response_format.json_schema.schema",
        ),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"seed": "7"}, "seed"),
        ({"seed": 10**30}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"tools": [{"type": "function", "function": {"name": f"f{n}"}} for n in range(129)]}, "tools"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "s" * 65}}}, "response_format.json_schema.name"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
    ],
)  # fmt: skip
def test_what_chat_refuses_names_the_parameter(fields: dict[str, object], param: str) -> None:
    with pytest.raises(Invalid) as refused:
        parse(**fields)
    assert (refused.value.http, refused.value.param) == (400, param)


def test_contract_036_null_is_the_same_as_absent() -> None:
    chat, _ = parse(
        **dict.fromkeys(["stream", "n", "stop", "tools", "tool_choice", "response_format", "seed"])
    )
    assert chat == parse()[0]
    moderation, _ = parse_request(modalities()["moderation"], b'{"input": "a", "model": null}', 64)
    assert moderation.model == "omni-moderation-latest"


@pytest.mark.parametrize(
    ("modality", "fields", "param"),
    [
        ("embedding", {"input": ""}, "input"),
        ("embedding", {"input": []}, "input"),
        ("embedding", {"input": ["a", ""]}, "input"),
        ("embedding", {"input": ["a", 1]}, "input"),
        ("embedding", {"input": ["a"] * 2049}, "input"),
        ("embedding", {"input": "a", "encoding_format": "hex"}, "encoding_format"),
        ("embedding", {"input": "a", "dimensions": 0}, "dimensions"),
        ("completion", {"prompt": []}, "prompt"),
        ("completion", {"best_of": 1, "n": 2}, "best_of"),
        ("completion", {"logprobs": 6}, "logprobs"),
        ("moderation", {"input": ""}, "input"),
        ("moderation", {"input": []}, "input"),
        ("moderation", {"input": ["a", ""]}, "input[1]"),
        ("moderation", {"input": ["a", {"type": "text", "text": "b"}]}, "input"),
        ("moderation", {"input": [{"type": "audio"}]}, "input[0].type"),
        ("moderation", {"input": ["a"] * 257}, "input"),
        ("moderation", {"input": "a", "model": 3}, "model"),
        ("rerank", {"query": ""}, "query"),
        ("rerank", {"query": None}, "query"),
        ("rerank", {"documents": []}, "documents"),
        ("rerank", {"documents": ["a", ""]}, "documents[1]"),
        ("rerank", {"documents": ["a"] * 1001}, "documents"),
        ("rerank", {"documents": [{"title": "a"}]}, "documents[0].text"),
        ("rerank", {"documents": [{"text": 3}]}, "documents[0].text"),
        ("rerank", {"documents": [{"text": ""}]}, "documents[0].text"),
        ("rerank", {"documents": "a"}, "documents"),
        ("rerank", {"top_n": 0}, "top_n"),
        ("token_count", {"messages": []}, "messages"),
    ],
)  # fmt: skip
def test_what_the_others_refuse_names_the_parameter(
    modality: str, fields: dict[str, object], param: str
) -> None:
    record = modalities()[modality]
    body = json.dumps({"model": "m", **record.example, **fields}).encode()
    with pytest.raises(Invalid) as refused:
        parse_request(record, body, 64)
    assert (refused.value.http, refused.value.param) == (400, param)


@pytest.mark.parametrize("body", [b'{"a":"\\ud800"}', b'{"\\uDFFF":1}', b'{"a":"\\udc00\\ud800"}'])
def test_half_of_a_surrogate_pair_is_refused_before_anything_repeats_it(body: bytes) -> None:
    with pytest.raises(Invalid, match="not valid JSON"):
        read_object(body, 64)


def test_whole_pairs_and_what_only_looks_like_one_are_read() -> None:
    assert read_object(b'{"a":"\\ud83d\\ude00"}', 64) == {"a": "\U0001f600"}
    assert read_object(b'{"a":"\\\\ud800"}', 64) == {"a": "\\ud800"}
