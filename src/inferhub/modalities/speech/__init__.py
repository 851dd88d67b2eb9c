"""Speech: text in, sound out.

Everything is streamed: a file is sent while it is made. What an engine cannot do of our own controls is
refused, not left out; `instructions`, which OpenAI's clients send to every model, are left out and reported.
"""

from __future__ import annotations

from collections.abc import Mapping

from inferhub.core.usage import Usage
from inferhub.modalities.base import Modality
from inferhub.modalities.speech.answer import (
    PCM_RATE_HZ,
    SpeechResponse,
    SpeechUsage,
    fold,
    media_type,
    writer,
)
from inferhub.modalities.speech.deltas import SpeechDelta
from inferhub.modalities.speech.request import (
    DEFAULT_VOICE,
    EMOTIONS,
    MAX_INPUT_CHARS,
    AudioFormat,
    Emotion,
    SpeechRequest,
    check,
    emotion_of,
    shares,
)

__all__ = [
    "DEFAULT_VOICE",
    "EMOTIONS",
    "MAX_INPUT_CHARS",
    "MODALITY",
    "PCM_RATE_HZ",
    "AudioFormat",
    "Emotion",
    "SpeechDelta",
    "SpeechRequest",
    "SpeechResponse",
    "SpeechUsage",
    "check",
    "emotion_of",
    "fold",
    "media_type",
    "shares",
    "writer",
]

_MS_PER_CHARACTER = 120
"""Of slow speech; digits and symbols take longer than letters, but no text is all of them."""

_OWN = {
    "language": "language",
    "emotion": "emotion",
    "pitch": "pitch",
    "gain_db": "gain",
    "sample_rate_hz": "sample_rate",
}
"""Parameter beyond OpenAI's → feature."""


def _requires(request: SpeechRequest) -> Mapping[str, str]:
    needed = {feature: name for name, feature in _OWN.items() if getattr(request, name) is not None}
    if (request.language or "").lower().startswith("en"):
        del needed["language"]  # everybody speaks it
    if len(shares(request)) > 1:
        needed["blend"] = "voice"
    return needed


def _wishes(request: SpeechRequest) -> Mapping[str, frozenset[str]]:
    if request.instructions is None:
        return {}
    # Presets of ours understand nothing but the name of a mood.
    is_mood = request.emotion is None and emotion_of(request) is not None
    return {"instructions": frozenset({"instructions", "emotion"} if is_mood else {"instructions"})}


def _estimate(request: SpeechRequest, _body_bytes: int) -> Usage:
    characters = len(request.input)
    length_ms = int(characters * _MS_PER_CHARACTER / request.speed)
    return Usage(characters=characters, audio_ms=length_ms, source="estimated")


MODALITY = Modality(
    name="speech",
    path="/v1/audio/speech",
    summary="Speak a text",
    request=SpeechRequest,
    delta=SpeechDelta,
    response=SpeechResponse,
    check=check,
    requires=_requires,
    wishes=_wishes,
    estimate=_estimate,
    cap=None,
    fold=fold,
    writer=writer,
    features=(
        "stream",
        "blend",
        "emotion",
        "pitch",
        "gain",
        "sample_rate",
        "language",
        "instructions",
    ),
    example={"input": "The quick brown fox."},
    media_type=media_type,
)
