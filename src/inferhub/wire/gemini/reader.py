"""Reads Gemini's `GenerateContentResponse`, whole or as the events of a stream, into chat deltas.

The gemini backend feeds it. It keeps chat's promises: one finish per choice and last, tool calls introduced
once and numbered from 0, and no clean end where Gemini did not say why it ended.
"""

from __future__ import annotations

from typing import Any

import msgspec

from inferhub.core.clock import new_id
from inferhub.core.errors import BackendRefused, ContentFiltered, UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.modalities.chat import (
    ChatDelta,
    FinishReason,
    FunctionDelta,
    ReasoningDetail,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
)
from inferhub.wire.foreign import json_reader
from inferhub.wire.gemini.contents import DETAIL_FORMAT
from inferhub.wire.gemini.usage import UsageMetadata, read_usage


class _FunctionCall(msgspec.Struct):
    name: str = ""
    id: str | None = None
    args: msgspec.Raw = msgspec.Raw(b"{}")


class InlineData(msgspec.Struct, rename="camel"):
    mime_type: str = ""
    data: str = ""
    """Base64."""


class Part(msgspec.Struct, rename="camel"):
    text: str | None = None
    thought: bool = False
    thought_signature: str | None = None
    function_call: _FunctionCall | None = None
    inline_data: InlineData | None = None
    executable_code: Any = None
    code_execution_result: Any = None


class _Content(msgspec.Struct):
    parts: list[Part] = []


class _Token(msgspec.Struct, rename="camel"):
    token: str = ""
    log_probability: float | str = 0.0
    """A string for an infinite one, as JSON has no number for it."""


class _Top(msgspec.Struct):
    candidates: list[_Token] = []


class _Logprobs(msgspec.Struct, rename="camel"):
    chosen_candidates: list[_Token] = []
    top_candidates: list[_Top] = []


class _Candidate(msgspec.Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None
    index: int | None = None
    logprobs_result: _Logprobs | None = None


class _Feedback(msgspec.Struct, rename="camel"):
    block_reason: str | None = None


class GeminiChunk(msgspec.Struct, rename="camel"):
    """A `GenerateContentResponse`: the same in a stream and alone."""

    candidates: list[_Candidate] = []
    prompt_feedback: _Feedback | None = None
    usage_metadata: UsageMetadata | None = None
    error: Any = None
    """A failure inside a 200; the backend turns it into an exception."""


_FINISH: dict[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    **dict.fromkeys(
        (
            "SAFETY",
            "RECITATION",
            "LANGUAGE",
            "BLOCKLIST",
            "PROHIBITED_CONTENT",
            "SPII",
            "IMAGE_SAFETY",
            "IMAGE_PROHIBITED_CONTENT",
            "IMAGE_RECITATION",
            "MODEL_ARMOR",
        ),
        "content_filter",
    ),
}
"""Every other reason is a failure of the model or of the request, and no end."""
_UNSPECIFIED = "FINISH_REASON_UNSPECIFIED"
_REPEATABLE_FAULTS = {"MISSING_THOUGHT_SIGNATURE", "TOO_MANY_TOOL_CALLS"}
"""Reasons that lie in the conversation: another attempt ends alike."""
_MAX_REASON = 64
# JSON has no minus infinity, and OpenAI's clients expect a number.
_IMPOSSIBLE = -9999.0

parse_chunk = json_reader(GeminiChunk, "something that is not a Gemini answer")


class GeminiReader:
    """Follows the events of one answer. `read` each in order, then `end`."""

    def __init__(self, choices: int = 1, top_logprobs: int = 0) -> None:
        self._expected = choices
        self._top_logprobs = top_logprobs
        self._calls: dict[int, int] = {}
        """How many functions each choice has called."""
        self._ids: set[str] = set()
        self._reasons: dict[int, str] = {}
        self._details = 0
        self._has_content = False
        self._usage: UsageMetadata | None = None

    def read(self, chunk: GeminiChunk) -> list[ChatDelta]:
        if chunk.usage_metadata is not None:
            self._usage = chunk.usage_metadata
        if chunk.prompt_feedback is not None and chunk.prompt_feedback.block_reason:
            raise self._blocked(chunk.prompt_feedback.block_reason)
        is_many = len(chunk.candidates) > 1
        deltas: list[ChatDelta] = []
        for place, candidate in enumerate(chunk.candidates):
            # An index of zero may be left out.
            index = candidate.index if candidate.index is not None else place if is_many else 0
            if not 0 <= index < self._expected:
                raise UpstreamFailed("The upstream answered more often than it was asked to.")
            deltas += self._said(index, candidate)
            if candidate.finish_reason and candidate.finish_reason != _UNSPECIFIED:
                self._reasons[index] = candidate.finish_reason
        self._has_content = self._has_content or bool(deltas)
        return deltas

    def end(self) -> tuple[list[ChatDelta], Usage]:
        """The finish of every choice: only here, because some models name a reason with every event.
        Raises `UpstreamFailed` when the answer stopped before every choice was finished."""
        if len(self._reasons) < self._expected:
            raise UpstreamFailed("The upstream's answer ended before it was finished.")
        finishes = [
            ChatDelta(index=index, finish_reason=self._finish_reason(index, reason))
            for index, reason in sorted(self._reasons.items())
        ]
        return finishes, read_usage(self._usage)

    def _blocked(self, reason: str) -> Exception:
        if self._has_content:
            return UpstreamFailed("The upstream blocked the prompt after it had begun to answer.")
        return ContentFiltered(f"The upstream blocked the prompt ({_word(reason)}).")

    def _finish_reason(self, index: int, reason: str) -> FinishReason:
        finish = _FINISH.get(reason)
        if finish is None:
            kind = BackendRefused if reason in _REPEATABLE_FAULTS else UpstreamFailed
            raise kind(f"The upstream ended its answer for the reason {_word(reason)}.")
        return "tool_calls" if finish == "stop" and self._calls.get(index) else finish

    def _said(self, index: int, candidate: _Candidate) -> list[ChatDelta]:
        deltas: list[ChatDelta] = []
        for part in candidate.content.parts if candidate.content else ():
            deltas += self._part(index, part)
        logprobs = self._logprobs(candidate.logprobs_result)
        if logprobs:
            spoken = next((delta for delta in deltas if delta.content), None)
            if spoken is None:
                spoken = ChatDelta(index=index)
                deltas.append(spoken)
            spoken.logprobs = logprobs
        return deltas

    def _part(self, index: int, part: Part) -> list[ChatDelta]:
        if part.function_call is not None:
            return self._call(index, part.function_call, part.thought_signature)
        if part.inline_data is not None or part.executable_code is not None or part.code_execution_result:
            raise UpstreamFailed("The upstream answered with a kind of content that chat does not have.")
        delta = ChatDelta(index=index)
        if part.thought:
            delta.reasoning_content = part.text or None
        else:
            delta.content = part.text or None
        if part.thought_signature:
            delta.reasoning_details = [self._detail(part, part.thought_signature)]
        is_silent = not (delta.content or delta.reasoning_content or delta.reasoning_details)
        return [] if is_silent else [delta]

    def _detail(self, part: Part, signature: str) -> ReasoningDetail:
        # One detail is one thought, whatever stands next to it.
        place, self._details = self._details, self._details + 1
        if part.thought:
            return ReasoningDetail(
                "reasoning.text", text=part.text, signature=signature, format=DETAIL_FORMAT, index=place
            )
        return ReasoningDetail("reasoning.encrypted", data=signature, format=DETAIL_FORMAT, index=place)

    def _call(self, index: int, call: _FunctionCall, signature: str | None) -> list[ChatDelta]:
        if not call.name:
            raise UpstreamFailed("The upstream sent a function call without a name.")
        place = self._calls.get(index, 0)
        self._calls[index] = place + 1
        call_id = call.id if call.id and call.id not in self._ids else new_id("call")
        self._ids.add(call_id)
        extra = {"google": {"thought_signature": signature}} if signature else None
        first = ToolCallDelta(place, call_id, "function", FunctionDelta(call.name, ""), extra)
        # As it was written, but for white space: neither numbers nor escapes change.
        arguments = msgspec.json.format(bytes(call.args), indent=-1).decode()
        if not arguments.startswith("{"):
            raise UpstreamFailed("The upstream sent a function call whose arguments are no object.")
        rest = ToolCallDelta(place, function=FunctionDelta(arguments=arguments))
        return [ChatDelta(index=index, tool_calls=[first]), ChatDelta(index=index, tool_calls=[rest])]

    def _logprobs(self, result: _Logprobs | None) -> list[TokenLogprob]:
        if result is None:
            return []
        tops = result.top_candidates if self._top_logprobs else []
        return [
            TokenLogprob(
                chosen.token,
                _logprob(chosen),
                _bytes(chosen.token),
                [
                    TopLogprob(other.token, _logprob(other), _bytes(other.token))
                    for other in (tops[place].candidates[: self._top_logprobs] if place < len(tops) else ())
                ],
            )
            for place, chosen in enumerate(result.chosen_candidates)
        ]


def _logprob(token: _Token) -> float:
    return token.log_probability if isinstance(token.log_probability, float) else _IMPOSSIBLE


def _bytes(token: str) -> list[int] | None:
    """None where the token is a piece of a character: its bytes are lost already."""
    return None if "\ufffd" in token else list(token.encode("utf-8", "surrogatepass"))


def _word(reason: str) -> str:
    is_word = len(reason) <= _MAX_REASON and reason.isascii() and reason.replace("_", "").isalnum()
    return reason if is_word else "it gave"
