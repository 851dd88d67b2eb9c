"""Chat deltas as Messages answers and events, and the other way round."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from inferhub.core.errors import (
    BackendRefused,
    ContextOverflow,
    InferHubError,
    Unsupported,
    UpstreamExhausted,
    UpstreamFailed,
)
from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, Problem
from inferhub.modalities.chat import (
    ChatDelta,
    FunctionDelta,
    ReasoningDetail,
    ToolCallDelta,
)
from inferhub.wire.anthropic_messages.errors import read_error
from inferhub.wire.anthropic_messages.reader import MessagesReader
from inferhub.wire.anthropic_messages.request import MessagesRequest, check
from inferhub.wire.anthropic_messages.writer import MessagesWriter, fold

HI = [{"role": "user", "content": "Hi"}]
SEEN_AS = Envelope("msg_1", 1, "m")


def request(**params: Any) -> MessagesRequest:
    asked = msgspec.convert({"model": "m", "max_tokens": 10, "messages": HI, **params}, MessagesRequest)
    check(asked)
    return asked


# --- out: deltas → events --------------------------------------------------------------------------


def call(place: int, identity: str | None = None, arguments: str = "") -> ChatDelta:
    name = f"f{place}" if identity else None
    return ChatDelta(tool_calls=[ToolCallDelta(place, identity, None, FunctionDelta(name, arguments))])


def events(*deltas: ChatDelta, usage: Usage | None = None) -> list[dict[str, Any]]:
    writer = MessagesWriter(request(), SEEN_AS)
    raw = b"".join(map(writer.delta, deltas)) + writer.end(usage or Usage(10, 5))
    lines = [event.split(b"\n") for event in raw.removesuffix(b"\n\n").split(b"\n\n")]
    told = [json.loads(data.removeprefix(b"data: ")) for _, data in lines]
    assert [name.removeprefix(b"event: ").decode() for name, _ in lines] == [e["type"] for e in told]
    return told


def content(*deltas: ChatDelta) -> list[dict[str, Any]]:
    """What a client puts together from the events; the whole answer must say the same."""
    blocks: list[dict[str, Any]] = []
    inputs: dict[int, str] = {}
    for event in events(*deltas):
        if event["type"] == "content_block_start":
            blocks.append(event["content_block"])
        elif event["type"] == "content_block_delta":
            [kind, value] = [event["delta"].pop("type"), *event["delta"].values()]
            if kind == "input_json_delta":
                inputs[event["index"]] = inputs.get(event["index"], "") + value
            else:
                name = {"text_delta": "text", "thinking_delta": "thinking"}.get(kind, "signature")
                blocks[event["index"]][name] += value
    for index, text in inputs.items():
        blocks[index]["input"] = json.loads(text)
    whole = json.loads(fold(request(), SEEN_AS, deltas, Usage(10, 5)))
    assert whole["content"] == blocks
    return blocks


STOP = ChatDelta(finish_reason="stop")


def test_mixed_tool_calls_come_out_one_after_the_other() -> None:
    blocks = content(
        call(0, "a"), call(1, "b"), call(0, None, '{"x"'), call(1, None, '{"y":2}'), call(0, None, ":1}"),
        call(2, "c"), ChatDelta(finish_reason="tool_calls"),
    )  # fmt: skip
    assert [(block["id"], block["input"]) for block in blocks] == [
        ("a", {"x": 1}),
        ("b", {"y": 2}),
        ("c", {}),
    ]


def test_a_tool_call_streams_while_it_comes() -> None:
    writer = MessagesWriter(request(), SEEN_AS)
    assert b"message_start" in writer.delta(call(0, "a"))
    assert b"input_json_delta" in writer.delta(call(0, None, '{"x":'))
    assert b"input_json_delta" in writer.delta(call(0, None, "1}"))
    assert b"content_block_stop" in writer.delta(call(1, "b"))


def test_thoughts_text_and_calls_keep_their_order() -> None:
    sign = ReasoningDetail("reasoning.text", signature="s", index=0)
    blocks = content(
        ChatDelta(reasoning_content="a", reasoning_details=[ReasoningDetail("reasoning.text", "a", index=0)]),
        ChatDelta(reasoning_details=[sign]),
        ChatDelta(reasoning_details=[ReasoningDetail("reasoning.encrypted", data="d", index=1)]),
        ChatDelta(content="b"),
        call(0, "x", "{}"),
        ChatDelta(content="c"),
        STOP,
    )
    assert [block["type"] for block in blocks] == [
        "thinking",
        "redacted_thinking",
        "text",
        "tool_use",
        "text",
    ]
    assert blocks[0] == {"type": "thinking", "thinking": "a", "signature": "s"}


def test_shown_thoughts_without_details_are_thinking_too() -> None:
    assert content(ChatDelta(reasoning_content="a"), ChatDelta(content="b"), STOP)[0]["thinking"] == "a"


@pytest.mark.parametrize(
    ("delta", "reason", "sequence"),
    [
        (STOP, "end_turn", None),
        (ChatDelta(finish_reason="stop", stop_sequence="E"), "stop_sequence", "E"),
        (ChatDelta(finish_reason="length"), "max_tokens", None),
        (ChatDelta(finish_reason="tool_calls"), "tool_use", None),
        (ChatDelta(finish_reason="content_filter"), "refusal", None),
        (ChatDelta(refusal="No.", finish_reason="stop"), "refusal", None),
    ],
)
def test_reasons_to_stop(delta: ChatDelta, reason: str, sequence: str | None) -> None:
    told = events(delta)[-2]
    assert told["delta"] == {"stop_reason": reason, "stop_sequence": sequence}
    whole = json.loads(fold(request(), SEEN_AS, [delta], Usage()))
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)


def test_usage_is_disjoint_and_the_first_event_has_an_estimate() -> None:
    told = events(STOP, usage=Usage(10, 5, cached_tokens=4, reasoning_tokens=2))
    assert told[0]["message"]["usage"]["input_tokens"] > 0
    assert told[-2]["usage"] == {
        "input_tokens": 6,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 5,
        "output_tokens_details": {"thinking_tokens": 2},
    }
    assert events(STOP)[1] == {"type": "ping"}


def test_a_broken_stream_ends_with_its_error() -> None:
    writer = MessagesWriter(request(), SEEN_AS)
    writer.delta(ChatDelta(content="a"))
    raw = writer.fail(Problem("Busy.", "overloaded_error", None, "overloaded"))
    assert raw.startswith(b"event: error\ndata: ")
    assert json.loads(raw.partition(b"data: ")[2])["error"] == {
        "type": "overloaded_error",
        "message": "Busy.",
    }
    assert b'"api_error"' in writer.fail(Problem("?", "odd", None, None))


def test_an_answer_that_passed_through_goes_on_where_it_was() -> None:
    writer, other = MessagesWriter(request(), SEEN_AS), MessagesWriter(request(), SEEN_AS)
    for piece in ("a", "b"):
        writer.passed(other.delta(ChatDelta(content=piece)))
    raw = writer.delta(ChatDelta(content="c")) + writer.end(Usage(1, 3))
    assert b"message_start" not in raw
    assert b"content_block_start" not in raw
    assert raw.count(b'"index":0') == 2
    assert b"message_stop" in raw


# --- in: events → deltas ---------------------------------------------------------------------------


def read(*told: Any) -> tuple[list[ChatDelta], Usage]:
    reader = MessagesReader()
    deltas = [delta for event in told for delta in reader.read(json.dumps(event).encode())]
    return deltas, reader.end()


START = {"type": "message_start", "message": {"usage": {"input_tokens": 5, "cache_read_input_tokens": 2,
         "cache_creation_input_tokens": 1, "output_tokens": 1}}}  # fmt: skip
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}}
DONE = {"type": "message_stop"}


def test_usage_of_a_stream_is_cumulative() -> None:
    assert read(START, END, {"type": "new_event", "x": 1}, DONE)[1] == Usage(8, 9, cached_tokens=2)
    later = {**END, "usage": {"input_tokens": 6, "output_tokens": 9}}
    assert read(START, later, DONE)[1].input_tokens == 9


@pytest.mark.parametrize("told", [[START, END], [START, DONE], [END, DONE], []])
def test_a_stream_without_its_parts_is_broken(told: list[Any]) -> None:
    with pytest.raises(UpstreamFailed):
        read(*told)


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"\xff", b"<html>", b'{"type":1}', b'{"type":"content_block_delta"}']
)
def test_what_is_no_event_is_refused(data: bytes) -> None:  # fmt: skip
    with pytest.raises(UpstreamFailed):
        MessagesReader().read(data)


def test_blocks_of_servers_tools_are_passed_over_and_sources_become_annotations() -> None:
    def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
        pieces = [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        begin = {"type": "content_block_start", "index": index, "content_block": start}
        return [begin, *pieces, {"type": "content_block_stop", "index": index}]

    location = {"type": "web_search_result_location", "url": "https://a.b", "title": "T", "cited_text": "c"}
    deltas, _ = read(
        START,
        *block(0, {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
               {"type": "input_json_delta", "partial_json": "{}"}),
        *block(1, {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}),
        *block(2, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Hi"},
               {"type": "citations_delta", "citation": location}),
        *block(3, {"type": "tool_use", "id": "t", "name": "f", "input": {}}),
        END, DONE,
    )  # fmt: skip
    assert [delta.content for delta in deltas if delta.content] == ["Hi"]
    assert deltas[1].annotations == [
        {"type": "url_citation", "url_citation": {"url": "https://a.b", "title": "T"}}
    ]
    calls = [piece for delta in deltas for piece in delta.tool_calls or ()]
    assert [(c.index, c.id, c.function.arguments if c.function else None) for c in calls] == [
        (0, "t", ""),
        (0, None, "{}"),
    ]


@pytest.mark.parametrize(
    ("status", "message", "kind", "param"),
    [
        (400, "prompt is too long: 9 tokens > 8 maximum", ContextOverflow, "messages"),
        (400, "input length and `max_tokens` exceed context limit: 1 + 2 > 2", ContextOverflow, "messages"),
        (400, "Your credit balance is too low to access the Anthropic API.", UpstreamExhausted, None),
        (400, "`temperature` is deprecated for this model.", Unsupported, "temperature"),
        (400, "messages.0.content: Field required", BackendRefused, "messages.0.content"),
        (404, "model: claude-none", BackendRefused, "model"),
    ],
)
def test_refusals_are_understood(
    status: int, message: str, kind: type[InferHubError], param: str | None
) -> None:
    body = json.dumps({"type": "error", "error": {"type": "invalid_request_error", "message": message}})
    error = read_error(status, {}, body.encode())
    assert (type(error), error.param) == (kind, param)
