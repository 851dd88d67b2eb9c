"""Reads text completions in OpenAI's format, whole or in chunks; the sibling of `openai_chat`."""

from __future__ import annotations

from typing import Any

import msgspec

from inferhub.core.errors import UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.modalities.completion import CompletionDelta, CompletionLogprobs
from inferhub.wire.foreign import json_reader
from inferhub.wire.openai_usage import UpstreamUsage, adds_up, read_usage


class _Choice(msgspec.Struct):
    index: int | None = 0
    text: str | None = None
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None


class CompletionChunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: UpstreamUsage | None = None
    error: Any = None


_FINISH = {"stop", "length", "content_filter"}
parse_completion_chunk = json_reader(CompletionChunk, "an event that is not a text completion")


def convert_completion_chunk(data: Any) -> CompletionChunk:
    """The same for engines that hand over Python dictionaries."""
    try:
        return msgspec.convert(data, CompletionChunk)
    except msgspec.ValidationError as error:
        raise UpstreamFailed("The engine sent an event that is not a text completion.") from error


class CompletionReader:
    """Follows the chunks of one answer. `read` each chunk in order, then `end`."""

    def __init__(self, choices: int = 1) -> None:
        self.is_mended = False
        """Whether the deltas of the last `read` are not what its chunk says, so that it must not go on."""
        self.is_miscounted = False
        """Whether the last chunk had usage whose totals do not add up."""
        self._expected = choices
        self._finished: set[int] = set()
        self._usage: UpstreamUsage | None = None

    def read(self, chunk: CompletionChunk) -> list[CompletionDelta]:
        self.is_mended = self.is_miscounted = False
        if chunk.usage is not None:
            self._usage = chunk.usage
            self.is_miscounted = not adds_up(chunk.usage)
        deltas: list[CompletionDelta] = []
        for choice in chunk.choices or ():
            index = choice.index or 0
            if index in self._finished:
                self.is_mended = True
                continue
            if choice.text or choice.logprobs:
                deltas.append(CompletionDelta(index, choice.text or "", choice.logprobs))
            if choice.finish_reason:
                self._finished.add(index)
                reason = choice.finish_reason if choice.finish_reason in _FINISH else "stop"
                self.is_mended = self.is_mended or reason != choice.finish_reason
                deltas.append(CompletionDelta(index, finish_reason=reason))  # type: ignore[arg-type]
        return deltas

    def close(self) -> list[CompletionDelta]:
        """Nothing is owed: a text without its finish may have been cut off."""
        return []

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
