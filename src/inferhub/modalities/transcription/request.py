"""What a client asks of a recording: `POST /v1/audio/transcriptions`, and live recognition."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

ResponseFormat = Literal["json", "text", "srt", "vtt", "verbose_json", "diarized_json"]
Granularity = Literal["word", "segment"]
LiveFormat = Literal["pcm16", "g711_ulaw", "g711_alaw", "opus"]


class Endpointing(msgspec.Struct, kw_only=True, frozen=True):
    """When somebody who spoke has ended: after so much silence."""

    threshold: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """Least probability of speech."""
    prefix_padding_ms: Annotated[int, Meta(ge=0, le=5000)] = 300
    silence_duration_ms: Annotated[int, Meta(ge=100, le=10_000)] = 500


class Live(msgspec.Struct, kw_only=True, frozen=True):
    """Sound that comes bit by bit, in `Call.incoming`."""

    format: LiveFormat = "pcm16"
    """Opus comes in Ogg or WebM."""
    rate_hz: Annotated[int, Meta(ge=8000, le=96_000)] = 16_000
    """Of `pcm16`, which is mono and little-endian."""
    endpointing: Endpointing | None = Endpointing()
    """None: the client ends each utterance itself, with the frame `commit`."""
    partials: bool = True


class TranscriptionRequest(msgspec.Struct, kw_only=True):
    """Fields of the form of `POST /v1/audio/transcriptions`; the recording is `Call.media[0]`."""

    model: str = ""
    language: str | None = None
    """ISO 639-1; found out where it is not said."""
    prompt: str | None = None
    response_format: ResponseFormat = "json"
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    timestamp_granularities: list[Granularity] | None = None
    include: list[str] | None = None
    chunking_strategy: str | None = None
    stream: bool | None = None
    # Beyond OpenAI's:
    task: Literal["transcribe", "translate"] = "transcribe"
    diarize: bool | None = None
    num_speakers: Annotated[int, Meta(ge=1, le=20)] | None = None
    vad: bool | None = None
    """Whether silence is skipped before recognition; on unless false."""
    live: Live | None = None


def wants_words(request: TranscriptionRequest) -> bool:
    return "word" in (request.timestamp_granularities or ())


def wants_speakers(request: TranscriptionRequest) -> bool:
    """Asked for in any of three ways, unless it is declined."""
    if request.diarize is not None:
        return request.diarize
    return request.num_speakers is not None or request.response_format == "diarized_json"
