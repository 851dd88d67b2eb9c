"""Bytes to request: every way a body can be wrong is an `Invalid` that says what and where."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferhub.core.errors import Invalid
from inferhub.gateway.payload import check_depth, parse_request
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
    _, unknown = parse(frobnicate=1, top_k=3)
    assert unknown == ("frobnicate", "top_k")


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
