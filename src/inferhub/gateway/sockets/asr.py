"""`/ws/asr`: live transcription in plain words. Binary messages are sound, the others say what is to be done.

One connection, one transcription after the other. Whatever a client gets wrong is answered by an `error`.
"""

from __future__ import annotations

import msgspec

from inferhub.core.call import Frame, Started
from inferhub.core.errors import InferHubError, Invalid
from inferhub.core.usage import Usage
from inferhub.gateway.identity import Identity
from inferhub.gateway.payload import explain, read_object
from inferhub.gateway.problems import problem_of
from inferhub.gateway.sockets.asr_events import (
    AudioUsage,
    Clear,
    Commit,
    Committed,
    Done,
    End,
    Error,
    Event,
    Final,
    Partial,
    Ready,
    Said,
    SpeechStarted,
    SpeechStopped,
    Start,
)
from inferhub.gateway.sockets.live import Listening, LiveCall, Reporter
from inferhub.gateway.sockets.socket import Socket, attend
from inferhub.gateway.sockets.switchboard import Caller, PlainDoor
from inferhub.modalities.transcription import TranscriptDelta

_TYPES = "start, commit, clear and end"


class AsrEndpoint:
    subprotocol = "inferhub"

    def __init__(self, listening: Listening) -> None:
        self._listening = listening

    def identity(self, plain: Identity) -> PlainDoor:
        return PlainDoor(plain)

    def error_event(self, error: InferHubError) -> bytes:
        return _encode(Error(error=problem_of(error)))

    async def serve(self, socket: Socket, caller: Caller) -> None:
        await attend(socket, _Session(self._listening, socket, caller))


class _Session:
    """One connection."""

    def __init__(self, listening: Listening, socket: Socket, caller: Caller) -> None:
        self._listening = listening
        self._socket = socket
        self._caller = caller
        self._live: LiveCall | None = None
        self._has_failed = False
        """The sound that is still on its way to a call that failed is not one error after the other."""
        self._reporter = Reporter(self._started, self._said, self._done, self._failed)

    async def take(self, message: str | bytes) -> None:
        event_id: str | None = None
        try:
            if isinstance(message, bytes):
                return await self._hear(message)
            said = read_message(message, self._listening.limits.max_json_depth)
            event_id = said.event_id
            await self._obey(said)
        except InferHubError as error:
            await self._complain(error, event_id)
        return None

    async def finish(self) -> None:
        if self._live is not None:
            await self._live.finish()

    async def stop(self) -> None:
        if self._live is not None:
            await self._live.stop()

    async def _hear(self, sound: bytes) -> None:
        if self._live is None or self._live.is_over:
            if not self._has_failed:
                self._has_failed = True
                raise Invalid("Sound came before 'start'; it is left out.", code="not_started")
            return
        await self._live.hear(Frame(sound))

    async def _obey(self, said: Said) -> None:
        if isinstance(said, Start):
            if self._live is not None and not self._live.is_over:
                raise Invalid("A transcription is under way; send 'end' first.", code="already_started")
            self._live = LiveCall(self._listening, self._caller, said.request(), self._reporter)
            self._has_failed = False
            return
        if self._live is None or self._live.is_over:
            if isinstance(said, End) and self._has_failed:
                return  # its client could not know yet
            raise Invalid("Nothing is under way; send 'start' first.", code="not_started")
        match said:
            case Commit():
                await self._live.hear(Frame(event="commit"))
            case Clear():
                await self._live.hear(Frame(event="clear"))
            case End():
                await self._live.finish()

    # --- what becomes of the call ---

    async def _started(self, started: Started) -> None:
        assert self._live is not None  # noqa: S101 - it tells this
        await self._send(Ready(id=self._live.id, model=started.model))

    async def _said(self, delta: TranscriptDelta) -> None:
        event = _event(delta)
        if event is not None:
            await self._send(event)

    async def _done(self, usage: Usage) -> None:
        await self._send(Done(duration_s=usage.audio_ms / 1000, usage=AudioUsage(audio_ms=usage.audio_ms)))

    async def _failed(self, error: InferHubError) -> None:
        self._has_failed = True
        await self._complain(error, None)

    async def _complain(self, error: InferHubError, event_id: str | None) -> None:
        await self._send(Error(error=problem_of(error), event_id=event_id))

    async def _send(self, event: Event) -> None:
        await self._socket.send(_encode(event))


_encode = msgspec.json.Encoder().encode
_decoder: msgspec.json.Decoder[Said] = msgspec.json.Decoder(Said)


def read_message(text: str, max_depth: int) -> Said:
    """Raises `Invalid` and nothing else."""
    data = text.encode(errors="replace")
    tree = read_object(data, max_depth)
    if tree.get("type") not in ("start", "commit", "clear", "end"):
        named = tree.get("type")
        shown = f"{named[:40]!r} is no type of message" if isinstance(named, str) else "'type' is required"
        raise Invalid(f"{shown}; there are {_TYPES}. Sound comes in binary messages.", param="type")
    try:
        return _decoder.decode(data)
    except msgspec.ValidationError as error:
        raise explain(error, tree) from error


def _event(delta: TranscriptDelta) -> Event | None:
    utterance, at_s = delta.utterance, round(delta.at_s, 3)
    match delta.kind:
        case "speech_started":
            return SpeechStarted(utterance=utterance, at_s=at_s)
        case "partial":
            return Partial(utterance=utterance, text=delta.text, at_s=at_s, language=delta.language)
        case "speech_stopped":
            return SpeechStopped(utterance=utterance, at_s=at_s)
        case "committed":
            return Committed(utterance=utterance, at_s=at_s)
        case "final" if delta.segment is not None:
            segment = delta.segment
            return Final(
                utterance=utterance,
                text=segment.text,
                start=round(segment.start, 3),
                end=round(segment.end, 3),
                language=delta.language,
                language_probability=delta.language_probability,
                speaker=segment.speaker,
                words=segment.words,
            )
    return None
