"""Tool calls as odd senders write them: what is mended, what is left alone, and what an event becomes."""

from __future__ import annotations

import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta, FunctionDelta, ToolCallDelta
from inferhub.wire.openai_chat import ChatReader, parse_chat_chunk
from inferhub.wire.openai_mend import mended_events, with_choices, with_usage
from inferhub.wire.openai_tools import ToolNumbering, UpstreamFunction, UpstreamToolCall


def piece(arguments: Any = None, *, index: int | None = 0, **more: Any) -> UpstreamToolCall:
    name = more.pop("name", None)
    return UpstreamToolCall(index=index, function=UpstreamFunction(name, arguments), **more)


def opening(arguments: Any = "", *, index: int | None = 0, call_id: str | None = "x", name: str = "f") -> Any:
    return piece(arguments, index=index, id=call_id, type="function", name=name)


def followed(*pieces: UpstreamToolCall) -> tuple[list[tuple[str, str]], list[bool]]:
    """((name, arguments) by place, which pieces were mended)"""
    tools = ToolNumbering()
    calls: list[list[str]] = []
    mended = []

    def take(deltas: list[ToolCallDelta]) -> None:
        for delta in deltas:
            assert delta.function is not None
            if delta.id:
                assert delta.index == len(calls)
                calls.append([delta.function.name or "", ""])
            calls[delta.index][1] += delta.function.arguments or ""

    for part in pieces:
        take(tools.follow(part))
        mended.append(tools.is_mended)
    take(tools.close())
    mended.append(tools.is_mended)
    return [(name, arguments) for name, arguments in calls], mended


def test_a_call_by_the_book_is_left_alone() -> None:
    calls, mended = followed(
        opening(), piece('{"a"'), piece(":1}"), opening("{}", index=1, call_id="y", name="g")
    )
    assert calls == [("f", '{"a":1}'), ("g", "{}")]
    assert mended == [False] * 5


@pytest.mark.parametrize(
    "arguments", ['{"a":{"a":{"a":1}},"b":["{","}"]}', '{"loc":"P{\\"a\\":"}', '[["[",1],[2]]', "{}"]
)
def test_cumulative_arguments_become_pieces_at_every_cut(arguments: str) -> None:
    for cuts in itertools.combinations(range(1, len(arguments)), 3):
        sums = [arguments[:cut] for cut in cuts] + [arguments]
        calls, _ = followed(opening(), *(piece(part) for part in sums))
        assert calls == [("f", arguments)], sums


@given(
    st.recursive(
        st.integers() | st.text(max_size=5) | st.none(),
        lambda inner: (
            st.lists(inner, max_size=3) | st.dictionaries(st.text('ab{":,', max_size=3), inner, max_size=3)
        ),
        max_leaves=8,
    ),
    st.data(),
)
def test_pieces_are_never_mistaken_for_sums_and_sums_never_for_pieces(
    value: Any, data: st.DataObject
) -> None:
    arguments = json.dumps({"a": value}, separators=(",", ":"))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(arguments) - 1), max_size=6)))
    bounds = [0, *cuts, len(arguments)]
    parts = [arguments[a:b] for a, b in itertools.pairwise(bounds)]
    assert followed(opening(), *map(piece, parts))[0] == [("f", arguments)]
    sums = list(itertools.accumulate(parts))
    assert followed(opening(), *map(piece, sums))[0] == [("f", arguments)]


def test_an_object_within_an_object_of_the_same_form_is_not_a_repetition() -> None:
    calls, mended = followed(opening(), piece('{"a":'), piece('{"a":'), piece("1}}"))
    assert calls == [("f", '{"a":{"a":1}}')]
    assert mended[2]


def test_the_whole_once_more_at_the_end_is_a_repetition() -> None:
    assert followed(opening(), piece('{"a"'), piece(":1}"), piece('{"a":1}'))[0] == [("f", '{"a":1}')]


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        pytest.param([opening({"a": 1})], [("f", '{"a":1}')], id="an object"),
        pytest.param([opening({}), piece('{"a":1}')], [("f", '{"a":1}')], id="an empty object first"),
        pytest.param([opening(None)], [("f", "{}")], id="none at all"),
        pytest.param([opening("")], [("f", "{}")], id="empty"),
        pytest.param([opening("{}", call_id=None)], [("f", "{}")], id="no id"),
        pytest.param([opening("{}", call_id="")], [("f", "{}")], id="blank id"),
        pytest.param([opening("{}", index=None)], [("f", "{}")], id="no index"),
        pytest.param([opening("{}", index=1)], [("f", "{}")], id="counted from one"),
        pytest.param([piece("{}", id="x", name="f")], [("f", "{}")], id="no type"),
        pytest.param(
            [opening("{}"), opening("{}", index=1, name="g")], [("f", "{}"), ("g", "{}")], id="id twice"
        ),
        pytest.param(
            [opening("{}", call_id=None), opening('{"b":1}', call_id=None, name="g")],
            [("f", "{}"), ("g", '{"b":1}')],
            id="index reused, no ids",
        ),
        pytest.param(
            [opening('{"a":1}', call_id=None), opening('{"b":1}', call_id=None)],
            [("f", '{"a":1}'), ("f", '{"b":1}')],
            id="index reused for the same function, no ids",
        ),
        pytest.param([piece('{"a":1}', id="x"), piece("", name="f")], [("f", '{"a":1}')], id="late name"),
        pytest.param([opening('{"a"'), piece(":1}", name="f")], [("f", '{"a":1}')], id="name again"),
    ],
)
def test_contract_044_and_045_what_is_wrong_is_mended_and_said_to_be(
    pieces: list[UpstreamToolCall], expected: list[tuple[str, str]]
) -> None:
    calls, mended = followed(*pieces)
    assert calls == expected
    assert any(mended)


def test_what_a_vendor_wants_back_with_a_call_is_kept() -> None:
    signed = {"google": {"thought_signature": "s"}}
    reader = ChatReader()
    data = {
        "tool_calls": [
            {"index": 0, "id": "x", "type": "function", "function": {"name": "f"}, "extra_content": signed}
        ]
    }
    deltas = reader.read(parse_chat_chunk(msgspec.json.encode({"choices": [{"index": 0, "delta": data}]})))
    assert deltas[0].tool_calls == [ToolCallDelta(0, "x", "function", FunctionDelta("f", ""), signed)]
    assert not reader.is_mended


# --- the chat around them ------------------------------------------------------------------------------


def read(*choices: dict[str, Any], **more: Any) -> tuple[list[ChatDelta], ChatReader]:
    reader = ChatReader()
    deltas = [
        d
        for c in choices
        for d in reader.read(parse_chat_chunk(json.dumps({"choices": [c], **more}).encode()))
    ]
    return deltas, reader


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"index": 0, "delta": {}, "finish_reason": "stop"}, False),
        ({"index": 0, "delta": {}, "finish_reason": "eos_token"}, True),
        ({"index": None, "delta": {"content": "a"}}, False),
        ({"index": 0, "delta": {"content": [{"type": "text", "text": "a"}]}}, True),
    ],
)
def test_the_reader_says_what_must_not_go_on_as_it_came(choice: dict[str, Any], expected: bool) -> None:
    assert read(choice)[1].is_mended is expected


def test_what_comes_after_the_finish_is_dropped() -> None:
    _, reader = read(
        {"index": 0, "delta": {}, "finish_reason": "stop"}, {"index": 0, "delta": {"content": "late"}}
    )
    assert reader.is_mended


def test_thoughts_in_parts_are_mistrals() -> None:
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "text", "text": "yes"},
        5,
    ]
    assert read({"index": 0, "delta": {"content": parts}})[0] == [
        ChatDelta(content="yes", reasoning_content="hm")
    ]


def test_details_annotations_and_the_stop_sequence_are_read_and_unknown_kinds_are_not() -> None:
    details = [{"type": "reasoning.text", "text": "hm", "signature": "s"}, {"type": "reasoning.smell"}]
    note = {"type": "url_citation", "url_citation": {"url": "u"}}
    deltas, _ = read(
        {"index": 0, "delta": {"reasoning_details": details, "annotations": [note, 7]}},
        {"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": "END"},
    )
    assert deltas[0].reasoning_details is not None
    assert [d.signature for d in deltas[0].reasoning_details] == ["s"]
    assert deltas[0].annotations == [note]
    assert deltas[1].stop_sequence == "END"
    assert (
        read({"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": 128009})[0][0].stop_sequence
        is None
    )


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}, Usage(5, 2)),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 2,
                "total_tokens": 17,
                "completion_tokens_details": {"reasoning_tokens": 10},
            },
            Usage(5, 12, reasoning_tokens=10),
        ),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 12,
                "total_tokens": 17,
                "completion_tokens_details": {"reasoning_tokens": 10},
            },
            Usage(5, 12, reasoning_tokens=10),
        ),
        (
            {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_cache_hit_tokens": 4},
            Usage(5, 2, cached_tokens=4),
        ),
    ],
)
def test_contract_008_thought_beside_the_answer_is_counted_into_it(
    usage: dict[str, Any], expected: Usage
) -> None:
    _, reader = read({"index": 0, "delta": {}, "finish_reason": "stop"}, usage=usage)
    assert reader.end() == expected
    assert reader.is_miscounted is (
        usage["total_tokens"] != usage["prompt_tokens"] + usage["completion_tokens"]
    )


# --- events written anew -------------------------------------------------------------------------------


def test_a_mended_event_keeps_every_other_byte_of_the_senders() -> None:
    data = b'{"id":"up-1","created":1.50,"x":{"a" : 1e1},"choices":[{"delta":{"role":"assistant"}}],"usage":{"prompt_tokens":1}}'
    finish = ChatDelta(finish_reason="tool_calls")
    events = mended_events(data, [ChatDelta(content="a"), finish], Usage(5, 2)).split(b"\n\n")
    assert events[0] == (
        b'data: {"id":"up-1","created":1.50,"x":{"a" : 1e1},"choices":'
        b'[{"index":0,"delta":{"role":"assistant","content":"a"},"finish_reason":null}],"usage":null}'
    )
    assert b'"delta":{},"finish_reason":"tool_calls"' in events[1]
    assert events[1].endswith(b'"usage":null}')
    assert b'"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}' in events[2]
    assert mended_events(data, [], None) == b""


def test_a_mended_whole_answer_keeps_what_was_right() -> None:
    body = b'{"id": "up-1", "choices": [1], "usage": {"prompt_tokens": 1, "extra": 2}}'
    assert with_choices(body, b'{"choices":["ours"]}') == (
        b'{"id":"up-1","choices":["ours"],"usage":{"prompt_tokens": 1, "extra": 2}}'
    )
    assert msgspec.json.decode(with_usage(body, Usage(5, 2)))["usage"] == {
        "prompt_tokens": 5,
        "extra": 2,
        "completion_tokens": 2,
        "total_tokens": 7,
    }
