"""A transcript as it is made: `transcript.text.delta` … `transcript.text.done`, as OpenAI streams it."""

from __future__ import annotations

from typing import Literal

import msgspec

from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, Problem
from inferhub.modalities.transcription.answer import TokensUsage, speaker_segment, tokens
from inferhub.modalities.transcription.deltas import TranscriptDelta
from inferhub.modalities.transcription.request import TranscriptionRequest

_MS_PER_TOKEN = 20
"""Of sound: the model sees it in steps so long."""


class TextDelta(msgspec.Struct, omit_defaults=True):
    type: Literal["transcript.text.delta"]
    delta: str
    segment_id: str | None = None
    """The `transcript.text.segment` that it belongs to."""


class TextDone(msgspec.Struct):
    type: Literal["transcript.text.done"]
    text: str
    """All deltas, joined."""
    usage: TokensUsage


class _Broken(msgspec.Struct):
    error: Problem


class Writer:
    """Deltas whose sum is the text, without a blank at either end."""

    def __init__(self, request: TranscriptionRequest, _envelope: Envelope) -> None:
        self._has_speakers = request.response_format == "diarized_json"
        self._said: list[str] = []
        self._blank = ""
        self._tokens = 0

    def delta(self, payload: TranscriptDelta) -> bytes:
        segment = payload.segment
        if segment is None:
            return b""
        self._tokens += len(segment.tokens)
        shown = speaker_segment(segment) if self._has_speakers else None
        events = b""
        text = self._joined(segment.text)
        if text:
            self._said.append(text)
            events = _event(TextDelta("transcript.text.delta", text, shown.id if shown else None))
        return events + _event(shown) if shown else events

    def passed(self, raw: bytes) -> None:
        """The upstream ends its own stream."""

    def end(self, usage: Usage) -> bytes:
        text = "".join(self._said)
        return _event(TextDone("transcript.text.done", text, self._counted(usage)))

    def fail(self, problem: Problem) -> bytes:
        return _event(_Broken(problem))

    def _joined(self, text: str) -> str:
        """With the blank that the text before it ended in, and without its own, which may be the last."""
        text = self._blank + text if self._said else text.lstrip()
        stripped = text.rstrip()
        self._blank = text[len(stripped) :]
        return stripped

    def _counted(self, usage: Usage) -> TokensUsage:
        """This event knows tokens only: a model that is billed by time has them nevertheless."""
        if usage.total_tokens:
            return tokens(usage, usage.output_tokens)
        heard = Usage(input_tokens=usage.audio_ms // _MS_PER_TOKEN)
        return tokens(heard, self._tokens)


def _event(body: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
