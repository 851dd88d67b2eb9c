"""Reads chat answers in OpenAI's format, whole or in chunks, from upstreams and in-process engines.

Backends feed it; it yields `ChatDelta`s that keep our promises (one finish per choice, tool calls
introduced once and numbered from 0) even where the sender did not.
"""

from __future__ import annotations

from typing import Any

import msgspec

from inferhub.core.clock import new_id
from inferhub.core.errors import UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta, FunctionDelta, TokenLogprob, ToolCallDelta
from inferhub.wire.openai_usage import UpstreamUsage, read_usage


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Said(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """The younger name of `reasoning_content`, which some servers use instead."""
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Logprobs(msgspec.Struct):
    content: list[TokenLogprob] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Said | None = None
    message: _Said | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct):
    """A `chat.completion.chunk`, or a whole `chat.completion`: they differ in `delta` and `message`."""

    choices: list[_Choice] | None = None
    usage: UpstreamUsage | None = None
    error: Any = None
    """Some senders report a failure inside a 200 stream; the backend turns it into an exception."""


_MAX_UNNAMED_CHARS = 65536
_FINISH = {"stop", "length", "tool_calls", "content_filter", "function_call"}
_decode = msgspec.json.Decoder(ChatChunk).decode


def parse_chat_chunk(data: bytes | str) -> ChatChunk:
    """Raises `UpstreamFailed` for anything that is not a chat answer; never echoes its content."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamFailed("The upstream sent an event that is not a chat completion.") from error


def convert_chat_chunk(data: Any) -> ChatChunk:
    """The same for engines that hand over Python dictionaries."""
    try:
        return msgspec.convert(data, ChatChunk)
    except msgspec.ValidationError as error:
        raise UpstreamFailed("The engine sent an event that is not a chat completion.") from error


class ChatReader:
    """Follows the chunks of one answer. `read` each chunk in order, then `end`."""

    def __init__(self, choices: int = 1) -> None:
        self._expected = choices
        self._finished: set[int] = set()
        self._tools: dict[int, _ToolNumbering] = {}
        self._usage: UpstreamUsage | None = None

    def read(self, chunk: ChatChunk) -> list[ChatDelta]:
        if chunk.usage is not None:
            self._usage = chunk.usage
        return [delta for choice in chunk.choices or () for delta in self._read_choice(choice)]

    def end(self) -> Usage:
        """Raises `UpstreamFailed` when the answer stopped before every choice was finished."""
        if len(self._finished) < self._expected:
            raise UpstreamFailed("The upstream's answer ended before it was finished.")
        return read_usage(self._usage)

    @property
    def is_finished(self) -> bool:
        return len(self._finished) >= self._expected

    def _read_choice(self, choice: _Choice) -> list[ChatDelta]:
        index = choice.index
        if index in self._finished:
            return []
        said = choice.delta or choice.message or _Said()
        deltas: list[ChatDelta] = []
        if said is choice.message:
            # A whole message lists its calls without numbers: the place in the list is the number.
            for place, call in enumerate(said.tool_calls or ()):
                call.index = place
        tool_calls = self._number(index, said.tool_calls)
        reasoning = said.reasoning_content or said.reasoning
        logprobs = choice.logprobs.content if choice.logprobs else None
        if said.content or reasoning or said.refusal or tool_calls or logprobs:
            deltas.append(
                ChatDelta(
                    index=index,
                    content=said.content or None,
                    reasoning_content=reasoning or None,
                    refusal=said.refusal or None,
                    tool_calls=tool_calls or None,
                    logprobs=logprobs,
                )
            )
        if choice.finish_reason:
            self._finished.add(index)
            deltas.append(ChatDelta(index=index, finish_reason=self._finish_reason(index, choice)))  # type: ignore[arg-type]
        return deltas

    def _finish_reason(self, index: int, choice: _Choice) -> str:
        reason = choice.finish_reason if choice.finish_reason in _FINISH else "stop"
        # Some engines say "stop" after calling tools; clients branch on this word.
        if reason == "stop" and index in self._tools and self._tools[index].count:
            return "tool_calls"
        return str(reason)

    def _number(self, choice: int, calls: list[_ToolCall] | None) -> list[ToolCallDelta]:
        if not calls:
            return []
        numbering = self._tools.setdefault(choice, _ToolNumbering())
        return [delta for call in calls for delta in numbering.follow(call)]


class _ToolNumbering:
    """Gives each tool call of one choice its place 0..k-1 and introduces it exactly once."""

    def __init__(self) -> None:
        self.count = 0
        self._calls: dict[int | str, _OpenCall] = {}
        self._key_by_index: dict[int, int | str] = {}
        self._ids: set[str] = set()
        self._last: int | str = -1

    def follow(self, piece: _ToolCall) -> list[ToolCallDelta]:
        name = piece.function.name if piece.function else None
        arguments = (piece.function.arguments or "") if piece.function else ""
        key = self._last = self._key(piece, name)
        call = self._calls.setdefault(key, _OpenCall())
        call.id = call.id or piece.id
        if call.place is not None:
            return (
                [ToolCallDelta(call.place, function=FunctionDelta(arguments=arguments))] if arguments else []
            )
        # Some senders name the function after its first arguments; clients need the name first.
        call.held += arguments
        if len(call.held) > _MAX_UNNAMED_CHARS:
            raise UpstreamFailed("The upstream sent a tool call without a name.")
        return self._introduce(call, name) if name else []

    def _introduce(self, call: _OpenCall, name: str) -> list[ToolCallDelta]:
        call.place = self.count
        self.count += 1
        call_id = call.id if call.id and call.id not in self._ids else new_id("call")
        self._ids.add(call_id)
        first = ToolCallDelta(call.place, call_id, "function", FunctionDelta(name, ""))
        if not call.held:
            return [first]
        return [first, ToolCallDelta(call.place, function=FunctionDelta(arguments=call.held))]

    def _key(self, piece: _ToolCall, name: str | None) -> int | str:
        """Which call this piece belongs to: by index, unless a fresh id and name reuse one."""
        if piece.index is None:
            return piece.id or (f"#{self.count}" if name else self._last)
        is_fresh = bool(piece.id and name and piece.id not in self._ids)
        current = self._key_by_index.get(piece.index)
        if current is None or (is_fresh and self._calls[current].place is not None):
            current = piece.index if current is None else str(piece.id)
            self._key_by_index[piece.index] = current
        return current


class _OpenCall:
    """One tool call while it is being read."""

    __slots__ = ("held", "id", "place")

    def __init__(self) -> None:
        self.id: str | None = None
        self.place: int | None = None
        """None until the call has a name and was introduced."""
        self.held = ""
