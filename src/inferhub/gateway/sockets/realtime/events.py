"""The events of the server, in the shapes that OpenAI's clients know. Written by `session`."""

from __future__ import annotations

from typing import Literal

import msgspec

from inferhub.gateway.sockets.realtime.config import Session


class Named(msgspec.Struct, kw_only=True):
    event_id: str


class SessionCreated(Named, kw_only=True, tag="session.created"):
    session: Session


class SessionUpdated(Named, kw_only=True, tag="session.updated"):
    session: Session


class SpeechStarted(Named, kw_only=True, tag="input_audio_buffer.speech_started"):
    audio_start_ms: int
    item_id: str


class SpeechStopped(Named, kw_only=True, tag="input_audio_buffer.speech_stopped"):
    audio_end_ms: int
    item_id: str


class Committed(Named, kw_only=True, tag="input_audio_buffer.committed"):
    item_id: str
    previous_item_id: str | None


class Cleared(Named, kw_only=True, tag="input_audio_buffer.cleared"):
    pass


class Content(msgspec.Struct, kw_only=True):
    type: Literal["input_audio"] = "input_audio"
    transcript: str | None = None


class Item(msgspec.Struct, kw_only=True):
    id: str
    object: Literal["realtime.item"] = "realtime.item"
    type: Literal["message"] = "message"
    status: Literal["in_progress", "completed"]
    role: Literal["user"] = "user"
    content: list[Content]


class ItemAdded(Named, kw_only=True, tag="conversation.item.added"):
    previous_item_id: str | None
    item: Item


class ItemDone(Named, kw_only=True, tag="conversation.item.done"):
    previous_item_id: str | None
    item: Item


_TRANSCRIPTION = "conversation.item.input_audio_transcription"


class TranscriptDelta(Named, kw_only=True, tag=f"{_TRANSCRIPTION}.delta"):
    item_id: str
    content_index: int = 0
    delta: str


class Duration(msgspec.Struct, kw_only=True):
    type: Literal["duration"] = "duration"
    seconds: float


class TranscriptCompleted(Named, kw_only=True, tag=f"{_TRANSCRIPTION}.completed"):
    item_id: str
    content_index: int = 0
    transcript: str
    usage: Duration


class Problem(msgspec.Struct, kw_only=True):
    type: str
    code: str | None
    message: str
    param: str | None


class TranscriptFailed(Named, kw_only=True, tag=f"{_TRANSCRIPTION}.failed"):
    item_id: str
    content_index: int = 0
    error: Problem


class AnsweredProblem(Problem, kw_only=True):
    event_id: str | None
    """Of the client's event that it is about."""


class Error(Named, kw_only=True, tag="error"):
    error: AnsweredProblem


Event = (
    SessionCreated
    | SessionUpdated
    | SpeechStarted
    | SpeechStopped
    | Committed
    | Cleared
    | ItemAdded
    | ItemDone
    | TranscriptDelta
    | TranscriptCompleted
    | TranscriptFailed
    | Error
)
