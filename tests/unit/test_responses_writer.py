"""Chat deltas as a Responses stream: every event held to OpenAI's document and to the types of its SDK."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent

from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, Problem
from inferhub.modalities.chat import ChatDelta, FunctionDelta, ReasoningDetail, TokenLogprob, ToolCallDelta
from inferhub.testing.strict import validate, validate_type
from inferhub.wire.openai_responses.request import Reasoning as ReasoningWish
from inferhub.wire.openai_responses.request import ResponsesRequest, TextConfig
from inferhub.wire.openai_responses.thoughts import unpack
from inferhub.wire.openai_responses.writer import ResponsesWriter, final_response, fold

ENVELOPE = Envelope("resp_0123", 1_700_000_000, "m")
USAGE = Usage(7, 5, 2, 1)
PROBLEM = Problem("The worker died.", "api_error", None, "endpoint_lost")

Event = dict[str, Any]


def asked(**fields: Any) -> ResponsesRequest:
    return ResponsesRequest(model="m", input="hello", **fields)


def read(raw: bytes) -> list[Event]:
    """The events, each checked: framing, name, document, SDK."""
    found: list[Event] = []
    for text in raw.decode().split("\n\n")[:-1]:
        name, data = text.split("\n")
        event: Event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert validate("ResponseStreamEvent", event) == [], event
        assert validate_type(ResponseStreamEvent, event) == [], event
        found.append(event)
    return found


def written(deltas: Sequence[ChatDelta], **fields: Any) -> list[Event]:
    writer = ResponsesWriter(asked(stream=True, **fields), ENVELOPE)
    raw = b"".join(writer.delta(delta) for delta in deltas) + writer.end(USAGE)
    events = read(raw)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    whole = json.loads(fold(asked(**fields), ENVELOPE, deltas, USAGE))
    assert validate("Response", whole) == []
    assert validate_type(Response, whole) == []
    streamed = events[-1]["response"]
    for response in (whole, streamed):
        response.pop("completed_at")
    assert whole == streamed, "a stream and an answer that is not streamed end alike"
    return events


def kinds(events: Sequence[Event]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def call(index: int, *, call_id: str | None = None, name: str | None = None, said: str = "") -> ChatDelta:
    return ChatDelta(
        tool_calls=[ToolCallDelta(index, call_id, "function" if name else None, FunctionDelta(name, said))]
    )


def test_a_text_comes_in_the_order_that_clients_rely_on() -> None:
    events = written([ChatDelta(content="Hel"), ChatDelta(content="lo ✓"), ChatDelta(finish_reason="stop")])
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert events[6]["text"] == "Hello ✓"
    final = events[-1]["response"]
    assert final["output"][0]["content"] == [
        {"type": "output_text", "text": "Hello ✓", "annotations": [], "logprobs": []}
    ]
    assert final["usage"] == {
        "input_tokens": 7,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 5,
        "output_tokens_details": {"reasoning_tokens": 1},
        "total_tokens": 12,
    }


REQUIRED = (
    *(
        "id",
        "object",
        "created_at",
        "completed_at",
        "status",
        "incomplete_details",
        "model",
        "output",
        "error",
    ),
    *("previous_response_id", "instructions", "tools", "tool_choice", "truncation", "parallel_tool_calls"),
    *("text", "top_p", "presence_penalty", "frequency_penalty", "top_logprobs", "temperature", "reasoning"),
    *("usage", "max_output_tokens", "max_tool_calls", "store", "background", "service_tier", "metadata"),
    *("safety_identifier", "prompt_cache_key"),
)
NEVER_NULL = (
    *("temperature", "top_p", "tool_choice", "truncation", "background", "service_tier", "tools"),
    *("presence_penalty", "frequency_penalty", "top_logprobs", "usage", "store", "metadata", "text"),
)


def test_an_answer_has_every_key_and_null_only_where_it_may_be() -> None:
    whole = json.loads(fold(asked(), ENVELOPE, [ChatDelta(content="a", finish_reason="stop")], USAGE))
    assert set(REQUIRED) <= whole.keys()
    assert [name for name in NEVER_NULL if whole[name] is None] == []
    assert whole["output"][0]["id"]
    assert whole["output"][0]["status"] == "completed"
    assert isinstance(whole["created_at"], int)


def test_what_was_asked_is_repeated() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}}
    whole = json.loads(
        fold(
            asked(
                tools=[tool],
                metadata={"a": "b"},
                temperature=0.0,
                top_p=0.0,
                instructions="Be brief.",
                previous_response_id="resp_1",
                reasoning=ReasoningWish(effort="low"),
                text=TextConfig(verbosity="low"),
                parallel_tool_calls=False,
                store=False,
                user="u",
            ),
            ENVELOPE,
            [ChatDelta(content="a", finish_reason="stop")],
            USAGE,
        )
    )
    assert validate("Response", whole) == []
    assert whole["tools"] == [{**tool, "description": None, "strict": None}]
    assert (whole["metadata"], whole["temperature"], whole["top_p"]) == ({"a": "b"}, 0, 0)
    assert (whole["instructions"], whole["previous_response_id"]) == ("Be brief.", "resp_1")
    assert whole["reasoning"] == {"effort": "low", "summary": None}
    assert whole["text"] == {"format": {"type": "text"}, "verbosity": "low"}
    assert (whole["parallel_tool_calls"], whole["store"], whole["user"]) == (False, False, "u")


def test_parallel_calls_stay_apart_even_when_their_pieces_are_mixed() -> None:
    events = written(
        [
            ChatDelta(content="Let me look."),
            call(0, call_id="call_a", name="look"),
            call(0, said='{"a":'),
            call(1, call_id="call_b", name="find"),
            call(0, said="1}"),
            call(1, said="{}"),
            ChatDelta(finish_reason="tool_calls"),
        ]
    )
    done = {event["item_id"]: event for event in events if event["type"].endswith("arguments.done")}
    final = events[-1]["response"]
    assert [item["type"] for item in final["output"]] == ["message", "function_call", "function_call"]
    assert [(i["call_id"], i["name"], i["arguments"]) for i in final["output"][1:]] == [
        ("call_a", "look", '{"a":1}'),
        ("call_b", "find", "{}"),
    ]
    for place, item in enumerate(final["output"][1:], 1):
        pieces = [
            e["delta"] for e in events if e["type"].endswith("arguments.delta") and e["output_index"] == place
        ]
        assert "".join(pieces) == item["arguments"] == done[item["id"]]["arguments"]
    # The message ends before the first call begins.
    assert kinds(events).index("output_item.done") < kinds(events).index("function_call_arguments.delta")
    assert len({item["id"] for item in final["output"]}) == 3


def test_a_call_without_arguments_has_an_empty_object() -> None:
    events = written([call(0, call_id="call_a", name="now"), ChatDelta(finish_reason="tool_calls")])
    assert events[-1]["response"]["output"][0]["arguments"] == "{}"


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (None, ["content_part.added", "reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done"]),
        (
            ReasoningWish(summary="auto"),
            [
                "reasoning_summary_part.added",
                "reasoning_summary_text.delta",
                "reasoning_summary_text.delta",
                "reasoning_summary_text.done",
            ],
        ),
    ],
)
def test_a_thought_is_an_item_before_the_message(wish: ReasoningWish | None, expected: list[str]) -> None:
    signed = ReasoningDetail(
        "reasoning.text", text="Hm.", signature="s1", format="anthropic-claude-v1", index=0
    )
    events = written(
        [
            ChatDelta(reasoning_content="H"),
            ChatDelta(reasoning_content="m."),
            ChatDelta(reasoning_details=[signed]),
            ChatDelta(content="Yes."),
            ChatDelta(finish_reason="stop"),
        ],
        reasoning=wish,
    )
    assert kinds(events)[3:7] == expected
    thought, message = events[-1]["response"]["output"]
    assert (thought["type"], message["type"]) == ("reasoning", "message")
    shown = thought["summary"] if wish else thought["content"]
    assert [part["text"] for part in shown] == ["Hm."]
    assert unpack(thought["encrypted_content"], thought["id"]) == [signed]


def test_a_refusal_is_a_part_of_its_own() -> None:
    events = written([ChatDelta(refusal="I can"), ChatDelta(refusal="not."), ChatDelta(finish_reason="stop")])
    assert kinds(events)[4:7] == ["refusal.delta", "refusal.delta", "refusal.done"]
    assert events[-1]["response"]["output"][0]["content"] == [{"type": "refusal", "refusal": "I cannot."}]


def test_logprobs_and_citations_are_in_the_events_and_in_the_part() -> None:
    note = {
        "type": "url_citation",
        "url_citation": {"url": "https://x.example", "title": "X", "start_index": 0, "end_index": 1},
    }
    events = written(
        [
            ChatDelta(content="é", logprobs=[TokenLogprob("é", -0.5)]),
            ChatDelta(annotations=[note]),
            ChatDelta(finish_reason="stop"),
        ]
    )
    part = events[-1]["response"]["output"][0]["content"][0]
    assert part["logprobs"] == [{"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": []}]
    assert part["annotations"] == [{"type": "url_citation", **note["url_citation"]}]  # type: ignore[dict-item]
    assert "output_text.annotation.added" in kinds(events)


@pytest.mark.parametrize(
    ("reason", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_a_cut_answer_is_incomplete_and_says_why(reason: Any, why: str) -> None:
    events = written([ChatDelta(content="Hel"), ChatDelta(finish_reason=reason)])
    final = events[-1]["response"]
    assert events[-1]["type"] == "response.incomplete"
    assert (final["status"], final["incomplete_details"]) == ("incomplete", {"reason": why})
    assert final["output"][0]["status"] == "incomplete"


def test_a_call_that_was_cut_keeps_its_half_of_the_arguments() -> None:
    events = written([call(0, call_id="c", name="f"), call(0, said='{"a'), ChatDelta(finish_reason="length")])
    item = events[-1]["response"]["output"][0]
    assert (item["arguments"], item["status"]) == ('{"a', "incomplete")


def test_an_answer_without_a_word_has_an_empty_message() -> None:
    events = written([ChatDelta(finish_reason="stop")])
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == ""


def test_a_broken_stream_ends_with_response_failed_and_what_was_said() -> None:
    writer = ResponsesWriter(asked(stream=True), ENVELOPE)
    raw = writer.delta(ChatDelta(content="Hel")) + writer.fail(PROBLEM)
    events = read(raw)
    failed = events[-1]
    assert failed["type"] == "response.failed"
    assert failed["sequence_number"] == events[-2]["sequence_number"] + 1
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["code"] == "server_error"
    assert failed["response"]["error"]["message"] == "The worker died."
    assert failed["response"]["output"][0]["content"][0]["text"] == "Hel"
    assert failed["response"]["output"][0]["status"] == "incomplete"


def test_a_stream_that_breaks_before_its_first_word_still_begins() -> None:
    events = read(ResponsesWriter(asked(stream=True), ENVELOPE).fail(PROBLEM))
    assert kinds(events) == ["created", "in_progress", "failed"]


def test_a_failure_follows_the_numbers_of_forwarded_events() -> None:
    writer = ResponsesWriter(asked(stream=True), ENVELOPE)
    first = ResponsesWriter(asked(stream=True), Envelope("resp_up", 1, "vendor-model"))
    raw = first.delta(ChatDelta(content='a \\"sequence_number\\": 999 b'))
    writer.passed(raw)
    told = first.delta(ChatDelta(content="c")).replace(b'"sequence_number":', b'"sequence_number": ')
    writer.passed(told)
    [failed] = read(writer.fail(PROBLEM))
    assert failed["sequence_number"] == 6
    assert (failed["response"]["id"], failed["response"]["model"]) == ("resp_up", "vendor-model")


def test_a_forwarded_stream_that_breaks_ends_with_what_was_said_of_it() -> None:
    """As it was named by the upstream: what is done as it is, what is not as incomplete."""
    first = ResponsesWriter(asked(stream=True), Envelope("resp_up", 1, "vendor-model"))
    told = [
        first.delta(ChatDelta(reasoning_content="hm")),
        first.delta(ChatDelta(content="one ")),
        b"data: neither JSON nor of use\n\n",
        b'data: {"type":"response.output_item.added","item":7}\n\n',
        first.delta(ChatDelta(content="two")),
    ]
    writer = ResponsesWriter(asked(stream=True), ENVELOPE)
    for raw in told:
        writer.passed(raw)
    kept = json.loads(writer.failed(PROBLEM))
    [sent] = read(writer.fail(PROBLEM))
    assert sent["response"] == kept
    own = json.loads(first.failed(PROBLEM))
    assert kept["output"] == own["output"]
    assert [item["status"] for item in kept["output"]] == ["completed", "incomplete"]


def test_a_forwarded_tool_call_that_breaks_off_is_incomplete() -> None:
    first, writer = (ResponsesWriter(asked(stream=True), ENVELOPE) for _ in range(2))
    begun = ToolCallDelta(0, "call_1", "function", FunctionDelta("f", '{"a"'))
    writer.passed(first.delta(ChatDelta(tool_calls=[begun])))
    [item] = json.loads(writer.failed(PROBLEM))["output"]
    assert (item["call_id"], item["arguments"], item["status"]) == ("call_1", '{"a"', "incomplete")


def test_the_final_response_is_found_in_the_closing_events_alone() -> None:
    writer = ResponsesWriter(asked(stream=True), ENVELOPE)
    raw = writer.delta(ChatDelta(content="a"))
    assert final_response(raw) is None
    found = final_response(raw + writer.end(USAGE))
    assert found is not None
    assert json.loads(found)["status"] == "completed"
    assert final_response(b'data: {"type":"response.completed","response":{') is None


def test_an_answer_that_was_not_kept_says_so() -> None:
    writer = ResponsesWriter(asked(stream=True), ENVELOPE)
    writer.delta(ChatDelta(content="a", finish_reason="stop"))
    writer.finish(USAGE, is_stored=False)
    assert read(writer.end(USAGE))[-1]["response"]["store"] is False
