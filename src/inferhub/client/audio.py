"""Speech over HTTP: recordings to text, text to sound."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any

import msgspec

from inferhub.client.live import LiveEvent, listening
from inferhub.client.session import Part, Session, decode, pieces, without_none
from inferhub.modalities.speech import SpeechRequest
from inferhub.modalities.transcription import TranscriptionRequest


class Voice(msgspec.Struct):
    """A voice as `GET /v1/audio/voices` lists it."""

    id: str
    model: str
    language: str | None = None
    gender: str | None = None
    aliases: list[str] = []


class TranscriptEvent(msgspec.Struct):
    """One event of a streamed transcription."""

    type: str
    delta: str = ""
    text: str = ""
    """The whole of it, in the last event."""


class _Voices(msgspec.Struct):
    data: list[Voice]


class Audio:
    """Part of `Client`."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def transcribe(self, recording: bytes, request: TranscriptionRequest, name: str = "audio") -> bytes:
        """The answer in the form that `request.response_format` names. Translates where `task` says so."""
        where = "translations" if request.task == "translate" else "transcriptions"
        form = [Part("file", recording, name), *_fields(request)]
        return await self._session.body("POST", f"/v1/audio/{where}", form=form)

    @asynccontextmanager
    async def stream_transcript(
        self, recording: bytes, request: TranscriptionRequest, name: str = "audio"
    ) -> AsyncIterator[AsyncIterator[TranscriptEvent]]:
        """`async with audio.stream_transcript(…) as events`; leaving the block early cancels the call."""
        form = [Part("file", recording, name), *_fields(request), Part("stream", "true")]
        answer = self._session.events("/v1/audio/transcriptions", TranscriptEvent, form=form)
        async with aclosing(answer) as events:
            yield events

    @asynccontextmanager
    async def speak(self, request: SpeechRequest) -> AsyncIterator[AsyncIterator[bytes]]:
        """`async with audio.speak(…) as pieces`: the file in `request.response_format`, as it is made."""
        body = msgspec.json.encode({**without_none(request), "stream_format": "audio"})
        async with self._session.request("POST", "/v1/audio/speech", body) as response:
            yield pieces(response)

    def listen(
        self, request: TranscriptionRequest, sound: AsyncIterator[bytes]
    ) -> AbstractAsyncContextManager[AsyncIterator[LiveEvent]]:
        """`async with audio.listen(r, sound) as events`: `sound` is mono PCM, 16 kHz, 16 bits."""
        return listening(self._session, request, sound)

    async def voices(self) -> list[Voice]:
        return decode(await self._session.body("GET", "/v1/audio/voices"), _Voices).data


def _fields(request: TranscriptionRequest) -> list[Part]:
    """What a form says of a request; the recording and the task are said elsewhere."""
    given: Mapping[str, Any] = without_none(request)
    fields: list[Part] = []
    for name, value in given.items():
        if name in ("task", "stream", "live") or value == "":
            continue
        for item in value if isinstance(value, list) else [value]:
            text = str(item).lower() if isinstance(item, bool) else str(item)
            fields.append(Part(f"{name}[]" if isinstance(value, list) else name, text))
    return fields
