"""What is said on `/ws/asr`: every message of the client and every event of the server, as structs.

Read and written by `asr`; the reference page has an example of each, and a test holds it to these.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from inferhub.modalities.base import Problem
from inferhub.modalities.transcription import Endpointing, Live, TranscriptionRequest, Word
from inferhub.modalities.transcription.request import Granularity, LiveFormat

# --- what a client says; sound comes in binary messages ----------------------------------------------


class Start(msgspec.Struct, tag="start", kw_only=True, forbid_unknown_fields=True):
    """Begins a transcription. Sound may follow at once."""

    model: str = ""
    """Left out: the first one that offers live transcription."""
    language: str | None = None
    prompt: Annotated[str, Meta(max_length=4096)] | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    diarize: bool | None = None
    num_speakers: Annotated[int, Meta(ge=1, le=20)] | None = None
    timestamp_granularities: list[Granularity] | None = None
    format: LiveFormat = "pcm16"
    rate_hz: Annotated[int, Meta(ge=8000, le=96_000)] = 16_000
    endpointing: Endpointing | None = Endpointing()
    partials: bool = True
    event_id: str | None = None

    def request(self) -> TranscriptionRequest:
        return TranscriptionRequest(
            model=self.model,
            language=self.language,
            prompt=self.prompt,
            task=self.task,
            diarize=self.diarize,
            num_speakers=self.num_speakers,
            timestamp_granularities=self.timestamp_granularities,
            stream=True,
            live=Live(
                format=self.format, rate_hz=self.rate_hz, endpointing=self.endpointing, partials=self.partials
            ),
        )


class Commit(msgspec.Struct, tag="commit", kw_only=True, forbid_unknown_fields=True):
    """The utterance ends here, whatever the silence says."""

    event_id: str | None = None


class Clear(msgspec.Struct, tag="clear", kw_only=True, forbid_unknown_fields=True):
    """What was said since the last utterance is taken back."""

    event_id: str | None = None


class End(msgspec.Struct, tag="end", kw_only=True, forbid_unknown_fields=True):
    """No more sound. `done` follows when all of it is transcribed; another `start` may come then."""

    event_id: str | None = None


Said = Start | Commit | Clear | End

# --- what the server says ----------------------------------------------------------------------------


class Ready(msgspec.Struct, tag="ready", kw_only=True):
    """A model listens."""

    id: str
    model: str
    """The one that answers, after aliases and routes."""


class SpeechStarted(msgspec.Struct, tag="speech_started", kw_only=True):
    utterance: int
    """Counts from 0 for each `start`."""
    at_s: float
    """Since the beginning of the sound."""


class Partial(msgspec.Struct, tag="partial", kw_only=True):
    """All of the utterance so far. It replaces the partial before, and may be wrong."""

    utterance: int
    text: str
    at_s: float
    language: str = ""


class SpeechStopped(msgspec.Struct, tag="speech_stopped", kw_only=True):
    """Silence has ended the utterance; its `final` follows."""

    utterance: int
    at_s: float


class Committed(msgspec.Struct, tag="committed", kw_only=True):
    """The client has ended the utterance; its `final` follows."""

    utterance: int
    at_s: float


class Final(msgspec.Struct, tag="final", kw_only=True):
    """The utterance; it does not change any more. Empty where nothing was said in the sound."""

    utterance: int
    text: str
    start: float
    end: float
    language: str = ""
    language_probability: float | None = None
    speaker: str | None = None
    words: list[Word] | None = None


class AudioUsage(msgspec.Struct, kw_only=True):
    audio_ms: int


class Done(msgspec.Struct, tag="done", kw_only=True):
    """Everything is transcribed."""

    duration_s: float
    usage: AudioUsage


class Error(msgspec.Struct, tag="error", kw_only=True):
    """What could not be done. The connection lives on, unless the server closes it right after this."""

    error: Problem
    event_id: str | None = None
    """Of the message that it answers, where that had one."""


Event = Ready | SpeechStarted | Partial | SpeechStopped | Committed | Final | Done | Error
