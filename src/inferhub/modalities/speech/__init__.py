"""Speech: text in, sound out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, Modality
from inferhub.modalities.speech.deltas import SpeechDelta
from inferhub.modalities.speech.request import AudioFormat, Emotion, SpeechRequest

__all__ = ["MODALITY", "AudioFormat", "Emotion", "SpeechDelta", "SpeechRequest"]


class SpeechResponse(msgspec.Struct):
    """Only of `stream_format: sse`, event by event; else the answer is the sound itself."""

    type: str


def _check(request: SpeechRequest) -> None:
    """Nothing yet that types do not say."""


def _requires(request: SpeechRequest) -> Mapping[str, str]:
    return {}


def _estimate(request: SpeechRequest, body_bytes: int) -> Usage:
    characters = len(request.input)
    return Usage(characters=characters, audio_ms=characters * 120, source="estimated")


def _fold(request: SpeechRequest, envelope: Envelope, deltas: Sequence[SpeechDelta], usage: Usage) -> bytes:
    return b"".join(delta.data for delta in deltas)


MODALITY = Modality(
    name="speech",
    path="/v1/audio/speech",
    summary="Speak a text",
    request=SpeechRequest,
    delta=SpeechDelta,
    response=SpeechResponse,
    check=_check,
    requires=_requires,
    estimate=_estimate,
    cap=None,
    fold=_fold,
    writer=None,
    features=("stream", "blend", "emotion", "pitch", "language", "instructions"),
    example={"input": "The quick brown fox."},
    media_type=lambda request, is_stream: "application/octet-stream",
)
