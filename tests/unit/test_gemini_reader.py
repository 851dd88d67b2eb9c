"""Gemini's answers and errors read into ours: what the wire may say, event by event."""

from __future__ import annotations

import math
import struct
from typing import Any

import msgspec
import pytest

from inferhub.core.errors import (
    BackendRefused,
    ContentFiltered,
    ContextOverflow,
    EndpointStalled,
    InferHubError,
    Overloaded,
    UpstreamDenied,
    UpstreamExhausted,
    UpstreamFailed,
    UpstreamRateLimited,
)
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta
from inferhub.wire.gemini.counting import read_count
from inferhub.wire.gemini.embedding import lift_embeddings, read_embeddings
from inferhub.wire.gemini.errors import read_error, read_stream_error
from inferhub.wire.gemini.reader import GeminiReader, parse_chunk

encode = msgspec.json.encode
DEEP = b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"


def candidate(*parts: dict[str, Any], reason: str = "", index: int = 0, **more: Any) -> dict[str, Any]:
    found = {"content": {"role": "model", "parts": list(parts)}, **more}
    return found | ({"finishReason": reason} if reason else {}) | ({"index": index} if index else {})


def read(*chunks: dict[str, Any], choices: int = 1, top_logprobs: int = 0) -> tuple[list[ChatDelta], Usage]:
    reader = GeminiReader(choices, top_logprobs)
    deltas = [delta for chunk in chunks for delta in reader.read(parse_chunk(encode(chunk)))]
    finishes, usage = reader.end()
    return [*deltas, *finishes], usage


def said(*candidates: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"candidates": list(candidates), **more}


def test_text_comes_in_pieces_and_ends_once() -> None:
    deltas, usage = read(
        # Some models name a reason with every event.
        said(candidate({"text": "Hel"}, reason="STOP"), usageMetadata={"promptTokenCount": 4}),
        said(candidate({"text": ""})),
        said(
            candidate({"text": "lo"}, reason="STOP"),
            usageMetadata={"promptTokenCount": 4, "candidatesTokenCount": 2, "newCount": {"x": 1}},
            modelVersion="m",
            somethingNew=[1],
        ),
    )
    assert deltas == [
        ChatDelta(content="Hel"),
        ChatDelta(content="lo"),
        ChatDelta(finish_reason="stop"),
    ]
    assert usage == Usage(4, 2)


def test_every_class_of_tokens_is_counted() -> None:
    _, usage = read(
        said(
            candidate({"text": "x"}, reason="STOP"),
            usageMetadata={
                "promptTokenCount": 10,
                "cachedContentTokenCount": 4,
                "toolUsePromptTokenCount": 3,
                "candidatesTokenCount": 5,
                "thoughtsTokenCount": 7,
                "totalTokenCount": 25,
            },
        )
    )
    assert usage == Usage(input_tokens=13, output_tokens=12, cached_tokens=4, reasoning_tokens=7)
    assert read(said(candidate({"text": "x"}, reason="STOP")))[1] == Usage(source="unknown")


def test_functions_are_introduced_once_and_numbered() -> None:
    deltas, _ = read(
        said(
            candidate(
                {"functionCall": {"name": "a", "id": "one", "args": {"x": 1}}, "thoughtSignature": "c2ln"},
                {"functionCall": {"name": "b", "id": "one"}},
            )
        ),
        said(candidate({"functionCall": {"name": "c", "args": {}}}, reason="STOP")),
    )
    calls = [call for delta in deltas for call in delta.tool_calls or ()]
    assert [len(delta.tool_calls or ()) for delta in deltas] == [1] * 6 + [0]
    firsts, rests = calls[::2], calls[1::2]
    assert [(c.index, c.type, c.function.name, c.function.arguments) for c in firsts if c.function] == [
        (0, "function", "a", ""),
        (1, "function", "b", ""),
        (2, "function", "c", ""),
    ]
    assert [(c.index, c.id, c.function.name, c.function.arguments) for c in rests if c.function] == [
        (0, None, None, '{"x":1}'),
        (1, None, None, "{}"),
        (2, None, None, "{}"),
    ]
    ids = [call.id for call in firsts]
    assert ids[0] == "one"
    assert len(set(ids)) == 3, "an id that is missing or used before is made"
    assert [call.extra_content for call in firsts] == [{"google": {"thought_signature": "c2ln"}}, None, None]
    assert deltas[-1].finish_reason == "tool_calls"


def test_arguments_are_what_was_written_but_for_white_space() -> None:
    raw = (
        b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":"a","args":'
        b'{ "n": 1.0e5,\n "s": "\\u00e9 \\"", "big": 12345678901234567890 }}}]},"finishReason":"STOP"}]}'
    )
    deltas = GeminiReader().read(parse_chunk(raw))
    call = (deltas[1].tool_calls or [])[0]
    assert call.function is not None
    assert call.function.arguments == '{"n":1.0e5,"s":"\\u00e9 \\"","big":12345678901234567890}'


def test_thoughts_are_apart_from_the_answer() -> None:
    deltas, _ = read(
        said(candidate({"text": "Hm.", "thought": True})),
        said(candidate({"text": "", "thought": True, "thoughtSignature": "b25l"})),
        said(candidate({"text": "Yes."})),
        said(candidate({"text": "", "thoughtSignature": "dHdv"}, reason="STOP")),
    )
    assert [delta.reasoning_content for delta in deltas] == ["Hm.", None, None, None, None]
    assert [delta.content for delta in deltas] == [None, None, "Yes.", None, None]
    details = [detail for delta in deltas for detail in delta.reasoning_details or ()]
    assert [(d.type, d.signature, d.data, d.format, d.index) for d in details] == [
        ("reasoning.text", "b25l", None, "google-gemini-v1", 0),
        ("reasoning.encrypted", None, "dHdv", "google-gemini-v1", 1),
    ]


def test_candidates_are_choices() -> None:
    deltas, _ = read(
        said(candidate({"text": "a"}, reason="STOP"), candidate({"text": "b"}, reason="MAX_TOKENS")),
        choices=2,
    )
    assert deltas == [
        ChatDelta(index=0, content="a"),
        ChatDelta(index=1, content="b"),
        ChatDelta(index=0, finish_reason="stop"),
        ChatDelta(index=1, finish_reason="length"),
    ]


@pytest.mark.parametrize("chunks", [[said(candidate({"text": "a"}, reason="STOP", index=1))], []])
def test_an_answer_that_was_not_asked_for_or_is_missing_is_a_failure(chunks: list[Any]) -> None:
    with pytest.raises(UpstreamFailed):
        read(*chunks)


def test_logprobs_spell_the_answer() -> None:
    tokens = [
        {"token": "Hé", "logProbability": -0.5},
        {"token": "\ufffd", "logProbability": "-Infinity"},
        {"token": "!"},
    ]
    tops = [{"candidates": [tokens[0], tokens[2]]}, {"candidates": []}, {"candidates": [tokens[2]]}]
    deltas, _ = read(
        said(
            candidate(
                {"text": "x", "thought": True},
                {"text": "Hé!"},
                reason="STOP",
                logprobsResult={"chosenCandidates": tokens, "topCandidates": tops},
            )
        ),
        top_logprobs=1,
    )
    found = deltas[1].logprobs or []
    assert [(t.token, t.logprob, t.bytes) for t in found] == [
        ("Hé", -0.5, [72, 195, 169]),
        ("\ufffd", -9999.0, None),
        ("!", 0.0, [33]),
    ]
    assert [[top.token for top in t.top_logprobs] for t in found] == [["Hé"], [], ["!"]]


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        *((r, "content_filter") for r in ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII")),
    ],
)
def test_reasons_that_are_an_end(reason: str, finish: str) -> None:
    deltas, _ = read(said(candidate({"text": "x"})), said({"finishReason": reason}))
    assert deltas[-1].finish_reason == finish


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("MALFORMED_FUNCTION_CALL", UpstreamFailed),
        ("OTHER", UpstreamFailed),
        ("A_REASON_OF_TOMORROW", UpstreamFailed),
        ("MISSING_THOUGHT_SIGNATURE", BackendRefused),
        ("TOO_MANY_TOOL_CALLS", BackendRefused),
    ],
)
def test_reasons_that_are_no_end(reason: str, kind: type[InferHubError]) -> None:
    with pytest.raises(kind) as caught:
        read(said(candidate({"text": "x"}, reason=reason)))
    assert type(caught.value) is kind
    assert reason in caught.value.message


def test_a_reason_that_is_no_word_is_not_echoed() -> None:
    with pytest.raises(UpstreamFailed) as caught:
        read(said(candidate(reason="<html>" * 50)))
    assert "html" not in caught.value.message


def test_length_wins_over_functions() -> None:
    deltas, _ = read(said(candidate({"functionCall": {"name": "a"}}, reason="MAX_TOKENS")))
    assert deltas[-1].finish_reason == "length"


def test_a_blocked_prompt_is_the_filters() -> None:
    with pytest.raises(ContentFiltered, match="PROHIBITED_CONTENT"):
        read({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}})


@pytest.mark.parametrize(
    "chunk",
    [
        said(candidate({"text": "x"})),
        said(candidate({"text": "x"}, reason="FINISH_REASON_UNSPECIFIED")),
        said(candidate({"inlineData": {"mimeType": "image/png", "data": "aGk="}}, reason="STOP")),
        said(candidate({"functionCall": {"args": {}}}, reason="STOP")),
        said(candidate({"functionCall": {"name": "a", "args": [1]}}, reason="STOP")),
        {},
    ],
)
def test_what_is_no_whole_answer_is_a_failure(chunk: dict[str, Any]) -> None:
    with pytest.raises(UpstreamFailed):
        read(chunk)


@pytest.mark.parametrize(
    "data", [b"", b"\x00\xff", b"<html>secret</html>", b'{"candidates": [', b"[]", b"7", DEEP]
)
def test_garbage_is_never_echoed(data: bytes) -> None:
    with pytest.raises(UpstreamFailed) as caught:
        parse_chunk(data)
    assert "secret" not in caught.value.message


# --- errors ----------------------------------------------------------------------------------------

TOO_LONG = "The input token count (1200293) exceeds the maximum number of tokens allowed (1048576)."
DETAIL = "type.googleapis.com/google.rpc."


def google(code: int, status: str, message: str = "No.", *details: dict[str, Any]) -> bytes:
    error = {"code": code, "message": message, "status": status, "details": list(details)}
    return encode({"error": error})


def detail(kind: str, **fields: Any) -> dict[str, Any]:
    return {"@type": DETAIL + kind, **fields}


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (400, google(400, "INVALID_ARGUMENT", "Bad schema."), BackendRefused, "Bad schema."),
        (400, google(400, "INVALID_ARGUMENT", TOO_LONG), ContextOverflow, TOO_LONG),
        (400, b"[" + google(400, "INVALID_ARGUMENT", TOO_LONG) + b"]", ContextOverflow, TOO_LONG),
        (
            400,
            google(400, "INVALID_ARGUMENT", "Key bad.", detail("ErrorInfo", reason="API_KEY_INVALID")),
            UpstreamDenied,
            "credentials",
        ),
        (400, google(400, "FAILED_PRECONDITION", "Location."), UpstreamDenied, "country or billing"),
        (401, b"", UpstreamDenied, "credentials"),
        (403, google(403, "PERMISSION_DENIED", "secret words"), UpstreamDenied, "credentials"),
        (404, google(404, "NOT_FOUND", "models/x is not found."), BackendRefused, "models/x"),
        (404, b"<html>", UpstreamFailed, "base_url"),
        (413, b"", BackendRefused, "413"),
        (302, b"", UpstreamFailed, "redirect"),
        (429, google(429, "RESOURCE_EXHAUSTED"), UpstreamRateLimited, "rate limit"),
        (500, google(500, "INTERNAL", "secret words"), UpstreamFailed, "HTTP 500"),
        (502, b"<html>secret words", UpstreamFailed, "HTTP 502"),
        (503, google(503, "UNAVAILABLE"), Overloaded, "overloaded"),
        (504, google(504, "DEADLINE_EXCEEDED"), EndpointStalled, "time"),
        (499, google(499, "CANCELLED"), UpstreamFailed, "HTTP 499"),
    ],
)
def test_errors(status: int, body: bytes, kind: type[InferHubError], message: str) -> None:
    error = read_error(status, {}, body)
    assert type(error) is kind
    assert message in error.message
    assert "secret words" not in error.message


def test_how_long_to_wait_is_googles_word_before_the_headers() -> None:
    body = google(429, "RESOURCE_EXHAUSTED", "No.", detail("RetryInfo", retryDelay="31.5s"))
    assert read_error(429, {"retry-after": "7"}, body).retry_after_s == 31.5
    assert read_error(429, {"retry-after": "7"}, google(429, "RESOURCE_EXHAUSTED")).retry_after_s == 7
    odd = google(429, "RESOURCE_EXHAUSTED", "No.", detail("RetryInfo", retryDelay="soon"))
    assert read_error(429, {}, odd).retry_after_s is None


def test_a_quota_of_the_day_is_used_up() -> None:
    quota = detail("QuotaFailure", violations=[{"quotaId": "GenerateRequestsPerDayPerProjectPerModel"}])
    delay = detail("RetryInfo", retryDelay="3s")
    body = google(429, "RESOURCE_EXHAUSTED", "No.", quota, delay)
    assert type(read_error(429, {}, body)) is UpstreamExhausted


def test_no_secret_gets_through() -> None:
    key = "AIzaSyCanary0123456789"
    error = read_error(400, {}, google(400, "INVALID_ARGUMENT", f"Bad {key}\r\n at 0x7f3a9c0012d0"), (key,))
    assert error.message == "Bad [redacted]  at 0x…"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": 503, "status": "UNAVAILABLE", "message": "Busy."}, Overloaded),
        ({"code": 500, "status": "INTERNAL", "message": "Broke."}, UpstreamFailed),
        ({"code": 429, "status": "RESOURCE_EXHAUSTED"}, UpstreamRateLimited),
        ("what", UpstreamFailed),
    ],
)
def test_errors_inside_an_answer(error: Any, kind: type[InferHubError]) -> None:
    assert type(read_stream_error(error)) is kind


# --- embeddings and counts -------------------------------------------------------------------------


def test_vectors_have_length_one() -> None:
    body = encode({"embeddings": [{"values": [3.0, 4.0]}], "usageMetadata": {"promptTokenCount": 2}})
    vectors, usage = read_embeddings(body, 1)
    assert struct.unpack("<2f", vectors[0]) == pytest.approx((0.6, 0.8))
    assert usage == Usage(2)


def test_a_vector_of_length_one_is_left_alone() -> None:
    values = [0.1] * 99 + [math.sqrt(1 - 0.99)]
    vectors, _ = read_embeddings(encode({"embeddings": [{"values": values}]}), 1)
    assert vectors[0] == struct.pack("<100f", *values)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"embeddings": []},
        {"embeddings": [{"values": [1.0]}, {"values": [1.0]}]},
        {"embeddings": [{"values": []}]},
        {"embeddings": [{"values": [0.0]}]},
        {"embeddings": "x"},
        {"error": {"code": 500}},
    ],
)
def test_what_is_no_embedding_is_a_failure(answer: Any) -> None:
    with pytest.raises(UpstreamFailed):
        read_embeddings(encode(answer), 1)


def test_dimensions_are_asked_for_with_every_text() -> None:
    lifted = lift_embeddings(["a", "b"], "models/m", 5)
    assert [item["outputDimensionality"] for item in lifted["requests"]] == [5, 5]
    assert "outputDimensionality" not in lift_embeddings(["a"], "models/m", None)["requests"][0]


def test_counts() -> None:
    assert read_count(b'{"totalTokens": 31, "promptTokensDetails": []}') == 31
    for body in (b"{}", b"[]", b"<html>", b'{"totalTokens": -1}', b'{"error": {"code": 500}}'):
        with pytest.raises(UpstreamFailed):
            read_count(body)
