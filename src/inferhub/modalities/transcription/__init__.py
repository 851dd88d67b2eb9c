"""Transcription: speech in, text out; a whole recording, or live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from inferhub.core.usage import Usage
from inferhub.modalities.base import Envelope, FileField, Modality
from inferhub.modalities.transcription.deltas import Segment, TranscriptDelta, Word
from inferhub.modalities.transcription.request import Endpointing, Live, TranscriptionRequest

__all__ = ["MODALITY", "Endpointing", "Live", "Segment", "TranscriptDelta", "TranscriptionRequest", "Word"]


class TranscriptionResponse(msgspec.Struct):
    text: str


def _check(request: TranscriptionRequest) -> None:
    """Nothing yet that types do not say."""


def _requires(request: TranscriptionRequest) -> Mapping[str, str]:
    return {}


def _estimate(request: TranscriptionRequest, body_bytes: int) -> Usage:
    return Usage(audio_ms=60_000, source="estimated")


def _fold(
    request: TranscriptionRequest, envelope: Envelope, deltas: Sequence[TranscriptDelta], usage: Usage
) -> bytes:
    text = "".join(delta.segment.text for delta in deltas if delta.segment is not None).strip()
    return msgspec.json.encode(TranscriptionResponse(text))


MODALITY = Modality(
    name="transcription",
    path="/v1/audio/transcriptions",
    summary="Turn speech into text",
    request=TranscriptionRequest,
    delta=TranscriptDelta,
    response=TranscriptionResponse,
    check=_check,
    requires=_requires,
    estimate=_estimate,
    cap=None,
    fold=_fold,
    writer=None,
    features=("stream", "translate", "diarize", "word_timestamps", "live"),
    example={},
    files={"file": FileField("audio")},
)
