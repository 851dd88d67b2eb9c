"""Reads transcripts as OpenAI-style upstreams send them: whole, in three formats, or as a stream of events.

The openai_compatible backend feeds it. It fills in what a format leaves out (numbers of segments, the
segment of a word) and never invents a time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any

import msgspec

from inferhub.core.errors import UpstreamFailed
from inferhub.core.usage import Usage
from inferhub.modalities.transcription import Segment, TranscriptDelta, Word
from inferhub.modalities.transcription.languages import NAMES
from inferhub.wire.foreign import json_reader
from inferhub.wire.openai_errors import read_stream_error

MAX_LENGTH_S = 1_000_000
_MAX_LANGUAGE_CHARS = 32
_MAX_SPEAKER_CHARS = 64
_CODES = {name: code for code, name in NAMES.items()}


class _Word(msgspec.Struct):
    word: str
    start: float
    end: float


class _Segment(msgspec.Struct):
    start: float
    end: float
    text: str
    speaker: str | None = None
    tokens: list[int] | None = None
    temperature: float | None = None
    avg_logprob: float | None = None
    compression_ratio: float | None = None
    no_speech_prob: float | None = None
    words: list[_Word] | None = None


class _Usage(msgspec.Struct):
    seconds: float | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_audio_seconds: float | None = None
    """Mistral's, beside its tokens."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Answer(msgspec.Struct):
    text: str | None = None
    language: str | None = None
    duration: float | str | None = None
    """A string in what OpenAI sent for some time."""
    segments: list[_Segment] | None = None
    words: list[_Word] | None = None
    usage: _Usage | None = None
    error: Any = None


class _Event(msgspec.Struct):
    type: str = ""
    delta: str = ""
    text: str | None = None
    start: float = 0.0
    end: float = 0.0
    speaker: str | None = None
    usage: _Usage | None = None
    error: Any = None


class Heard(msgspec.Struct):
    """A whole transcript."""

    deltas: list[TranscriptDelta]
    usage: Usage
    """Without `audio_ms` where the upstream said no length; then of unknown source, too, without tokens."""


_read_answer = json_reader(_Answer, "something that is not a transcript")
_read_event = json_reader(_Event, "an event that is not JSON")


def read_transcript(body: bytes, secrets: Collection[str] = ()) -> Heard:
    """Raises `UpstreamFailed` for what is no transcript."""
    answer = _read_answer(body)
    if answer.error:
        raise read_stream_error(answer.error, secrets)
    if answer.text is None:
        raise UpstreamFailed("The upstream sent an answer without a transcript.")
    duration_s = _seconds(answer.duration)
    about = TranscriptDelta("about", language=_language(answer.language), duration_s=duration_s or 0.0)
    segments = [_lifted(number, given) for number, given in enumerate(answer.segments or ())]
    if not segments and answer.text.strip():
        segments = [Segment(0, 0.0, duration_s or 0.0, answer.text)]
    if answer.words:
        _give_words(segments, answer.words)
    _space(segments)
    usage = _usage(answer.usage, duration_s)
    return Heard([about, *(TranscriptDelta("segment", segment=segment) for segment in segments)], usage)


class TranscriptReader:
    """Follows the events of one stream. `read` each in order, then `end`."""

    def __init__(self, secrets: Collection[str] = (), *, by_speaker: bool = False) -> None:
        """`by_speaker`: the text is taken from the events that say who spoke."""
        self.is_done = False
        self._secrets = secrets
        self._by_speaker = by_speaker
        self._said = ""
        self._count = 0
        self._usage: _Usage | None = None

    def read(self, data: bytes) -> list[TranscriptDelta]:
        event = _read_event(data)
        match event.type:
            case "transcript.text.delta" | "transcription.text.delta" if not self._by_speaker:
                return self._piece(event.delta or event.text or "", 0.0, 0.0, None)
            case "transcript.text.segment" if self._by_speaker:
                text = event.text or ""
                gap = " " if self._said and text[:1].strip() else ""
                return self._piece(gap + text, event.start, event.end, event.speaker)
            case "transcript.text.done" | "transcription.done":
                self.is_done = True
                self._usage = event.usage
                # Some send the text here only.
                return self._piece(event.text or "", 0.0, 0.0, None) if not self._said else []
        if event.error or event.type == "error":
            raise read_stream_error(event.error or {}, self._secrets)
        return []

    def end(self) -> Usage:
        """Raises `UpstreamFailed` where the upstream never said that it is done."""
        if not self.is_done:
            raise UpstreamFailed("The upstream's transcript ended before it was complete.")
        return _usage(self._usage, None)

    def _piece(self, text: str, start: float, end: float, speaker: str | None) -> list[TranscriptDelta]:
        if not text:
            return []
        self._said += text
        number, self._count = self._count, self._count + 1
        segment = Segment(number, _time(start), _time(end), text, _speaker(speaker))
        return [TranscriptDelta("segment", segment=segment)]


def _lifted(number: int, given: _Segment) -> Segment:
    segment = Segment(number, _time(given.start), _time(given.end), given.text, _speaker(given.speaker))
    segment.tokens = given.tokens or []
    for name in ("temperature", "avg_logprob", "compression_ratio", "no_speech_prob"):
        value = getattr(given, name)
        if value is not None and math.isfinite(value):
            setattr(segment, name, value)
    if given.words:
        segment.words = [_word(word) for word in given.words]
    return segment


def _give_words(segments: list[Segment], words: Sequence[_Word]) -> None:
    """OpenAI lists words beside the segments; each belongs to the segment in which its middle lies."""
    if not segments:
        return
    place = 0
    for given in words:
        middle = (given.start + given.end) / 2
        while place + 1 < len(segments) and middle >= segments[place + 1].start:
            place += 1
        segment = segments[place]
        segment.words = [*(segment.words or ()), _word(given)]


def _word(given: _Word) -> Word:
    return Word(given.word, _time(given.start), _time(given.end))


def _space(segments: Sequence[Segment]) -> None:
    """Our segments joined are the text; those of diarised answers come without the space between them."""
    for before, segment in pairwise(segments):
        if segment.text and not segment.text[0].isspace() and not before.text[-1:].isspace():
            segment.text = f" {segment.text}"


def _usage(given: _Usage | None, duration_s: float | None) -> Usage:
    if given is None:
        given = _Usage()
    seconds = next(
        (s for s in (given.seconds, given.prompt_audio_seconds, duration_s) if s is not None), None
    )
    input_tokens = given.input_tokens if given.input_tokens is not None else given.prompt_tokens
    output_tokens = given.output_tokens if given.output_tokens is not None else given.completion_tokens
    return Usage(
        input_tokens or 0,
        output_tokens or 0,
        source="unknown" if seconds is None and input_tokens is None else "reported",
        audio_ms=round((_seconds(seconds) or 0.0) * 1000),
    )


def _seconds(value: float | str | None) -> float | None:
    try:
        seconds = float(value if value is not None else "")
    except ValueError:
        return None
    return seconds if 0 <= seconds <= MAX_LENGTH_S else None


def _time(seconds: float) -> float:
    return _seconds(seconds) or 0.0


def _speaker(name: str | None) -> str | None:
    return name[:_MAX_SPEAKER_CHARS] if name else None


def _language(name: str | None) -> str:
    """The code; OpenAI spells languages out."""
    given = (name or "").strip().lower()[:_MAX_LANGUAGE_CHARS]
    return _CODES.get(given, given)
