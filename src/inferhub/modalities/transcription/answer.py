"""How a whole transcript is written, in each of OpenAI's formats. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

from inferhub.core.usage import Usage
from inferhub.modalities.base import EVENT_STREAM, JSON, Envelope
from inferhub.modalities.transcription.deltas import Segment, TranscriptDelta
from inferhub.modalities.transcription.languages import NAMES
from inferhub.modalities.transcription.request import TranscriptionRequest
from inferhub.modalities.transcription.subtitles import srt, vtt

_TEXTS = frozenset({"text", "srt", "vtt"})


class DurationUsage(msgspec.Struct, tag_field="type", tag="duration"):
    seconds: int
    """Of sound, rounded up."""


class HeardDetails(msgspec.Struct):
    audio_tokens: int
    text_tokens: int


class TokensUsage(msgspec.Struct, tag_field="type", tag="tokens"):
    input_tokens: int
    input_token_details: HeardDetails
    output_tokens: int
    total_tokens: int


class VerboseWord(msgspec.Struct):
    word: str
    start: float
    end: float


class VerboseSegment(msgspec.Struct):
    id: int
    seek: int
    start: float
    end: float
    text: str
    tokens: list[int]
    temperature: float
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float


class SpeakerSegment(msgspec.Struct):
    id: str
    start: float
    end: float
    text: str
    speaker: str
    type: Literal["transcript.text.segment"] = "transcript.text.segment"


class TranscriptionResponse(msgspec.Struct, omit_defaults=True):
    """Of `json`. `verbose_json` and `diarized_json` say more, the other formats are plain text."""

    text: str
    usage: DurationUsage | TokensUsage | None = None


class VerboseResponse(msgspec.Struct):
    """Of `verbose_json`."""

    task: str
    language: str
    """Its English name."""
    duration: float
    text: str
    segments: list[VerboseSegment] | None
    words: list[VerboseWord] | None
    usage: DurationUsage


class DiarizedResponse(msgspec.Struct):
    """Of `diarized_json`."""

    task: str
    duration: float
    text: str
    segments: list[SpeakerSegment]
    usage: DurationUsage | TokensUsage


class Transcript:
    """All that came of one recording."""

    def __init__(self, deltas: Sequence[TranscriptDelta]) -> None:
        self.segments = [delta.segment for delta in deltas if delta.segment is not None]
        about = next((delta for delta in deltas if delta.kind == "about"), None)
        self.language = about.language if about else ""
        self.language_probability = about.language_probability if about else None
        self.duration_s = max((delta.duration_s for delta in deltas), default=0.0)

    @property
    def text(self) -> str:
        return "".join(segment.text for segment in self.segments).strip()


def fold(
    request: TranscriptionRequest, envelope: Envelope, deltas: Sequence[TranscriptDelta], usage: Usage
) -> bytes:
    transcript = Transcript(deltas)
    match request.response_format:
        case "text":
            return f"{transcript.text}\n".encode()
        case "srt":
            return srt(transcript.segments).encode()
        case "vtt":
            return vtt(transcript.segments).encode()
        case "verbose_json":
            return msgspec.json.encode(_verbose(request, transcript, usage))
        case "diarized_json":
            return msgspec.json.encode(_diarized(request, transcript, usage))
    return msgspec.json.encode(TranscriptionResponse(transcript.text, usage_of(usage)))


def media_type(request: TranscriptionRequest, is_stream: bool) -> str:
    if is_stream:
        return EVENT_STREAM
    return "text/plain; charset=utf-8" if request.response_format in _TEXTS else JSON


def usage_of(usage: Usage) -> DurationUsage | TokensUsage:
    """By tokens for models that are billed so, else by how long the sound is."""
    return tokens(usage, usage.output_tokens) if usage.total_tokens else duration(usage)


def duration(usage: Usage) -> DurationUsage:
    return DurationUsage(math.ceil(usage.audio_ms / 1000))


def tokens(usage: Usage, output_tokens: int) -> TokensUsage:
    return TokensUsage(
        usage.input_tokens,
        HeardDetails(usage.input_tokens, 0),
        output_tokens,
        usage.input_tokens + output_tokens,
    )


def speaker_segment(segment: Segment) -> SpeakerSegment:
    return SpeakerSegment(
        f"seg_{segment.id:03}", segment.start, segment.end, segment.text.strip(), segment.speaker or "A"
    )


def _verbose(request: TranscriptionRequest, transcript: Transcript, usage: Usage) -> VerboseResponse:
    wanted = request.timestamp_granularities or ["segment"]
    words = [word for segment in transcript.segments for word in segment.words or ()]
    return VerboseResponse(
        task=request.task,
        language="english"
        if request.task == "translate"
        else NAMES.get(transcript.language, transcript.language),
        duration=transcript.duration_s,
        text=transcript.text,
        segments=[_segment(piece) for piece in transcript.segments] if "segment" in wanted else None,
        words=[VerboseWord(w.word.strip(), w.start, w.end) for w in words] if "word" in wanted else None,
        usage=duration(usage),
    )


def _diarized(request: TranscriptionRequest, transcript: Transcript, usage: Usage) -> DiarizedResponse:
    return DiarizedResponse(
        task=request.task,
        duration=transcript.duration_s,
        text=transcript.text,
        segments=[speaker_segment(segment) for segment in transcript.segments],
        usage=usage_of(usage),
    )


def _segment(piece: Segment) -> VerboseSegment:
    return VerboseSegment(
        piece.id,
        piece.seek,
        piece.start,
        piece.end,
        piece.text,
        piece.tokens,
        piece.temperature,
        piece.avg_logprob,
        piece.compression_ratio,
        piece.no_speech_prob,
    )
