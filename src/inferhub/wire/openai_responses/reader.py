"""Reads answers of upstreams that speak Responses, whole or event by event, into `ChatDelta`s.

Fed by backends in the pass-through lane: what it returns is counted and recorded, while the client gets
the upstream's own bytes. Raises where an answer failed, and where it ended without saying so.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NoReturn

import msgspec

from inferhub.core.errors import (
    BackendRefused,
    ContentFiltered,
    InferHubError,
    UpstreamFailed,
    UpstreamRateLimited,
)
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta, FunctionDelta, TokenLogprob, ToolCallDelta
from inferhub.modalities.chat.deltas import FinishReason, ReasoningDetail, TopLogprob
from inferhub.wire.foreign import NOT_JSON, clean_text

REASONING_FORMAT = "openai-responses-v1"
"""Marks a sealed thought that only a Responses upstream can read again."""
_MAX_HELD_CHARS = 65536
_MAX_ITEMS = 4096


_ABSENT = msgspec.Raw(b"null")


class _CachedDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _ReasoningDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    input_tokens_details: _CachedDetails | None = None
    output_tokens_details: _ReasoningDetails | None = None


class _TopLogprob(msgspec.Struct):
    token: str = ""
    logprob: float = 0.0
    bytes: list[int] | None = None


class _Logprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int] | None = None
    top_logprobs: list[_TopLogprob] | None = None


class _Part(msgspec.Struct):
    """A piece of a message or of a thought."""

    type: str = ""
    text: str | None = None
    refusal: str | None = None
    annotations: list[dict[str, Any]] | None = None
    logprobs: list[_Logprob] | None = None


class _Item(msgspec.Struct):
    type: str
    id: str | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    content: Any = None
    summary: list[_Part] | None = None
    encrypted_content: str | None = None


class _Reason(msgspec.Struct):
    reason: str | None = None


class _Response(msgspec.Struct):
    """The response object; `output` is read only where the answer came whole."""

    status: str | None = None
    output: msgspec.Raw = _ABSENT
    usage: _Usage | None = None
    error: Any = None
    incomplete_details: _Reason | None = None


class _Event(msgspec.Struct):
    type: str = ""
    delta: Any = None
    output_index: int = 0
    item: msgspec.Raw = _ABSENT
    response: msgspec.Raw = _ABSENT
    logprobs: list[_Logprob] | None = None
    annotation: dict[str, Any] | None = None
    arguments: Any = None
    error: Any = None
    code: Any = None
    message: Any = None


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_item = msgspec.json.Decoder(_Item).decode
_decode_items = msgspec.json.Decoder(list[_Item] | None).decode
_decode_response = msgspec.json.Decoder(_Response).decode
_INCOMPLETE: dict[str | None, FinishReason] = {"content_filter": "content_filter"}


class ResponsesReader:
    """Follows one answer: `read` each event in order, or `read_whole`; then `end`."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        self._secrets = secrets
        """Never shown, should the upstream's error name them."""
        self._calls: dict[int, _OpenCall] = {}
        self._places = 0
        self._usage: _Usage | None = None
        self._is_finished = False

    @property
    def is_finished(self) -> bool:
        return self._is_finished

    def read(self, event: str, data: bytes) -> list[ChatDelta]:
        """The deltas of one event; `event` is its name, used where the data does not repeat it.

        Raises `InferHubError` for an event that reports a failure, and for one that is not an event.
        """
        if self._is_finished:
            # Nothing may follow; some servers close with the `[DONE]` of chat completions.
            return []
        try:
            told = _decode_event(data)
            return self._follow(told.type or event, told)
        except NOT_JSON as error:
            raise UpstreamFailed("The upstream sent an event that is not one of a response.") from error

    def read_whole(self, body: bytes) -> list[ChatDelta]:
        """The deltas of an answer that was not streamed. Raises like `read`."""
        try:
            response = _decode_response(body)
            if response.output == _ABSENT and not response.error:
                raise UpstreamFailed("The upstream's answer is not a response.")
            items = _decode_items(response.output) or []
        except NOT_JSON as error:
            raise UpstreamFailed("The upstream's answer is not a response.") from error
        if response.error or response.status in ("failed", "cancelled"):
            self._fail(response.error)
        deltas = [delta for place, item in enumerate(items) for delta in self._whole_item(place, item)]
        return [*deltas, self._finish(response)]

    def end(self) -> Usage:
        """Raises `UpstreamFailed` where no terminal event came."""
        if not self._is_finished:
            raise UpstreamFailed("The upstream's answer ended before it was finished.")
        return _read_usage(self._usage)

    # --- events ---

    def _follow(self, kind: str, event: _Event) -> list[ChatDelta]:
        match kind:
            case "response.output_text.delta":
                return [ChatDelta(content=_text(event.delta), logprobs=_logprobs(event.logprobs))]
            case "response.function_call_arguments.delta":
                return self._call(event.output_index).more(_text(event.delta))
            case "response.reasoning_text.delta" | "response.reasoning_summary_text.delta":
                return [ChatDelta(reasoning_content=_text(event.delta))]
            case "response.refusal.delta":
                return [ChatDelta(refusal=_text(event.delta))]
            case "response.output_text.annotation.added" if event.annotation:
                return [ChatDelta(annotations=[chat_annotation(event.annotation)])]
            case "response.output_item.added" if event.item != _ABSENT:
                return self._added(event.output_index, _decode_item(event.item))
            case "response.output_item.done" if event.item != _ABSENT:
                return self._done(event.output_index, _decode_item(event.item))
            case "response.completed" | "response.incomplete" if event.response != _ABSENT:
                return [self._finish(_decode_response(event.response))]
            case "response.failed" | "response.cancelled":
                self._fail(_decode_response(event.response).error if event.response != _ABSENT else None)
            case "error":
                self._fail(event.error or {"code": event.code, "message": event.message})
        return []

    def _added(self, place: int, item: _Item) -> list[ChatDelta]:
        return self._introduce(place, item) if item.type == "function_call" and item.name else []

    def _done(self, place: int, item: _Item) -> list[ChatDelta]:
        if item.type == "function_call":
            # What was not streamed piece by piece is in the whole item.
            call = self._call(place)
            return [*self._introduce(place, item), *call.rest(item.arguments or "")]
        return _sealed_thought(item)

    def _introduce(self, place: int, item: _Item) -> list[ChatDelta]:
        call = self._call(place)
        if call.place is not None:
            return []
        if not item.name:
            raise UpstreamFailed("The upstream sent a tool call without a name.")
        call.place = self._places
        self._places += 1
        first = ToolCallDelta(
            call.place,
            item.call_id or item.id or f"call_{call.place}",
            "function",
            FunctionDelta(item.name, ""),
        )
        held, call.held, call.given = call.held, "", 0
        return [ChatDelta(tool_calls=[first]), *call.more(held)]

    def _call(self, place: int) -> _OpenCall:
        if len(self._calls) > _MAX_ITEMS:
            raise UpstreamFailed(f"The upstream's answer has more than {_MAX_ITEMS} items.")
        return self._calls.setdefault(place, _OpenCall())

    def _whole_item(self, place: int, item: _Item) -> list[ChatDelta]:
        match item.type:
            case "message":
                return [_whole_part(part) for part in msgspec.convert(item.content or [], list[_Part])]
            case "function_call":
                return self._done(place, item)
            case "reasoning":
                parts = item.summary or msgspec.convert(item.content or [], list[_Part])
                shown = [ChatDelta(reasoning_content=part.text) for part in parts if part.text]
                return [*shown, *_sealed_thought(item)]
        return []

    # --- ends ---

    def _finish(self, response: _Response) -> ChatDelta:
        if response.status not in (None, "completed", "incomplete"):
            raise UpstreamFailed("The upstream ended its answer before it was finished.")
        self._is_finished = True
        self._usage = response.usage
        reason: FinishReason = "tool_calls" if self._places else "stop"
        if response.status == "incomplete":
            why = response.incomplete_details.reason if response.incomplete_details else None
            reason = _INCOMPLETE.get(why, "length")
        return ChatDelta(finish_reason=reason)

    def _fail(self, error: Any) -> NoReturn:
        raise read_failure(error, self._secrets)


class _OpenCall:
    """One function call while it is being read."""

    __slots__ = ("given", "held", "place")

    def __init__(self) -> None:
        self.place: int | None = None
        """None until it has a name."""
        self.held = ""
        """Arguments that came before the name."""
        self.given = 0
        """Characters of arguments that were passed on."""

    def more(self, arguments: str) -> list[ChatDelta]:
        if not arguments:
            return []
        if self.place is None:
            self.held += arguments
            if len(self.held) > _MAX_HELD_CHARS:
                raise UpstreamFailed("The upstream sent a tool call without a name.")
            return []
        self.given += len(arguments)
        return [
            ChatDelta(tool_calls=[ToolCallDelta(self.place, function=FunctionDelta(arguments=arguments))])
        ]

    def rest(self, arguments: str) -> list[ChatDelta]:
        return self.more(arguments[self.given :])


def read_failure(error: Any, secrets: Collection[str] = ()) -> InferHubError:
    """What the `error` of a failed response means."""
    code = error.get("code") if isinstance(error, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    said = clean_text(message, secrets) if isinstance(message, str) else ""
    if code == "rate_limit_exceeded":
        return UpstreamRateLimited("The upstream's rate limit was hit while it answered.")
    if code in _FILTERED:
        return ContentFiltered(said or None)
    if isinstance(code, str) and (code == "invalid_prompt" or "image" in code):
        return BackendRefused(said or "The upstream refused the request and gave no reason.")
    if said:
        return UpstreamFailed(f"The upstream reported an error: {said}")
    return UpstreamFailed("The upstream reported an error inside its answer.")


_FILTERED = {
    "bio_policy",
    "misalignment_policy_violation",
    "image_content_policy_violation",
    "content_filter",
}


def chat_annotation(annotation: dict[str, Any]) -> dict[str, Any]:
    """A citation as chat completions write it: its fields under the name of its type."""
    kind = annotation.get("type")
    if not isinstance(kind, str) or kind in annotation:
        return annotation
    return {"type": kind, kind: {name: value for name, value in annotation.items() if name != "type"}}


def _sealed_thought(item: _Item) -> list[ChatDelta]:
    if item.type != "reasoning" or not item.encrypted_content:
        return []
    detail = ReasoningDetail(
        "reasoning.encrypted", data=item.encrypted_content, id=item.id, format=REASONING_FORMAT
    )
    return [ChatDelta(reasoning_details=[detail])]


def _whole_part(part: _Part) -> ChatDelta:
    notes = [chat_annotation(note) for note in part.annotations or ()]
    return ChatDelta(
        content=part.text,
        refusal=part.refusal,
        annotations=notes or None,
        logprobs=_logprobs(part.logprobs),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UpstreamFailed("The upstream sent an event whose text is not a text.")
    return value


def _logprobs(given: list[_Logprob] | None) -> list[TokenLogprob] | None:
    if not given:
        return None
    return [
        TokenLogprob(
            token.token,
            token.logprob,
            token.bytes,
            [TopLogprob(top.token, top.logprob, top.bytes) for top in token.top_logprobs or ()],
        )
        for token in given
    ]


def _read_usage(usage: _Usage | None) -> Usage:
    """Absent counts become zero with `source="unknown"`: nobody may mistake them for a real zero."""
    if usage is None or usage.input_tokens is None:
        return Usage(source="unknown")
    cached, reasoning = usage.input_tokens_details, usage.output_tokens_details
    return Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens or 0,
        cached_tokens=(cached.cached_tokens or 0) if cached else 0,
        reasoning_tokens=(reasoning.reasoning_tokens or 0) if reasoning else 0,
    )
