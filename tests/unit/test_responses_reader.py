"""Answers of Responses upstreams: read back what the writer writes, and whatever else servers send."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferhub.core.errors import (
    BackendRefused,
    ContentFiltered,
    InferHubError,
    UpstreamFailed,
    UpstreamRateLimited,
)
from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope
from inferhub.modalities.chat import ChatDelta, FunctionDelta, ToolCallDelta
from inferhub.modalities.chat.answer import ChatMessage, fold
from inferhub.modalities.chat.request import ChatRequest, Message
from inferhub.wire.openai_responses.reader import ResponsesReader
from inferhub.wire.openai_responses.request import ResponsesRequest
from inferhub.wire.openai_responses.writer import ResponsesWriter
from inferhub.wire.openai_responses.writer import fold as fold_response

ENVELOPE = Envelope("resp_1", 1, "m")
USAGE = Usage(7, 5, 2, 1)
ANSWERS: dict[str, list[ChatDelta]] = {
    "text": [ChatDelta(content="Hel"), ChatDelta(content="lo ✓"), ChatDelta(finish_reason="stop")],
    "thought": [ChatDelta(reasoning_content="Hm."), ChatDelta(content="a"), ChatDelta(finish_reason="stop")],
    "refusal": [ChatDelta(refusal="No."), ChatDelta(finish_reason="stop")],
    "cut": [ChatDelta(content="a"), ChatDelta(finish_reason="length")],
    "filtered": [ChatDelta(content="a"), ChatDelta(finish_reason="content_filter")],
    "calls": [
        ChatDelta(content="Wait."),
        ChatDelta(tool_calls=[ToolCallDelta(0, "c0", "function", FunctionDelta("f", ""))]),
        ChatDelta(tool_calls=[ToolCallDelta(0, function=FunctionDelta(arguments='{"a":'))]),
        ChatDelta(tool_calls=[ToolCallDelta(1, "c1", "function", FunctionDelta("g", ""))]),
        ChatDelta(tool_calls=[ToolCallDelta(0, function=FunctionDelta(arguments="1}"))]),
        ChatDelta(tool_calls=[ToolCallDelta(1, function=FunctionDelta(arguments="{}"))]),
        ChatDelta(finish_reason="tool_calls"),
    ],
}


def event(kind: str, **fields: Any) -> tuple[str, bytes]:
    return kind, json.dumps({"type": kind, **fields}).encode()


def events_of(deltas: list[ChatDelta]) -> list[tuple[str, bytes]]:
    writer = ResponsesWriter(ResponsesRequest(model="m", input="a", stream=True), ENVELOPE)
    raw = b"".join(map(writer.delta, deltas)) + writer.end(USAGE)
    pairs = [text.split(b"\n") for text in raw.split(b"\n\n")[:-1]]
    return [(name.removeprefix(b"event: ").decode(), data.removeprefix(b"data: ")) for name, data in pairs]


def meaning(deltas: list[ChatDelta]) -> dict[str, Any]:
    request = ChatRequest(model="m", messages=[Message("user", "a")])
    choice: dict[str, Any] = json.loads(fold(request, Envelope("x", 1, "m"), deltas, USAGE))["choices"][0]
    assert set(choice["message"]) <= set(ChatMessage.__struct_fields__)
    return choice


@pytest.mark.parametrize("name", ANSWERS)
def test_what_the_writer_writes_is_read_back(name: str) -> None:
    deltas = ANSWERS[name]
    streamed = ResponsesReader()
    found = [delta for kind, data in events_of(deltas) for delta in streamed.read(kind, data)]
    assert meaning(found) == meaning(deltas)
    assert [delta.finish_reason for delta in found if delta.finish_reason] == [deltas[-1].finish_reason]
    assert streamed.end() == USAGE
    whole = ResponsesReader()
    body = fold_response(ResponsesRequest(model="m", input="a"), ENVELOPE, deltas, USAGE)
    assert meaning(whole.read_whole(body)) == meaning(deltas)
    assert whole.end() == USAGE


@pytest.mark.parametrize("name", ANSWERS)
def test_a_stream_without_its_terminal_event_is_never_a_clean_end(name: str) -> None:
    events = events_of(ANSWERS[name])
    for length in range(len(events)):
        reader = ResponsesReader()
        for kind, data in events[:length]:
            reader.read(kind, data)
        assert not reader.is_finished
        with pytest.raises(UpstreamFailed, match="before it was finished"):
            reader.end()


@pytest.mark.parametrize(
    "data",
    [
        b"<html>busy</html>",
        b'{"type":"response.output_text.delta","delta":"a',
        b"[]",
        b"",
        b"\xff",
        b"[DONE]",
        b'{"type":"response.output_text.delta","delta":{"a":1}}',
        b'{"type":"response.completed","response":1}',
        b'{"type":"response.completed","response":{"status":"in_progress"}}',
        b'{"type":"response.output_item.done","item":{"type":"function_call"}}',
    ],
)
def test_garbage_is_a_failure_that_does_not_repeat_it(data: bytes) -> None:
    with pytest.raises(UpstreamFailed) as caught:
        ResponsesReader().read("", data)
    assert b"busy" not in caught.value.message.encode()
    with pytest.raises(UpstreamFailed):
        ResponsesReader().read_whole(data)


@pytest.mark.parametrize("body", [b"{}", b'{"output":null}', b'{"status":"in_progress","output":[]}'])
def test_what_is_no_finished_response_is_no_answer(body: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        ResponsesReader().read_whole(body)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("server_error", UpstreamFailed),
        ("rate_limit_exceeded", UpstreamRateLimited),
        ("invalid_prompt", BackendRefused),
        ("image_too_large", BackendRefused),
        ("image_content_policy_violation", ContentFiltered),
        (None, UpstreamFailed),
    ],
)
def test_a_reported_failure_has_its_place_in_the_tree(code: str | None, kind: type[InferHubError]) -> None:
    error = {"code": code, "message": "It broke for sk-secret-key-1."}
    told = [
        event("response.failed", response={"status": "failed", "error": error}),
        event("error", code=code, message=error["message"], param=None),
        event("error", error=error),
    ]
    for name, data in told:
        with pytest.raises(kind) as caught:
            ResponsesReader(["sk-secret-key-1"]).read(name, data)
        assert type(caught.value) is kind
        assert "sk-secret" not in caught.value.message
    with pytest.raises(kind):
        ResponsesReader().read_whole(json.dumps({"status": "failed", "output": [], "error": error}).encode())


def test_a_call_that_came_only_whole_is_read_and_so_is_one_without_its_beginning() -> None:
    reader = ResponsesReader()
    item = {"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1}'}
    found = reader.read(*event("response.output_item.done", output_index=0, item=item))
    late = {**item, "call_id": "d"}
    assert reader.read(*event("response.function_call_arguments.delta", output_index=1, delta='{"a"')) == []
    found += reader.read(*event("response.output_item.done", output_index=1, item=late))
    calls = meaning([*found, ChatDelta(finish_reason="tool_calls")])["message"]["tool_calls"]
    assert [(c["id"], c["function"]["arguments"]) for c in calls] == [("c", '{"a":1}'), ("d", '{"a":1}')]


def test_events_of_a_vendors_own_tools_are_nothing_to_count() -> None:
    reader = ResponsesReader()
    assert reader.read(*event("response.web_search_call.searching", item_id="ws", output_index=0)) == []
    assert (
        reader.read(*event("response.output_item.added", item={"type": "web_search_call", "id": "ws"})) == []
    )
    assert reader.read(*event("response.invented.later", anything=[1])) == []


def test_what_follows_the_terminal_event_is_not_read() -> None:
    reader = ResponsesReader()
    [end] = reader.read(*event("response.completed", response={"status": "completed", "output": []}))
    assert end.finish_reason == "stop"
    assert reader.read("", b"[DONE]") == []
    assert reader.end() == Usage(source="unknown")


def test_a_sealed_thought_comes_with_its_format() -> None:
    item = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAA"}
    [delta] = ResponsesReader().read(*event("response.output_item.done", output_index=0, item=item))
    [detail] = delta.reasoning_details or []
    assert (detail.type, detail.data, detail.id) == ("reasoning.encrypted", "gAAA", "rs_1")
    assert detail.format == "openai-responses-v1"
