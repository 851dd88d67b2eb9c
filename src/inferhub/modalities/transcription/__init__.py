"""Transcription: speech in, text out; a whole recording, or live."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inferhub.core.call import Media
from inferhub.core.errors import Invalid
from inferhub.core.usage import Usage
from inferhub.media import longest_ms
from inferhub.modalities.base import FileField, Modality
from inferhub.modalities.transcription.answer import Transcript, TranscriptionResponse, fold, media_type
from inferhub.modalities.transcription.deltas import Segment, TranscriptDelta, Word
from inferhub.modalities.transcription.events import Writer
from inferhub.modalities.transcription.request import (
    Endpointing,
    Live,
    TranscriptionRequest,
    wants_speakers,
    wants_words,
)

__all__ = [
    "MODALITY",
    "Endpointing",
    "Live",
    "Segment",
    "Transcript",
    "TranscriptDelta",
    "TranscriptionRequest",
    "TranscriptionResponse",
    "Word",
    "wants_speakers",
    "wants_words",
]

_LIVE_MS = 10_000
"""Reserved for a session that is still to be spoken; admission reserves more while it goes on."""


def _check(request: TranscriptionRequest) -> None:
    form = request.response_format
    if request.timestamp_granularities and form != "verbose_json":
        raise Invalid(
            f"'timestamp_granularities' needs 'response_format' to be 'verbose_json', not {form!r}.",
            param="timestamp_granularities",
        )
    if request.stream and form in ("srt", "vtt"):
        raise Invalid(
            f"Subtitles are not streamed: leave out 'stream', or ask for another format than {form!r}.",
            param="stream",
        )
    if request.diarize is False and (request.num_speakers is not None or form == "diarized_json"):
        asking = "num_speakers" if request.num_speakers is not None else "response_format"
        raise Invalid(f"'diarize' is false, and '{asking}' asks for speakers.", param="diarize")


def _requires(request: TranscriptionRequest) -> Mapping[str, str]:
    asked = {
        "stream": ("stream", bool(request.stream)),
        "translate": ("task", request.task == "translate"),
        "word_timestamps": ("timestamp_granularities", wants_words(request)),
        "diarize": (_speakers_param(request), wants_speakers(request)),
        "logprobs": ("include", "logprobs" in (request.include or ())),
        "live": ("live", request.live is not None),
    }
    return {feature: param for feature, (param, is_asked) in asked.items() if is_asked}


def _speakers_param(request: TranscriptionRequest) -> str:
    if request.diarize:
        return "diarize"
    return "num_speakers" if request.num_speakers is not None else "response_format"


def _estimate(_request: TranscriptionRequest, _body_bytes: int) -> Usage:
    return Usage(audio_ms=_LIVE_MS, source="estimated")


def _estimate_media(media: Sequence[Media]) -> Usage:
    return Usage(audio_ms=max(1, sum(longest_ms(file.data) for file in media)), source="estimated")


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
    estimate_media=_estimate_media,
    cap=None,
    fold=fold,
    writer=Writer,
    features=("stream", "translate", "diarize", "word_timestamps", "live", "logprobs"),
    example={},
    files={"file": FileField("audio")},
    media_type=media_type,
)
