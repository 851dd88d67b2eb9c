"""A chat answer for the client: one JSON object, or a stream of events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, Problem
from inferhub.modalities.chat.deltas import ChatDelta, ReasoningDetail, TokenLogprob, ToolCallDelta
from inferhub.modalities.chat.request import ChatRequest, FunctionCall, ToolCall
from inferhub.modalities.tokens import ChunkFrame, TokenUsage, token_usage


class Logprobs(msgspec.Struct):
    content: list[TokenLogprob] | None
    refusal: list[TokenLogprob] | None = None


class _StreamDelta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning_details: list[ReasoningDetail] | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None
    annotations: list[dict[str, Any]] | None = None


class _StreamChoice(msgspec.Struct):
    index: int
    delta: _StreamDelta
    logprobs: Logprobs | None = None
    finish_reason: str | None = None


class ChatMessage(msgspec.Struct, omit_defaults=True):
    role: str
    # Required by OpenAI's document even when null, hence no defaults.
    content: str | None
    refusal: str | None
    reasoning_content: str | None = None
    reasoning_details: list[ReasoningDetail] | None = None
    tool_calls: list[ToolCall] | None = None
    annotations: list[dict[str, Any]] | None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: Logprobs | None
    finish_reason: str


class ChatResponse(msgspec.Struct):
    """Answer of `POST /v1/chat/completions` without `stream`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: TokenUsage


_encode = msgspec.json.Encoder().encode


class ChatWriter:
    """Writes `chat.completion.chunk` events: the role first, one finish per choice, usage when asked."""

    def __init__(self, request: ChatRequest, envelope: Envelope) -> None:
        self._frame = ChunkFrame("chat.completion.chunk", envelope, request.stream_options)
        self._introduced: set[int] = set()

    def delta(self, payload: ChatDelta) -> bytes:
        events = b""
        if payload.index not in self._introduced:
            self._introduced.add(payload.index)
            events = self._frame.event(
                _StreamChoice(payload.index, _StreamDelta(role="assistant", content=""))
            )
        said = _StreamDelta(
            content=payload.content or None,
            reasoning_content=payload.reasoning_content,
            reasoning_details=payload.reasoning_details,
            refusal=payload.refusal,
            tool_calls=payload.tool_calls,
            annotations=payload.annotations,
        )
        if said != _SILENT or payload.logprobs:
            logprobs = Logprobs(payload.logprobs) if payload.logprobs else None
            events += self._frame.event(_StreamChoice(payload.index, said, logprobs))
        if payload.finish_reason:
            events += self._frame.event(
                _StreamChoice(payload.index, _StreamDelta(), finish_reason=payload.finish_reason)
            )
        return events

    def end(self, usage: Usage) -> bytes:
        return self._frame.end(usage)

    def passed(self, raw: bytes) -> None:
        """Every event stands for itself."""

    def fail(self, problem: Problem) -> bytes:
        return self._frame.fail(problem)


_SILENT = _StreamDelta()


def fold(request: ChatRequest, envelope: Envelope, deltas: Sequence[ChatDelta], usage: Usage) -> bytes:
    by_choice: dict[int, list[ChatDelta]] = {}
    for delta in deltas:
        by_choice.setdefault(delta.index, []).append(delta)
    return _encode(
        ChatResponse(
            id=envelope.id,
            object="chat.completion",
            created=envelope.created,
            model=envelope.model,
            choices=[_fold_choice(index, pieces) for index, pieces in sorted(by_choice.items())],
            usage=token_usage(usage),
        )
    )


def _fold_choice(index: int, pieces: Sequence[ChatDelta]) -> ChatChoice:
    calls = _fold_tool_calls(pieces)
    content = _join([p.content for p in pieces])
    refusal = _join([p.refusal for p in pieces])
    logprobs = [token for p in pieces for token in p.logprobs or ()]
    return ChatChoice(
        index=index,
        message=ChatMessage(
            role="assistant",
            content=content if content is not None or calls or refusal else "",
            refusal=refusal,
            reasoning_content=_join([p.reasoning_content for p in pieces]),
            reasoning_details=join_details(pieces) or None,
            tool_calls=calls or None,
            annotations=[note for p in pieces for note in p.annotations or ()] or None,
        ),
        logprobs=Logprobs(logprobs) if logprobs else None,
        finish_reason=next((p.finish_reason for p in pieces if p.finish_reason), "stop"),
    )


def _join(pieces: Sequence[str | None]) -> str | None:
    said = [piece for piece in pieces if piece]
    return "".join(said) if said else None


def join_details(pieces: Sequence[ChatDelta]) -> list[ReasoningDetail]:
    """Whole thoughts from their pieces: those with one index and kind are one."""
    whole: list[ReasoningDetail] = []
    for piece in (detail for p in pieces for detail in p.reasoning_details or ()):
        last = whole[-1] if whole else None
        if last is None or piece.index is None or (last.index, last.type) != (piece.index, piece.type):
            whole.append(msgspec.structs.replace(piece))
            continue
        last.text = _join([last.text, piece.text])
        last.summary = _join([last.summary, piece.summary])
        last.data = _join([last.data, piece.data])
        last.signature = _join([last.signature, piece.signature])
        last.id, last.format = last.id or piece.id, last.format or piece.format
    return whole


def _fold_tool_calls(pieces: Sequence[ChatDelta]) -> list[ToolCall]:
    calls: dict[int, ToolCall] = {}
    for delta in (d for p in pieces for d in p.tool_calls or ()):
        call = calls.setdefault(delta.index, ToolCall("", FunctionCall("", "")))
        call.id = delta.id or call.id
        if delta.extra_content:
            call.extra_content = delta.extra_content
        if delta.function:
            call.function.name = delta.function.name or call.function.name
            call.function.arguments += delta.function.arguments or ""
    for call in calls.values():
        call.function.arguments = call.function.arguments or "{}"
    return [calls[index] for index in sorted(calls)]
