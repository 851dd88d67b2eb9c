"""What a client wants spoken: `POST /v1/audio/speech`."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

AudioFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]
Emotion = Literal["neutral", "happy", "sad", "angry", "calm", "whisper"]
MAX_INPUT_CHARS = 4096


class VoiceId(msgspec.Struct, frozen=True):
    id: str


class SpeechRequest(msgspec.Struct, kw_only=True):
    """Body of `POST /v1/audio/speech`."""

    input: str
    model: str = ""
    voice: str | VoiceId | dict[str, float] = "default"
    """A name, or names with their shares: the voices are blended."""
    instructions: str | None = None
    response_format: AudioFormat = "mp3"
    speed: Annotated[float, Meta(ge=0.25, le=4)] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    # Beyond OpenAI's:
    language: str | None = None
    """ISO 639-1; that of the voice where it is not said."""
    emotion: Emotion | None = None
    pitch: Annotated[float, Meta(ge=-12, le=12)] | None = None
    """Semitones."""
    gain_db: Annotated[float, Meta(ge=-30, le=20)] | None = None
    sample_rate_hz: Annotated[int, Meta(ge=8000, le=48_000)] | None = None
