"""A chat answer for the client: one JSON object, or a stream of events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope
from inferhub.modalities.chat.deltas import ChatDelta, TokenLogprob, ToolCallDelta
from inferhub.modalities.chat.request import ChatRequest, FunctionCall, ToolCall
from inferhub.modalities.tokens import ChunkFrame, TokenUsage, token_usage


class Logprobs(msgspec.Struct):
    content: list[TokenLogprob] | None
    refusal: list[TokenLogprob] | None = None


class _StreamDelta(msgspec.Struct, omit_defaults=True):
    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


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
    tool_calls: list[ToolCall] | None = None


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
            refusal=payload.refusal,
            tool_calls=payload.tool_calls,
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
            tool_calls=calls or None,
        ),
        logprobs=Logprobs(logprobs) if logprobs else None,
        finish_reason=next((p.finish_reason for p in pieces if p.finish_reason), "stop"),
    )


def _join(pieces: Sequence[str | None]) -> str | None:
    said = [piece for piece in pieces if piece]
    return "".join(said) if said else None


def _fold_tool_calls(pieces: Sequence[ChatDelta]) -> list[ToolCall]:
    calls: dict[int, ToolCall] = {}
    for delta in (d for p in pieces for d in p.tool_calls or ()):
        call = calls.setdefault(delta.index, ToolCall("", FunctionCall("", "")))
        call.id = delta.id or call.id
        if delta.function:
            call.function.name = delta.function.name or call.function.name
            call.function.arguments += delta.function.arguments or ""
    for call in calls.values():
        call.function.arguments = call.function.arguments or "{}"
    return [calls[index] for index in sorted(calls)]
