"""Turns the events of one stream into `Delta`s that carry the upstream's own bytes.

Every event is decoded once, for the payload that the rings count; its bytes go on as they are. Only events
that a client could not read as they stand are written anew.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from inferhub.core.call import Delta, Finished
from inferhub.core.errors import InferHubError
from inferhub.core.usage import Usage
from inferhub.modalities.chat import ChatDelta
from inferhub.modalities.completion import CompletionDelta, prompts
from inferhub.wire.openai_chat import ChatReader, introduced, parse_chat_chunk
from inferhub.wire.openai_completion import CompletionReader, parse_completion_chunk
from inferhub.wire.openai_errors import read_stream_error
from inferhub.wire.openai_mend import mended_events, usage_event, with_usage, without_roles, without_usage
from inferhub.wire.openai_responses.reader import ResponsesReader
from inferhub.wire.sse import SseEvent, event_bytes

DONE = b"[DONE]"
_DONE_EVENT = b"data: [DONE]\n\n"
# Events without content are held until content comes, or until they are this much.
MAX_HELD_BYTES = 64 * 1024


class Reader(Protocol):
    is_mended: bool
    is_miscounted: bool

    def read(self, chunk: Any) -> list[Any]: ...

    def close(self) -> list[Any]: ...

    def usage(self) -> Usage: ...

    def end(self) -> Usage: ...


@dataclass(frozen=True, slots=True)
class Shape:
    """How one streaming modality is written."""

    parse: Callable[[bytes], Any]
    reader: Callable[[int], Reader]
    choices: Callable[[Any], int]
    silence: Callable[[], Any]
    """A payload that says nothing."""
    introduced: Callable[[Any], set[int]]
    """Which choices an event gives a role."""


SHAPES = {
    "chat": Shape(parse_chat_chunk, ChatReader, lambda request: request.n or 1, ChatDelta, introduced),
    "completion": Shape(
        parse_completion_chunk,
        CompletionReader,
        lambda request: len(prompts(request)) * (request.n or 1),
        CompletionDelta,
        lambda _: set(),
    ),
}


class Lane:
    """One stream. `feed` what each network piece held, then `end`."""

    def __init__(self, shape: Shape, request: Any, *, is_raw: bool, secrets: tuple[str, ...]) -> None:
        self.is_done = False
        """Whether the upstream said that it is done."""
        self.failure: InferHubError | None = None
        """To be raised after the deltas that `feed` returned."""
        self._parse = shape.parse
        self._silence = shape.silence
        self._introduces = shape.introduced
        self._introduced: set[int] = set()
        self._reader = shape.reader(shape.choices(request))
        self._is_raw = is_raw
        self._secrets = secrets
        options = request.stream_options
        self._wants_usage = bool(options and options.include_usage)
        self._held = b""
        """Events without content, until one with content comes."""
        self._closing = b""
        self._last = b""

    def feed(self, datas: list[bytes]) -> list[Delta]:
        """The deltas of one network piece, all but the last marked as followed by another."""
        pieces: list[tuple[Any, bytes | None]] = []
        parse, read = self._parse, self._reader.read
        try:
            for data in datas:
                if data == DONE:
                    self.is_done = True
                    break
                chunk = parse(data)
                if chunk.error:
                    raise read_stream_error(chunk.error, self._secrets)
                payloads = read(chunk)
                if not self._is_raw:
                    pieces += [(payload, None) for payload in payloads]
                    continue
                event = self._event(data, chunk, payloads)
                if len(payloads) == 1:
                    pieces.append((payloads[0], event))
                elif payloads:
                    pieces.append((payloads[0], event))
                    pieces += [(payload, b"") for payload in payloads[1:]]
                elif event:
                    pieces.append((self._silence(), event))
        except InferHubError as error:
            self.failure = error
        deltas = [Delta(payload, event, True) for payload, event in pieces]
        if pieces:
            deltas[-1] = Delta(*pieces[-1])
        return deltas

    def end(self) -> list[Delta | Finished]:
        """What is still owed, and the end. Raises `UpstreamFailed` where the answer was cut off."""
        owed = self._reader.close() if self.is_done else []
        usage = self._reader.end()
        if not self._is_raw:
            return [*(Delta(payload) for payload in owed), Finished(usage)]
        deltas: list[Delta | Finished] = []
        for payload in owed:
            event = mended_events(self._last, [payload], None)
            deltas.append(Delta(payload, self._held + event))
            self._held = b""
        if self._wants_usage and not self._closing and usage.source == "unknown":
            self._closing = usage_event(self._last, usage)
        return [*deltas, Finished(usage, raw=self._held + self._closing + _DONE_EVENT)]

    def _event(self, data: bytes, chunk: Any, payloads: list[Any]) -> bytes:
        """The event that goes with these payloads; kept for later where there are none."""
        reader = self._reader
        if b'"role"' in data:
            data = self._introduce(data, chunk)
        self._last = data
        if reader.is_mended:
            event = mended_events(data, payloads, reader.usage() if self._wants_usage else None)
        elif not chunk.choices and chunk.usage is not None:
            if self._wants_usage:
                self._closing += event_bytes(
                    with_usage(data, reader.usage()) if reader.is_miscounted else data
                )
            return b""
        elif not self._wants_usage and b'"usage"' in data:
            # Asked for on everybody's behalf.
            event = event_bytes(without_usage(data))
        elif reader.is_miscounted:
            event = event_bytes(with_usage(data, reader.usage()))
        else:
            event = event_bytes(data) if b"\n" in data else b"data: " + data + b"\n\n"
        if self._held:
            event, self._held = self._held + event, b""
        if not payloads and len(event) < MAX_HELD_BYTES:
            self._held = event
            return b""
        return event

    def _introduce(self, data: bytes, chunk: Any) -> bytes:
        """Some upstreams give every event a role; clients expect it once for each choice."""
        given = self._introduces(chunk)
        again = given & self._introduced
        self._introduced |= given
        return without_roles(data, again) if again else data


class ResponsesLane:
    """One stream of Responses. `feed` the events of each network piece, then `end`."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self.failure: InferHubError | None = None
        """To be raised after the deltas that `feed` returned."""
        self._reader = ResponsesReader(secrets)
        self._held = b""

    @property
    def is_done(self) -> bool:
        return self._reader.is_finished

    def feed(self, events: list[SseEvent]) -> list[Delta]:
        """The deltas of one network piece, all but the last marked as followed by another."""
        deltas: list[Delta] = []
        for name, data in events:
            if self.is_done:
                # Nothing may follow; some servers close with the `[DONE]` of chat completions.
                break
            try:
                payloads = self._reader.read(name.decode("latin-1"), data)
            except InferHubError as error:
                self.failure = error
                break
            self._held += event_bytes(data, name)
            if not payloads and len(self._held) > MAX_HELD_BYTES:
                payloads = [ChatDelta()]
            for payload in payloads:
                deltas.append(Delta(payload, self._held, True))
                self._held = b""
        if deltas:
            deltas[-1] = Delta(deltas[-1].payload, deltas[-1].raw)
        return deltas

    def end(self) -> Finished:
        """Raises `UpstreamFailed` where the answer was cut off."""
        return Finished(self._reader.end(), raw=self._held)
