"""Reads Anthropic's answers, whole or in events, into chat deltas. Backends feed it.

What it cannot read it refuses: an answer without `message_stop` never ends cleanly. Blocks of Anthropic's
own tools have no counterpart in chat and are passed over.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import msgspec

from inferhub.core.errors import UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.modalities.chat import (
    ChatDelta,
    FinishReason,
    FunctionDelta,
    ReasoningDetail,
    ToolCallDelta,
)
from inferhub.wire.anthropic_messages.errors import read_stream_error
from inferhub.wire.anthropic_messages.lower import THOUGHT_FORMAT
from inferhub.wire.foreign import json_reader


class _Citation(msgspec.Struct):
    type: str = ""
    url: str | None = None
    title: str | None = None
    source: str | None = None


class _Block(msgspec.Struct):
    type: str
    text: str = ""
    thinking: str = ""
    signature: str = ""
    data: str = ""
    id: str = ""
    name: str = ""
    input: dict[str, Any] = {}
    citations: list[_Citation] | None = None


class _Piece(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    signature: str = ""
    partial_json: str = ""
    citation: _Citation | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None


class _OutputDetails(msgspec.Struct):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    output_tokens_details: _OutputDetails | None = None


class _Message(msgspec.Struct):
    type: str = ""
    content: list[_Block] = []
    stop_reason: str | None = None
    stop_sequence: str | None = None
    usage: _Usage | None = None
    error: Any = None


class MessageEvent(msgspec.Struct):
    """Any event of a stream; which fields it has depends on its type."""

    type: str
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Piece | None = None
    usage: _Usage | None = None
    error: Any = None


class _Count(msgspec.Struct):
    input_tokens: int


_SAID = {"text", "thinking", "redacted_thinking", "tool_use"}
"""What the model says itself."""
_FINISH: dict[str, FinishReason] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_read_event = json_reader(MessageEvent, "an event that is not one of a message")
_read_message = json_reader(_Message, "something that is not a message")
_read_count = json_reader(_Count, "something that is not a count of tokens")


def read_count(body: bytes) -> int:
    """What `count_tokens` answered. Raises `UpstreamFailed`."""
    return _read_count(body).input_tokens


class _Open:
    """A block while it is being read."""

    __slots__ = ("has_input", "kind", "place", "start")

    def __init__(self, start: _Block, place: int) -> None:
        self.start = start
        self.kind = start.type
        self.place = place
        """Of a tool call among the calls, of a thought among the thoughts."""
        self.has_input = False


class MessagesReader:
    """Follows one answer. `read` each event's data in order, or `read_whole`; then `end`."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        self._secrets = secrets
        self._blocks: dict[int, _Open] = {}
        self._calls = self._thoughts = 0
        self._usage = _Usage()
        self._has_begun = self._has_finished = False
        self.is_done = False
        """True after the event that ends a stream."""
        self.runs_tool = False
        """Whether the block that began last is of one of Anthropic's own tools, which may take long."""

    def read(self, data: bytes) -> list[ChatDelta]:
        """Raises `UpstreamFailed`, or what an `error` event means."""
        event = _read_event(data)
        match event.type:
            case "content_block_delta":
                return self._piece(event.index, event.delta or _Piece())
            case "content_block_start" if event.content_block is not None:
                return self._start(event.index, event.content_block)
            case "content_block_stop":
                return self._stop(event.index)
            case "message_start" if event.message is not None:
                self._has_begun = True
                self._count(event.message.usage)
            case "message_delta":
                self._count(event.usage)
                return self._finish(event.delta or _Piece())
            case "message_stop":
                self.is_done = True
            case "error":
                raise read_stream_error(event.error, self._secrets)
        return []

    def read_whole(self, body: bytes) -> list[ChatDelta]:
        message = _read_message(body)
        if message.error:
            raise read_stream_error(message.error, self._secrets)
        if message.type != "message":
            raise UpstreamFailed("The upstream's answer is not a message.")
        self._has_begun = True
        self._count(message.usage)
        deltas: list[ChatDelta] = []
        for index, block in enumerate(message.content):
            deltas += self._start(index, block)
            deltas += self._stop(index)
        deltas += self._finish(_Piece(stop_reason=message.stop_reason, stop_sequence=message.stop_sequence))
        self.is_done = True
        return deltas

    def end(self) -> Usage:
        """Raises `UpstreamFailed` when the answer stopped before it was finished."""
        if not (self.is_done and self._has_finished and self._has_begun):
            raise UpstreamFailed("The upstream's answer ended before it was finished.")
        usage = self._usage
        if usage.input_tokens is None or usage.output_tokens is None:
            return Usage(source="unknown")
        cached = usage.cache_read_input_tokens or 0
        details = usage.output_tokens_details
        return Usage(
            # Anthropic's three classes are disjoint; ours is the whole prompt.
            input_tokens=usage.input_tokens + cached + (usage.cache_creation_input_tokens or 0),
            output_tokens=usage.output_tokens,
            cached_tokens=cached,
            reasoning_tokens=(details.thinking_tokens or 0) if details else 0,
        )

    def _count(self, usage: _Usage | None) -> None:
        """Every count is cumulative, so the last word on each counts."""
        for name in _Usage.__struct_fields__:
            value = getattr(usage, name, None)
            if value is not None:
                setattr(self._usage, name, value)

    def _start(self, index: int, block: _Block) -> list[ChatDelta]:
        place = self._thoughts
        if block.type == "tool_use":
            place = self._calls
            self._calls += 1
        elif block.type in ("thinking", "redacted_thinking"):
            self._thoughts += 1
        opened = self._blocks[index] = _Open(block, place)
        self.runs_tool = block.type not in _SAID
        match block.type:
            case "tool_use":
                function = FunctionDelta(block.name, "")
                return [ChatDelta(tool_calls=[ToolCallDelta(place, block.id, "function", function)])]
            case "redacted_thinking":
                return [ChatDelta(reasoning_details=[_sealed(block.data, place)])]
            case "text" | "thinking" if block.text or block.thinking or block.signature:
                return [
                    *self._say(opened, block.text, block.thinking, block.signature),
                    *self._notes(block.citations),
                ]
        return []

    def _piece(self, index: int, piece: _Piece) -> list[ChatDelta]:
        opened = self._blocks.get(index)
        if opened is None:
            raise UpstreamFailed("The upstream sent a piece of a block that it had not begun.")
        if opened.kind == "tool_use" and piece.partial_json:
            opened.has_input = True
            return [_arguments(opened.place, piece.partial_json)]
        if piece.citation is not None:
            return self._notes([piece.citation])
        if opened.kind in ("text", "thinking"):
            return self._say(opened, piece.text, piece.thinking, piece.signature)
        return []

    def _stop(self, index: int) -> list[ChatDelta]:
        """A call without arguments says nothing of them; elsewhere they are an empty object."""
        opened = self._blocks.get(index)
        if opened is None or opened.kind != "tool_use" or opened.has_input:
            return []
        return [_arguments(opened.place, msgspec.json.encode(opened.start.input).decode())]

    def _say(self, opened: _Open, text: str, thinking: str, signature: str) -> list[ChatDelta]:
        if text:
            return [ChatDelta(content=text)]
        if not thinking and not signature:
            return []
        detail = ReasoningDetail(
            "reasoning.text",
            text=thinking or None,
            signature=signature or None,
            format=THOUGHT_FORMAT,
            index=opened.place,
        )
        return [ChatDelta(reasoning_content=thinking or None, reasoning_details=[detail])]

    def _notes(self, citations: Sequence[_Citation] | None) -> list[ChatDelta]:
        """Those that point to an address; OpenAI has no words for a place in a document of the prompt."""
        notes = [
            {"type": "url_citation", "url_citation": {"url": url, "title": citation.title or url}}
            for citation in citations or ()
            if (url := citation.url or citation.source) and url.startswith(("http://", "https://"))
        ]
        return [ChatDelta(annotations=notes)] if notes else []

    def _finish(self, piece: _Piece) -> list[ChatDelta]:
        if not piece.stop_reason or self._has_finished:
            return []
        self._has_finished = True
        reason = _FINISH.get(piece.stop_reason, "stop")
        return [ChatDelta(finish_reason=reason, stop_sequence=piece.stop_sequence)]


def _arguments(place: int, text: str) -> ChatDelta:
    return ChatDelta(tool_calls=[ToolCallDelta(place, function=FunctionDelta(arguments=text))])


def _sealed(data: str, place: int) -> ReasoningDetail:
    return ReasoningDetail("reasoning.encrypted", data=data, format=THOUGHT_FORMAT, index=place)
