"""Reads text completions in OpenAI's format, whole or in chunks; the sibling of `openai_chat`."""

from __future__ import annotations

from typing import Any

import msgspec

from inferhub.core.errors import UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.modalities.completion import CompletionDelta, CompletionLogprobs
from inferhub.wire.openai_usage import UpstreamUsage, read_usage


class _Choice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class CompletionChunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: UpstreamUsage | None = None
    error: Any = None


_FINISH = {"stop", "length", "content_filter"}
_decode = msgspec.json.Decoder(CompletionChunk).decode


def parse_completion_chunk(data: bytes | str) -> CompletionChunk:
    """Raises `UpstreamFailed` for anything that is not a text completion; never echoes its content."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UpstreamFailed("The upstream sent an event that is not a text completion.") from error


def convert_completion_chunk(data: Any) -> CompletionChunk:
    """The same for engines that hand over Python dictionaries."""
    try:
        return msgspec.convert(data, CompletionChunk)
    except msgspec.ValidationError as error:
        raise UpstreamFailed("The engine sent an event that is not a text completion.") from error


class CompletionReader:
    """Follows the chunks of one answer. `read` each chunk in order, then `end`."""

    def __init__(self, choices: int = 1) -> None:
        self._expected = choices
        self._finished: set[int] = set()
        self._usage: UpstreamUsage | None = None

    def read(self, chunk: CompletionChunk) -> list[CompletionDelta]:
        if chunk.usage is not None:
            self._usage = chunk.usage
        deltas: list[CompletionDelta] = []
        for choice in chunk.choices or ():
            if choice.index in self._finished:
                continue
            if choice.text or choice.logprobs:
                deltas.append(CompletionDelta(choice.index, choice.text or "", choice.logprobs))
            if choice.finish_reason:
                self._finished.add(choice.index)
                reason = choice.finish_reason if choice.finish_reason in _FINISH else "stop"
                deltas.append(CompletionDelta(choice.index, finish_reason=reason))  # type: ignore[arg-type]
        return deltas

    def end(self) -> Usage:
        """Raises `UpstreamFailed` when the answer stopped before every choice was finished."""
        if len(self._finished) < self._expected:
            raise UpstreamFailed("The upstream's answer ended before it was finished.")
        return read_usage(self._usage)

    @property
    def is_finished(self) -> bool:
        return len(self._finished) >= self._expected
