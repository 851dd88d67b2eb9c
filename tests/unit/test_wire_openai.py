"""The readers of OpenAI-style answers: what odd senders say, and what comes out."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import msgspec
import pytest

from inferhub.core.errors import (
    BackendRefused,
    ContentFiltered,
    ContextOverflow,
    InferHubError,
    Overloaded,
    UpstreamDenied,
    UpstreamExhausted,
    UpstreamFailed,
    UpstreamRateLimited,
)
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta, TokenLogprob
from inferhub.wire.foreign import clean_text, read_retry_after_s
from inferhub.wire.openai_chat import ChatReader, convert_chat_chunk, parse_chat_chunk
from inferhub.wire.openai_completion import CompletionReader, parse_completion_chunk
from inferhub.wire.openai_embedding import read_embeddings
from inferhub.wire.openai_errors import read_error, read_stream_error

# --- chat ------------------------------------------------------------------------------------------


def read_chat(*choices: dict[str, Any], expected: int = 1) -> tuple[list[ChatDelta], ChatReader]:
    reader = ChatReader(expected)
    chunks = [parse_chat_chunk(json.dumps({"choices": [choice]}).encode()) for choice in choices]
    return [delta for chunk in chunks for delta in reader.read(chunk)], reader


def said(**delta: Any) -> dict[str, Any]:
    return {"index": 0, "delta": delta}


def tool(index: int | None, call_id: str | None, name: str | None, arguments: str | None) -> dict[str, Any]:
    call = {"id": call_id, "index": index, "function": {"name": name, "arguments": arguments}}
    return {key: value for key, value in call.items() if value is not None}


def calls_of(deltas: list[ChatDelta]) -> list[tuple[str, str]]:
    """(name, arguments) by place; fails when a call is not introduced first and once, or places have gaps."""
    calls: list[list[str]] = []
    ids = []
    for piece in (call for delta in deltas for call in delta.tool_calls or ()):
        assert piece.function is not None
        if piece.id is not None:
            assert (piece.index, piece.type, piece.function.arguments) == (len(calls), "function", "")
            calls.append([piece.function.name or "", ""])
            ids.append(piece.id)
        else:
            assert piece.function.name is None
            calls[piece.index][1] += piece.function.arguments or ""
    assert len(set(ids)) == len(ids)
    assert all(ids)
    return [(name, arguments) for name, arguments in calls]


TWO = [("f", '{"a":1}'), ("g", '{"b":2}')]


@pytest.mark.parametrize(
    "pieces",
    [
        pytest.param(
            [
                tool(0, "x", "f", ""),
                tool(0, None, None, '{"a":1}'),
                tool(1, "y", "g", ""),
                tool(1, None, None, '{"b":2}'),
            ],
            id="by the book",
        ),
        pytest.param([tool(0, "x", "f", '{"a":1}'), tool(1, "y", "g", '{"b":2}')], id="whole calls"),
        pytest.param(
            [
                tool(0, "x", "f", '{"a'),
                tool(1, "y", "g", '{"b'),
                tool(0, None, None, '":1}'),
                tool(1, None, None, '":2}'),
            ],
            id="interleaved",
        ),
        pytest.param([tool(1, "x", "f", '{"a":1}'), tool(2, "y", "g", '{"b":2}')], id="counted from one"),
        pytest.param([tool(None, "x", "f", '{"a":1}'), tool(None, "y", "g", '{"b":2}')], id="no index"),
        pytest.param(
            [tool(None, "x", "f", ""), tool(None, None, None, '{"a":1}'), tool(None, "y", "g", '{"b":2}')],
            id="no index, pieces follow",
        ),
        pytest.param([tool(0, None, "f", '{"a":1}'), tool(1, "", "g", '{"b":2}')], id="no id, blank id"),
        pytest.param([tool(0, "x", "f", '{"a":1}'), tool(1, "x", "g", '{"b":2}')], id="id repeated"),
        pytest.param(
            [
                tool(0, "x", "f", ""),
                tool(0, None, None, '{"a":1}'),
                tool(0, "y", "g", ""),
                tool(0, None, None, '{"b":2}'),
            ],
            id="index reused",
        ),
        pytest.param(
            [tool(0, "x", "f", '{"a'), tool(0, "x", "f", '":1}'), tool(1, "y", "g", '{"b":2}')],
            id="id and name repeated with every piece",
        ),
        pytest.param(
            [
                tool(0, "x", None, '{"a'),
                tool(0, None, "f", '":1'),
                tool(0, None, None, "}"),
                tool(1, "y", "g", '{"b":2}'),
            ],
            id="name after arguments",
        ),
    ],
)
def test_contract_044_tool_calls_of_odd_senders(pieces: list[dict[str, Any]]) -> None:
    deltas, reader = read_chat(
        *(said(tool_calls=[piece]) for piece in pieces), {"index": 0, "delta": {}, "finish_reason": "stop"}
    )
    assert calls_of(deltas) == TWO
    # Contract item 5: they were called, whatever the sender says.
    assert deltas[-1] == ChatDelta(finish_reason="tool_calls")
    assert reader.is_finished


def test_contract_044_whole_messages_list_calls_without_numbers_and_may_repeat_ids() -> None:
    message = {"tool_calls": [tool(None, "x", "f", '{"a":1}'), tool(None, "x", "g", '{"b":2}')]}
    deltas, _ = read_chat({"index": 0, "message": message, "finish_reason": "tool_calls"})
    assert calls_of(deltas) == TWO


def test_a_tool_call_that_never_gets_a_name_is_not_collected_for_ever() -> None:
    with pytest.raises(UpstreamFailed, match="without a name"):
        read_chat(*[said(tool_calls=[tool(0, "x", None, "a" * 10_000)])] * 7)


def test_contract_003_one_finish_per_choice_and_nothing_after_it() -> None:
    deltas, reader = read_chat(
        said(content="a"),
        {"index": 0, "delta": {"content": "b"}, "finish_reason": "length"},
        {"index": 0, "delta": {"content": "late"}, "finish_reason": "stop"},
    )
    assert deltas == [ChatDelta(content="a"), ChatDelta(content="b"), ChatDelta(finish_reason="length")]
    assert reader.end() == Usage(source="unknown")


def test_an_answer_without_every_finish_is_broken() -> None:
    _, reader = read_chat(said(content="a"), {"index": 1, "delta": {}, "finish_reason": "stop"}, expected=2)
    assert not reader.is_finished
    with pytest.raises(UpstreamFailed):
        reader.end()


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_contract_049_reasoning_stays_apart_from_content(field: str) -> None:
    deltas, _ = read_chat(said(**{field: "hm"}), said(content="yes"), said(**{field: None, "content": ""}))
    assert deltas == [ChatDelta(reasoning_content="hm"), ChatDelta(content="yes")]


def test_logprobs_and_refusals_pass() -> None:
    token = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
    deltas, _ = read_chat({**said(content="a"), "logprobs": {"content": [token]}}, said(refusal="no"))
    assert deltas[0].logprobs == [TokenLogprob("a", -0.5, [97], [])]
    assert deltas[1] == ChatDelta(refusal="no")


@pytest.mark.parametrize("reason", ["eos", "end_turn", "STOP"])
def test_unknown_finish_reasons_become_stop(reason: str) -> None:
    deltas, _ = read_chat({"index": 0, "delta": {}, "finish_reason": reason})
    assert deltas == [ChatDelta(finish_reason="stop")]


@pytest.mark.parametrize("parse", [parse_chat_chunk, parse_completion_chunk])
def test_an_error_inside_an_answer_is_seen_and_null_is_none(parse: Any) -> None:
    assert parse(b'{"error":{"message":"m","code":500}}').error == {"message": "m", "code": 500}
    assert parse(b'{"error":"m"}').error == "m"
    assert parse(b'{"error":null,"choices":[]}').error is None


@pytest.mark.parametrize("parse", [parse_chat_chunk, parse_completion_chunk])
def test_contract_006_usage_comes_with_or_without_choices(parse: Any) -> None:
    usage = b'"usage":{"prompt_tokens":5,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":4}}'
    for start in (b'{"choices":[],', b'{"choices":null,', b"{"):
        chunk = parse(start + usage + b"}")
        reader = ChatReader(0) if parse is parse_chat_chunk else CompletionReader(0)
        assert reader.read(chunk) == []
        assert reader.end() == Usage(5, 2, cached_tokens=4)


@pytest.mark.parametrize("parse", [parse_chat_chunk, parse_completion_chunk])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>secret</html>",
        b'{"choices":[{"secret',
        b"[]",
        b"null",
        b'{"choices":3}',
        b"\xff\xfe",
        b"[" * 5000,
    ],
)
def test_what_is_no_answer_is_refused_without_echo(parse: Any, data: bytes) -> None:
    with pytest.raises(UpstreamFailed) as caught:
        parse(data)
    assert "secret" not in caught.value.message


def test_dictionaries_of_engines_are_read_alike() -> None:
    chunk = convert_chat_chunk({"choices": [{"index": 0, "delta": {"content": "a"}}]})
    assert ChatReader().read(chunk) == [ChatDelta(content="a")]
    with pytest.raises(UpstreamFailed):
        convert_chat_chunk({"choices": "a"})


# --- embeddings ------------------------------------------------------------------------------------


def embeddings(*items: Any, **more: Any) -> bytes:
    return msgspec.json.encode({"data": [{"index": i, "embedding": e} for i, e in items], **more})


def packed(*values: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def test_contract_050_both_encodings_give_the_same_bytes_in_order() -> None:
    body = embeddings((1, [0.5, 2]), (0, packed(0.1, -1)), usage={"prompt_tokens": 3})
    deltas, usage, _ = read_embeddings(body, 2)
    assert [(d.index, d.vector) for d in deltas] == [
        (0, struct.pack("<2f", 0.1, -1)),
        (1, struct.pack("<2f", 0.5, 2)),
    ]
    assert usage == Usage(input_tokens=3)


def test_embeddings_without_index_keep_their_order() -> None:
    deltas, usage, _ = read_embeddings(b'{"data":[{"embedding":[1]},{"embedding":[2]}]}', 2)
    assert [d.vector for d in deltas] == [struct.pack("<f", 1), struct.pack("<f", 2)]
    assert usage.source == "unknown"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(embeddings((0, [1.0])), id="too few"),
        pytest.param(embeddings((0, [1.0]), (1, [1.0]), (2, [1.0])), id="too many"),
        pytest.param(embeddings((0, [1.0]), (0, [1.0])), id="index twice"),
        pytest.param(embeddings((0, [1.0]), (5, [1.0])), id="index out of range"),
        pytest.param(embeddings((0, [1.0]), (1, [1.0, 2.0])), id="different lengths"),
        pytest.param(embeddings((0, []), (1, [])), id="empty vectors"),
        pytest.param(embeddings((0, "AAA"), (1, "AAA=")), id="not base64"),
        pytest.param(embeddings((0, "AAA="), (1, "AAA=")), id="not whole floats"),
        pytest.param(embeddings((0, [1e300]), (1, [1.0])), id="too large for float32"),
        pytest.param(embeddings((0, ["a"]), (1, [1.0])), id="not numbers"),
        pytest.param(b'{"error":{"message":"m"}}', id="an error"),
        pytest.param(b"{}", id="nothing"),
        pytest.param(b"<html>", id="HTML"),
    ],
)
def test_embeddings_that_do_not_fit_the_inputs_are_refused(body: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        read_embeddings(body, 2)


# --- errors ----------------------------------------------------------------------------------------


def refused(status: int, body: bytes, headers: dict[str, str] | None = None) -> InferHubError:
    return read_error(status, headers or {}, body, ["sk-secret-123"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"too hot","param":"t","code":"c"}}', "too hot"),
        (b'{"error":"too hot"}', "too hot"),
        (b'{"object":"error","message":"too hot","code":400}', "too hot"),
        (b'{"error":{"message":"bad sk-secret-123!"}}', "bad [redacted]!"),
        (b'{"error":{"message":"a\\r\\nb\\u001b[0m\\u202ec"}}', "a b [0m c"),
        (b'{"error":{"message":"<_io.BytesIO object at 0x7f00deadbeef>"}}', "<_io.BytesIO object at 0x…>"),
    ],
)
def test_a_refusals_message_in_every_habit_and_cleaned(body: bytes, message: str) -> None:
    error = refused(400, body)
    assert type(error) is BackendRefused
    assert error.message == message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>secret</html>",
        b'{"error',
        b"[]",
        b'{"error":[]}',
        b'{"error":{"message":5}}',
        b"\xff",
        b"[" * 5000,
    ],
)
@pytest.mark.parametrize("status", [400, 404, 405, 413, 422, 429, 500, 503])
def test_bodies_that_explain_nothing_are_not_echoed(status: int, body: bytes) -> None:
    error = refused(status, body)
    assert "secret" not in error.message
    assert "<" not in error.message
    assert type(error) is {400: BackendRefused, 413: BackendRefused, 422: BackendRefused}.get(
        status, type(error)
    )
    if status in (404, 405):
        assert type(error) is UpstreamFailed
        assert "base_url" in error.message


def test_messages_are_capped_and_names_are_checked() -> None:
    envelope = {"message": "x" * 10_000, "param": "p" * 100, "code": "has space"}
    error = refused(400, msgspec.json.encode({"error": envelope}))
    assert len(error.message) == 600
    assert error.param is None
    assert error.wire_code == "backend_refused"
    envelope = {"message": "m", "param": "messages[0].content", "code": "sk-secret-123"}
    error = refused(400, msgspec.json.encode({"error": envelope}))
    assert (error.param, error.wire_code) == ("messages[0].content", "backend_refused")


def test_refused_credentials_say_nothing_of_them() -> None:
    error = refused(401, b'{"error":{"message":"Incorrect API key provided: sk-se***123"}}')
    assert type(error) is UpstreamDenied
    assert "sk-" not in error.message
    assert not error.retryable


@pytest.mark.parametrize("error", [{"message": "it broke"}, "it broke"])
def test_stream_errors_are_failures_whatever_their_shape(error: Any) -> None:
    assert read_stream_error(error).message == "The upstream reported an error: it broke"


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (400, "This model's maximum context length is 10 tokens.", ContextOverflow),
        (400, "No such role.", BackendRefused),
        (401, "Incorrect key sk-se***123", UpstreamDenied),
        (402, "Pay first.", UpstreamExhausted),
        (429, "Slow down.", UpstreamRateLimited),
        (503, "Full.", Overloaded),
        (500, "It broke.", UpstreamFailed),
        (200, "It broke.", UpstreamFailed),
        (True, "It broke.", UpstreamFailed),
        ("context_length_exceeded", "Too long.", ContextOverflow),
        ("content_filter", "No.", ContentFiltered),
        ("rate_limit_exceeded", "Slow down.", UpstreamRateLimited),
        ("insufficient_quota", "Pay first.", UpstreamExhausted),
        ("server_error", "It broke.", UpstreamFailed),
    ],
)
def test_stream_errors_mean_what_their_code_says(code: Any, message: str, kind: type[InferHubError]) -> None:
    error = read_stream_error({"message": message, "code": code})
    assert type(error) is kind
    assert "sk-" not in error.message


@pytest.mark.parametrize("error", [True, 5, {}, ["a"], {"message": None}])
def test_stream_errors_without_words_are_failures_too(error: Any) -> None:
    assert type(read_stream_error(error)) is UpstreamFailed


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 7.5 "}, 7.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after-ms": "x", "retry-after": "7"}, 7),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        ({"retry-after": "Wed, 99 Oct 2015 07:28:00 GMT"}, None),
    ],
)
def test_retry_after_headers(headers: dict[str, str], seconds: float | None) -> None:
    assert read_retry_after_s(headers) == seconds


def test_short_secrets_do_not_garble_text() -> None:
    assert clean_text("a banana", ["a", ""]) == "a banana"
