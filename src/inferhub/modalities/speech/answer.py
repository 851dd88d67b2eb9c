"""How a spoken answer is written: the file itself as it is made, or as server-sent events."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import msgspec

from inferhub.core.usage import Usage
from inferhub.modalities.base import EVENT_STREAM, Envelope, Problem, StreamWriter
from inferhub.modalities.speech.deltas import SpeechDelta
from inferhub.modalities.speech.request import SpeechRequest

PCM_RATE_HZ = 24_000
"""Of `pcm` where the client names no rate."""

_MEDIA_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
}


class SpeechUsage(msgspec.Struct):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    characters: int
    """Of `input`."""
    audio_ms: int


class SpeechResponse(msgspec.Struct, omit_defaults=True):
    """One event of `stream_format: sse`; without it the answer is the sound itself."""

    type: str
    audio: str | None = None
    """Base64 of the next bytes."""
    usage: SpeechUsage | None = None


class _Broken(msgspec.Struct):
    error: Problem


def media_type(request: SpeechRequest, _is_stream: bool) -> str:
    if request.stream_format == "sse":
        return EVENT_STREAM
    if request.response_format == "pcm":
        return f"audio/pcm; rate={request.sample_rate_hz or PCM_RATE_HZ}; channels=1"
    return _MEDIA_TYPES[request.response_format]


def writer(request: SpeechRequest, _envelope: Envelope) -> StreamWriter:
    return EventWriter() if request.stream_format == "sse" else SoundWriter()


def fold(_request: SpeechRequest, _envelope: Envelope, deltas: Sequence[SpeechDelta], _usage: Usage) -> bytes:
    return b"".join(delta.data for delta in deltas)


class SoundWriter:
    """The bytes of the file and nothing else."""

    def delta(self, payload: SpeechDelta) -> bytes:
        return payload.data

    def passed(self, raw: bytes) -> None:
        """Every piece stands for itself."""

    def end(self, usage: Usage) -> bytes:
        return b""

    def fail(self, problem: Problem) -> None:
        """A file has no words for it."""


class EventWriter:
    """`speech.audio.delta` … `speech.audio.done`."""

    def delta(self, payload: SpeechDelta) -> bytes:
        if not payload.data:
            return b""
        return _event(SpeechResponse("speech.audio.delta", base64.b64encode(payload.data).decode()))

    def passed(self, raw: bytes) -> None:
        """Every event stands for itself."""

    def end(self, usage: Usage) -> bytes:
        counts = SpeechUsage(
            usage.input_tokens, usage.output_tokens, usage.total_tokens, usage.characters, usage.audio_ms
        )
        return _event(SpeechResponse("speech.audio.done", usage=counts))

    def fail(self, problem: Problem) -> bytes:
        return _event(_Broken(problem))


def _event(body: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"
