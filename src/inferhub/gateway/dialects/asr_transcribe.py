"""Transcription in our own words: `POST /v1/asr/transcribe`, which answers with all that was found out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from inferhub.core.usage import Usage
from inferhub.gateway.dialects.base import Dialect, Translated
from inferhub.modalities.base import Envelope, Problem
from inferhub.modalities.transcription import (
    MODALITY,
    Segment,
    Transcript,
    TranscriptDelta,
    TranscriptionRequest,
    Word,
)


class TranscribeRequest(msgspec.Struct, kw_only=True):
    """Fields of the form of `POST /v1/asr/transcribe`."""

    model: str = ""
    language: str | None = None
    """ISO 639-1; found out where it is not said."""
    task: Literal["transcribe", "translate"] = "transcribe"
    prompt: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    words: bool = True
    """Whether each word gets its times."""
    diarize: bool = False
    """Whether each segment gets its speaker."""
    num_speakers: Annotated[int, Meta(ge=1, le=20)] | None = None
    """Where it is known; asks for speakers by itself."""
    vad: bool = True
    """Whether silence is left out before recognition."""
    stream: bool = False


class Spoken(msgspec.Struct):
    """A stretch of speech."""

    id: int
    start: float
    end: float
    text: str
    speaker: str | None
    words: list[Word] | None
    avg_logprob: float
    no_speech_prob: float


class Speaker(msgspec.Struct):
    id: str
    seconds: float
    segments: int


class SoundUsage(msgspec.Struct):
    audio_seconds: float


class TranscribeResponse(msgspec.Struct):
    """Answer of `POST /v1/asr/transcribe`."""

    id: str
    object: Literal["transcription"]
    created: int
    model: str
    task: str
    language: str
    """Of the speech: ISO 639-1."""
    language_probability: float | None
    """None where it was not found out."""
    duration: float
    text: str
    segments: list[Spoken]
    speakers: list[Speaker] | None
    """None where nobody asked."""
    usage: SoundUsage


def _lowered(asked: TranscribeRequest) -> TranscriptionRequest:
    return TranscriptionRequest(
        model=asked.model,
        language=asked.language,
        task=asked.task,
        prompt=asked.prompt,
        temperature=asked.temperature,
        response_format="verbose_json",
        timestamp_granularities=["segment", "word"] if asked.words else None,
        stream=asked.stream or None,
        diarize=_wants_speakers(asked) or None,
        num_speakers=asked.num_speakers,
        vad=None if asked.vad else False,
    )


def _wants_speakers(asked: TranscribeRequest) -> bool:
    return asked.diarize or asked.num_speakers is not None


def _check(asked: TranscribeRequest) -> None:
    MODALITY.check(_lowered(asked))


def _translate(asked: TranscribeRequest, _body: bytes) -> Translated:
    request = _lowered(asked)
    fields = {name: value for name, value in msgspec.structs.asdict(request).items() if value is not None}
    return Translated(request, msgspec.json.encode(fields))


def _fold(
    asked: TranscribeRequest, envelope: Envelope, deltas: Sequence[TranscriptDelta], usage: Usage
) -> bytes:
    return msgspec.json.encode(_whole(asked, envelope, Transcript(deltas), usage))


def _whole(
    asked: TranscribeRequest, envelope: Envelope, transcript: Transcript, usage: Usage
) -> TranscribeResponse:
    return TranscribeResponse(
        id=envelope.id,
        object="transcription",
        created=envelope.created,
        model=envelope.model,
        task=asked.task,
        language=transcript.language,
        language_probability=None if asked.language else transcript.language_probability,
        duration=transcript.duration_s,
        text=transcript.text,
        segments=[_spoken(segment) for segment in transcript.segments],
        speakers=_speakers(transcript.segments) if _wants_speakers(asked) else None,
        usage=SoundUsage(usage.audio_ms / 1000),
    )


def _spoken(segment: Segment) -> Spoken:
    words = segment.words
    if words is not None:
        words = [msgspec.structs.replace(word, word=word.word.strip()) for word in words]
    return Spoken(
        segment.id,
        segment.start,
        segment.end,
        segment.text.strip(),
        segment.speaker,
        words,
        segment.avg_logprob,
        segment.no_speech_prob,
    )


def _speakers(segments: Sequence[Segment]) -> list[Speaker]:
    found: dict[str, Speaker] = {}
    for segment in segments:
        speaker = found.setdefault(segment.speaker or "A", Speaker(segment.speaker or "A", 0.0, 0))
        speaker.seconds = round(speaker.seconds + segment.end - segment.start, 3)
        speaker.segments += 1
    return list(found.values())


class _Begun(msgspec.Struct):
    type: Literal["transcription.started"]
    language: str
    language_probability: float | None
    duration: float


class _Found(msgspec.Struct):
    type: Literal["transcription.segment"]
    segment: Spoken


class _Done(msgspec.Struct):
    type: Literal["transcription.done"]
    transcription: TranscribeResponse


class _Broken(msgspec.Struct):
    error: Problem


class _Writer:
    """`transcription.started`, `transcription.segment`s, and `transcription.done` with all of it."""

    def __init__(self, asked: TranscribeRequest, envelope: Envelope) -> None:
        self._asked = asked
        self._envelope = envelope
        self._deltas: list[TranscriptDelta] = []

    def delta(self, payload: TranscriptDelta) -> bytes:
        self._deltas.append(payload)
        if payload.segment is not None:
            return _event(_Found("transcription.segment", _spoken(payload.segment)))
        if payload.kind == "about":
            probability = None if self._asked.language else payload.language_probability
            return _event(_Begun("transcription.started", payload.language, probability, payload.duration_s))
        return b""

    def passed(self, raw: bytes) -> None:
        """No upstream speaks this dialect."""

    def end(self, usage: Usage) -> bytes:
        whole = _whole(self._asked, self._envelope, Transcript(self._deltas), usage)
        return _event(_Done("transcription.done", whole))

    def fail(self, problem: Problem) -> bytes:
        return _event(_Broken(problem))


def _event(body: msgspec.Struct) -> bytes:
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


DIALECT = Dialect(
    name="asr_transcribe",
    path="/v1/asr/transcribe",
    summary="Turn speech into text, with words, speakers and times",
    modality=MODALITY,
    request=TranscribeRequest,
    response=TranscribeResponse,
    check=_check,
    translate=_translate,
    fold=_fold,
    writer=_Writer,
    id_prefix="transcription-",
    example={},
    files=MODALITY.files,
)
