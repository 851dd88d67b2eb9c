"""Reads chat answers in OpenAI's format, whole or in chunks, from upstreams and in-process engines.

Backends feed it; it yields `ChatDelta`s that keep our promises (one finish per choice, tool calls
introduced once and numbered from 0) even where the sender did not, and says whether it had to mend.
"""

from __future__ import annotations

from typing import Any

import msgspec

from inferhub.core.errors import UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta, ReasoningDetail, TokenLogprob
from inferhub.wire.foreign import json_reader
from inferhub.wire.openai_tools import ToolNumbering, UpstreamToolCall
from inferhub.wire.openai_usage import UpstreamUsage, adds_up, read_usage


class _Said(msgspec.Struct):
    role: str | None = None
    content: str | list[Any] | None = None
    """A list is Mistral's, of its models that think."""
    reasoning_content: str | None = None
    reasoning: str | None = None
    """The younger name of `reasoning_content`, which some servers use instead."""
    reasoning_details: list[Any] | None = None
    refusal: str | None = None
    tool_calls: list[UpstreamToolCall] | None = None
    annotations: list[Any] | None = None


class _Logprobs(msgspec.Struct):
    content: list[TokenLogprob] | None = None


class _Choice(msgspec.Struct):
    index: int | None = 0
    delta: _Said | None = None
    message: _Said | None = None
    logprobs: _Logprobs | float | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """vLLM's: the string or the token that ended the text."""


class ChatChunk(msgspec.Struct):
    """A `chat.completion.chunk`, or a whole `chat.completion`: they differ in `delta` and `message`."""

    choices: list[_Choice] | None = None
    usage: UpstreamUsage | None = None
    error: Any = None
    """Some senders report a failure inside a 200 stream; the backend turns it into an exception."""


def introduced(chunk: ChatChunk) -> set[int]:
    """The choices that say in this chunk whose words they are."""
    return {choice.index or 0 for choice in chunk.choices or () if choice.delta and choice.delta.role}


_FINISH = {"stop", "length", "tool_calls", "content_filter", "function_call"}
parse_chat_chunk = json_reader(ChatChunk, "an event that is not a chat completion")


def convert_chat_chunk(data: Any) -> ChatChunk:
    """The same for engines that hand over Python dictionaries."""
    try:
        return msgspec.convert(data, ChatChunk)
    except msgspec.ValidationError as error:
        raise UpstreamFailed("The engine sent an event that is not a chat completion.") from error


class ChatReader:
    """Follows the chunks of one answer. `read` each chunk in order, then `end`."""

    def __init__(self, choices: int = 1) -> None:
        self.is_mended = False
        """Whether the deltas of the last `read` are not what its chunk says, so that it must not go on."""
        self.is_miscounted = False
        """Whether the last chunk had usage whose totals do not add up."""
        self._expected = choices
        self._finished: set[int] = set()
        self._tools: dict[int, ToolNumbering] = {}
        self._usage: UpstreamUsage | None = None

    def read(self, chunk: ChatChunk) -> list[ChatDelta]:
        self.is_mended = self.is_miscounted = False
        usage = chunk.usage
        if usage is not None:
            self._usage = usage
            self.is_miscounted = not adds_up(usage)
        choices = chunk.choices
        if not choices:
            return []
        if len(choices) == 1:
            return self._read_choice(choices[0])
        return [delta for choice in choices for delta in self._read_choice(choice)]

    def close(self) -> list[ChatDelta]:
        """What a sender owes that has said it is done: the finish of choices that called tools in full."""
        deltas: list[ChatDelta] = []
        for index, tools in self._tools.items():
            if index not in self._finished and tools.is_complete:
                deltas += self._finish(index, "tool_calls")
        return deltas

    def usage(self) -> Usage:
        """As reported so far."""
        return read_usage(self._usage)

    def end(self) -> Usage:
        """Raises `UpstreamFailed` when the answer stopped before every choice was finished."""
        if len(self._finished) < self._expected:
            raise UpstreamFailed("The upstream's answer ended before it was finished.")
        return read_usage(self._usage)

    @property
    def is_finished(self) -> bool:
        return len(self._finished) >= self._expected

    def _read_choice(self, choice: _Choice) -> list[ChatDelta]:
        index = choice.index or 0
        if index in self._finished:
            self.is_mended = True
            return []
        said = choice.delta or choice.message
        deltas: list[ChatDelta] = []
        if said is not None:
            if said.tool_calls and said is choice.message:
                # A whole message lists its calls without numbers: the place in the list is the number.
                for place, call in enumerate(said.tool_calls):
                    call.index = place
            deltas = self._read_said(index, said, choice.logprobs)
        if choice.finish_reason:
            sequence = choice.stop_reason if isinstance(choice.stop_reason, str) else None
            deltas += self._finish(index, choice.finish_reason, sequence or None)
        return deltas

    def _read_said(
        self, index: int, said: _Said, logprobs: _Logprobs | float | None = None
    ) -> list[ChatDelta]:
        tokens = logprobs.content if isinstance(logprobs, _Logprobs) else None
        content = said.content
        reasoning = said.reasoning_content or said.reasoning
        if isinstance(content, list):
            self.is_mended = True
            content, thought = _read_parts(content)
            reasoning = reasoning or thought
        if not (said.tool_calls or said.reasoning_details or said.annotations):
            if not (content or reasoning or said.refusal or tokens):
                return []
            return [
                ChatDelta(
                    index,
                    content or None,
                    reasoning or None,
                    None,
                    said.refusal or None,
                    None,
                    tokens or None,
                )
            ]
        delta = ChatDelta(
            index=index,
            content=content or None,
            reasoning_content=reasoning or None,
            reasoning_details=_read_details(said.reasoning_details) or None,
            refusal=said.refusal or None,
            tool_calls=self._number(index, said.tool_calls) or None,
            logprobs=tokens or None,
            annotations=[note for note in said.annotations or () if isinstance(note, dict)] or None,
        )
        return [] if delta == ChatDelta(index=index) else [delta]

    def _number(self, index: int, calls: list[UpstreamToolCall] | None) -> list[Any]:
        if not calls:
            return []
        tools = self._tools.setdefault(index, ToolNumbering())
        deltas = []
        for call in calls:
            deltas += tools.follow(call)
            self.is_mended = self.is_mended or tools.is_mended
        return deltas

    def _finish(self, index: int, said: str, stop_sequence: str | None = None) -> list[ChatDelta]:
        reason = said if said in _FINISH else "stop"
        deltas: list[ChatDelta] = []
        tools = self._tools.get(index)
        if tools is not None and tools.count:
            owed = tools.close()
            if owed:
                deltas.append(ChatDelta(index=index, tool_calls=owed))
            # Some engines say "stop" after calling tools; clients branch on this word.
            reason = "tool_calls" if reason == "stop" else reason
        self.is_mended = self.is_mended or bool(deltas) or reason != said
        self._finished.add(index)
        deltas.append(ChatDelta(index=index, finish_reason=reason, stop_sequence=stop_sequence))  # type: ignore[arg-type]
        return deltas


def _read_parts(parts: list[Any]) -> tuple[str, str]:
    """(content, thought) of a list of parts; others than texts and thoughts have no place in a delta."""
    content, thought = "", ""
    for part in parts:
        if not isinstance(part, dict):
            continue
        if part.get("type") == "text":
            content += str(part.get("text") or "")
        elif part.get("type") == "thinking":
            inner = part.get("thinking")
            thought += inner if isinstance(inner, str) else _read_parts(inner or [])[0]
    return content, thought


def _read_details(details: list[Any] | None) -> list[ReasoningDetail]:
    """Those of a kind that we know."""
    known = []
    for detail in details or ():
        try:
            known.append(msgspec.convert(detail, ReasoningDetail))
        except msgspec.ValidationError:
            continue
    return known
