"""One realtime connection: a client's events in, OpenAI's events out, and a live call underneath.

`endpoint` feeds it. A bad event is answered by `error`, with the id of the event, and changes nothing.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from inferhub.core.call import Frame, Started
from inferhub.core.clock import new_id
from inferhub.core.errors import InferHubError, Invalid, Unsupported
from inferhub.core.usage import Usage
from inferhub.gateway.payload import read_object
from inferhub.gateway.problems import problem_of
from inferhub.gateway.sockets.live import Listening, LiveCall, Reporter
from inferhub.gateway.sockets.realtime import events
from inferhub.gateway.sockets.realtime.config import ONLY_TRANSCRIPTION, Session, changed
from inferhub.gateway.sockets.realtime.growing import Growing
from inferhub.gateway.sockets.switchboard import Caller
from inferhub.modalities.transcription import Live, TranscriptDelta

_LEAST_MS = 100
"""Of sound, for a commit."""
_DEAF_S = 1.0
"""After a call that failed, so that a client that goes on talking does not make one call after the other."""
_MAX_EVENT_ID = 256
_OF_RESPONSES = ("response.", "conversation.", "output_audio_buffer.")


class RealtimeSession:
    def __init__(
        self, given: Listening, caller: Caller, session: Session, send: Callable[[bytes], Awaitable[None]]
    ) -> None:
        self._given = given
        self._caller = caller
        self._session = session
        self._send_bytes = send
        self._live: LiveCall | None = None
        self._pending_bytes = 0
        """Of sound since the last commit or clear."""
        self._deaf_until_s = 0.0
        self._calls = 0
        self._before: str | None = None
        """The item before the next one."""
        self._open: dict[str, _Item] = {}
        self._reporter = Reporter(self._started, self._said, self._done, self._failed)

    async def begin(self) -> None:
        await self._send(events.SessionCreated(event_id=_event_id(), session=self._session))

    async def take(self, message: str | bytes) -> None:
        event_id: str | None = None
        try:
            if isinstance(message, bytes):
                raise Invalid(
                    "A binary message came; sound is sent as 'input_audio_buffer.append'.", code="not_text"
                )
            tree = read_object(message.encode(errors="replace"), self._given.limits.max_json_depth)
            given = tree.get("event_id")
            event_id = given[:_MAX_EVENT_ID] if isinstance(given, str) else None
            await self._obey(tree)
        except InferHubError as error:
            await self._send(error_event(error, event_id))

    async def finish(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            await live.finish()

    async def stop(self) -> None:
        if self._live is not None:
            await self._live.stop()

    # --- what a client says ---

    async def _obey(self, tree: dict[str, Any]) -> None:
        kind = tree.get("type")
        match kind:
            case "input_audio_buffer.append":
                await self._append(tree.get("audio"))
            case "input_audio_buffer.commit":
                await self._commit()
            case "input_audio_buffer.clear":
                await self._clear()
            case "session.update":
                await self._update(tree.get("session"))
            case str() if kind.startswith(_OF_RESPONSES):
                raise Unsupported(ONLY_TRANSCRIPTION, param="type")
            case _:
                raise Invalid(
                    f"Invalid value for 'type': {str(kind)[:60]!r}. There are session.update and "
                    "input_audio_buffer.append, .commit and .clear.",
                    param="type",
                    code="invalid_value",
                )

    async def _append(self, audio: Any) -> None:
        if not isinstance(audio, str):
            raise Invalid("'audio' is required: sound in base64.", param="audio")
        try:
            sound = base64.b64decode(audio, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Invalid("'audio' is not valid base64.", param="audio", code="invalid_audio") from error
        if not sound or time.monotonic() < self._deaf_until_s:
            return
        if self._live is None or self._live.is_over:
            self._calls += 1
            self._live = LiveCall(self._given, self._caller, self._session.request(), self._reporter)
        await self._live.hear(Frame(sound))
        self._pending_bytes += len(sound)

    async def _commit(self) -> None:
        heard_ms = self._pending_bytes / _bytes_per_ms(self._session)
        if self._live is None or self._live.is_over or heard_ms < _LEAST_MS:
            raise Invalid(
                f"The audio buffer holds {heard_ms:.0f} ms of sound; a commit needs {_LEAST_MS} ms.",
                code="input_audio_buffer_commit_empty",
            )
        self._pending_bytes = 0
        await self._live.hear(Frame(event="commit"))

    async def _clear(self) -> None:
        self._pending_bytes = 0
        if self._live is not None and not self._live.is_over:
            await self._live.hear(Frame(event="clear"))
        await self._send(events.Cleared(event_id=_event_id()))

    async def _update(self, wanted: Any) -> None:
        self._deaf_until_s = 0.0
        if not isinstance(wanted, dict):
            raise Invalid("'session' is required: an object.", param="session")
        session = changed(self._session, wanted)
        if session.request() != self._session.request():
            # What was said before belongs to what was set before.
            await self.finish()
            self._pending_bytes = 0
        self._session = session
        await self._send(events.SessionUpdated(event_id=_event_id(), session=session))

    # --- what becomes of the call ---

    async def _started(self, started: Started) -> None:
        """Nothing that this dialect has an event for."""

    async def _said(self, delta: TranscriptDelta) -> None:
        item = self._item(delta)
        match delta.kind:
            case "speech_started":
                await self._send(
                    events.SpeechStarted(
                        event_id=_event_id(), audio_start_ms=_ms(delta.at_s), item_id=item.id
                    )
                )
            case "partial":
                await self._grow(item, item.text.partial(delta.text))
            case "speech_stopped":
                await self._send(
                    events.SpeechStopped(event_id=_event_id(), audio_end_ms=_ms(delta.at_s), item_id=item.id)
                )
                self._pending_bytes = 0
                await self._add(item)
            case "committed":
                await self._add(item)
            case "final" if delta.segment is not None:
                await self._complete(item, delta)

    def _item(self, delta: TranscriptDelta) -> _Item:
        assert self._live is not None or self._open  # noqa: S101 - a call tells this
        name = f"item_{self._caller.connection_id[-12:]}_{self._calls}_{delta.utterance}"
        if delta.kind in ("speech_started", "partial", "committed"):
            return self._open.setdefault(name, _Item(name))
        return self._open.get(name, _Item(name))

    async def _grow(self, item: _Item, text: str) -> None:
        if text:
            await self._send(events.TranscriptDelta(event_id=_event_id(), item_id=item.id, delta=text))

    async def _add(self, item: _Item) -> None:
        item.previous, self._before = self._before, item.id
        await self._send(
            events.Committed(event_id=_event_id(), item_id=item.id, previous_item_id=item.previous)
        )
        await self._send(
            events.ItemAdded(
                event_id=_event_id(), previous_item_id=item.previous, item=item.shown("in_progress", None)
            )
        )

    async def _complete(self, item: _Item, delta: TranscriptDelta) -> None:
        segment = delta.segment
        assert segment is not None  # noqa: S101 - `_said` looked
        await self._grow(item, item.text.final(segment.text))
        seconds = round(max(0.0, segment.end - segment.start), 3)
        await self._send(
            events.TranscriptCompleted(
                event_id=_event_id(),
                item_id=item.id,
                transcript=segment.text,
                usage=events.Duration(seconds=seconds),
            )
        )
        await self._send(
            events.ItemDone(
                event_id=_event_id(),
                previous_item_id=item.previous,
                item=item.shown("completed", segment.text),
            )
        )
        self._open.pop(item.id, None)

    async def _done(self, usage: Usage) -> None:
        self._open.clear()

    async def _failed(self, error: InferHubError) -> None:
        """Told for each utterance that it cost, or once where it cost none."""
        self._deaf_until_s = time.monotonic() + _DEAF_S
        lost, self._open = list(self._open.values()), {}
        problem = problem_of(error)
        for item in lost:
            await self._send(
                events.TranscriptFailed(
                    event_id=_event_id(),
                    item_id=item.id,
                    error=events.Problem(
                        type=problem.type, code=problem.code, message=problem.message, param=problem.param
                    ),
                )
            )
        if not lost:
            await self._send(error_event(error, None))

    async def _send(self, event: events.Event) -> None:
        await self._send_bytes(encode(event))


class _Item:
    """An utterance, as a part of the conversation."""

    def __init__(self, item_id: str) -> None:
        self.id = item_id
        self.previous: str | None = None
        self.text = Growing()

    def shown(self, status: Any, transcript: str | None) -> events.Item:
        return events.Item(id=self.id, status=status, content=[events.Content(transcript=transcript)])


encode = msgspec.json.Encoder().encode


def error_event(error: InferHubError, about: str | None) -> events.Error:
    problem = problem_of(error)
    return events.Error(
        event_id=_event_id(),
        error=events.AnsweredProblem(
            type=problem.type,
            code=problem.code,
            message=problem.message,
            param=problem.param,
            event_id=about,
        ),
    )


def _event_id() -> str:
    return new_id("event")


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _bytes_per_ms(session: Session) -> float:
    live = session.request().live or Live()
    return live.rate_hz * 2 / 1000 if live.format == "pcm16" else 8.0
