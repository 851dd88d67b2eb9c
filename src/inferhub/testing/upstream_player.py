"""Plays one script on one connection of the scripted upstream, in whatever dialect was asked.

It speaks to the socket itself, because most of its faults are wire-level. It does not know any dialect: it
strikes by the `Kind` of events. Faults are in the tables below; each is also the name of a script's `mode`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final

import msgspec

from inferhub.testing.upstream_dialects.base import Event, Kind, UpstreamDialect
from inferhub.testing.upstream_script import (
    STREAM_HEAD,
    Script,
    bomb,
    chunk,
    frame,
    problem_headers,
    problem_message,
    response,
    stream_head,
)

_BURST = 64
_OVERSIZE_BYTES = 5 * 1024 * 1024
_IDLE_MS = 50
_HOME = b"http://upstream.invalid"
"""In an answer, this upstream itself."""

INSTEAD: Final[Mapping[str, str]] = {
    "html": "a page of HTML under 200",
    "slowhdr": "the head, byte by byte, never to its end",
    "bomb": "64 MiB of spaces as gzip",
    "empty": "200 without a body",
    "drop": "the connection closed before any head",
    "unstreamed": "the whole answer as JSON although a stream was asked for",
}
"""Modes that replace an answer from its head on; so does an HTTP status."""

STRIKES: Final[Mapping[str, str]] = {
    "hang": "silence",
    "rst": "a reset in the middle of an event",
    "cut": "the connection closed in the middle of an event, politely",
    "clean_cut": "the connection closed between two events, without the end of the body",
    "endless": "an event without an end",
    "oversize": "one legal event of 5 MiB",
    "bad_chunk": "a broken chunk size",
    "garbage": "an event that is not JSON",
    "half_json": "half an event, and the end of the body",
    "error": "the dialect's own error event",
    "noterm": "the end of the body, too early; without `fail_at`: everything but the terminal event",
    "keepalive": "comments for ever",
    "role_only": "what comes before the content, then silence",
    "idle": "events without content for ever",
}
"""Modes that strike when `fail_at` pieces of a stream are out; most have a meaning for whole answers too."""

CHANGES: Final[Mapping[str, str]] = {
    "wrong_type": "the right body under a wrong content type",
    "finish_twice": "the event with the reason of the end, twice",
    "usage_missing": "no usage",
    "gzip": "a compressed whole answer",
    "floats": "embeddings as numbers although base64 was asked for",
    "short": "one embedding or picture too few",
    "by_url": "pictures by address although they were to be enclosed",
    "inside_url": "pictures at an address inside the network",
}
"""Modes that change an answer without breaking it off."""

MODES = frozenset({"", *INSTEAD, *STRIKES, *CHANGES})


class Record(msgspec.Struct):
    """What happened to one request; times are `time.monotonic()` seconds."""

    id: str
    """The request's Idempotency-Key, x-request-id or what it calls its user, whichever comes first."""
    path: str
    connection: int
    """Which connection carried it, counted from 1: equal numbers mean a pooled connection."""
    accepted_s: float
    """When that connection was accepted."""
    read_s: float
    """When the whole request had arrived."""
    headers: dict[str, str]
    body: str
    first_byte_s: float | None = None
    abort_s: float | None = None
    """When the client was seen to leave before the answer was complete."""
    done_s: float | None = None
    """When the answer was complete."""
    pieces: int = 0
    """Events handed to the socket."""
    query: str = ""
    dialect: str = ""
    violations: list[str] = []
    """Where the request breaks the vendor's published rules; only a strict upstream looks."""


@dataclass(slots=True)
class Asked:
    """One request and what is written down about its answer."""

    dialect: UpstreamDialect
    request: Mapping[str, Any]
    path: str
    headers: Mapping[str, str]
    record: Record


class Player:
    """Answers one request."""

    def __init__(
        self, transport: asyncio.Transport, writable: asyncio.Event, script: Script, asked: Asked
    ) -> None:
        self._transport = transport
        self._writable = writable
        self._script = script
        self._asked = asked
        self._record = asked.record
        self._has_closed = False

    async def play(self) -> None:
        asked, mode = self._asked, self._script.mode
        await _pause(self._script.hdr_ms)
        if mode.isdigit() or mode in INSTEAD:
            await self._instead(mode)
        elif asked.dialect.streams(asked.request, asked.path):
            await self._stream()
        else:
            await self._whole()
        self._record.done_s = monotonic()

    async def _instead(self, mode: str) -> None:
        match mode:
            case "html":
                await self._write(response(200, b"<html><body>Welcome</body></html>", "text/html"))
            case "slowhdr":
                await self._drip_head()
            case "bomb":
                await self._write(bomb())
            case "empty":
                await self._write(response(200, b""))
            case "drop":
                await self._close()
            case "unstreamed":
                await self._whole()
            case _:
                message = problem_message(self._script, self._asked.headers)
                body = self._asked.dialect.problem(int(mode), message, self._script)
                await self._write(response(int(mode), body, headers=problem_headers(self._script)))

    # --- whole answers -----------------------------------------------------------------------

    async def _whole(self) -> None:
        script, asked = self._script, self._asked
        answer = asked.dialect.answer(script, asked.request, asked.path)
        await _pause(script.ttft_ms + script.gap_ms * script.n)
        kind = self._kind("application/json")
        answer = answer.replace(_HOME, b"http://" + asked.headers.get("host", "").encode())
        match script.mode:
            case "hang" | "role_only":
                await _forever()
            case "rst":
                await self._write(response(200, answer)[:-5])
                await self._reset()
            case "cut" | "clean_cut":
                await self._write(response(200, answer)[:-5])
                await self._close()
            case "garbage" | "bad_chunk":
                answer = b"\x00\xff not json"
            case "half_json" | "noterm":
                answer = answer[: len(answer) // 2]
            case "error":
                answer = asked.dialect.problem(500, "It broke.", script)
            case "endless" | "oversize":
                await self._endless(b"[", b" " * 65536)
            case "keepalive" | "idle":
                await self._endless(b" ", b" ", gap_ms=script.gap_ms or _IDLE_MS)
            case "wrong_type":
                kind = "text/plain"
            case "gzip":
                packed = zlib.compress(answer, wbits=31)
                await self._write(response(200, packed, headers="content-encoding: gzip\r\n"))
                return
        await self._split(response(200, answer, kind))

    # --- streams -----------------------------------------------------------------------------

    async def _stream(self) -> None:
        script, asked = self._script, self._asked
        events = asked.dialect.events(script, asked.request, asked.path)
        kind = "text/plain" if script.mode == "wrong_type" else self._kind("text/event-stream; charset=utf-8")
        await self._write(stream_head(kind))
        if script.mode == "role_only":
            await self._openings()
        sent = 0
        for position, event in enumerate(events):
            is_counted = event.kind is not Kind.OPENING
            if is_counted:
                await _pause(script.gap_ms if sent else script.ttft_ms)
            # With `fail_at` 0 it strikes before anything, later after the last of the pieces it lets pass.
            if sent == (script.fail_at or 0) and (sent or not position) and await self._strike(event):
                return
            await self._event(event)
            sent += is_counted
            if position % _BURST == 0:
                # Let other connections, the log among them, have their turn in an endless burst.
                await asyncio.sleep(0)
        await self._write(b"0\r\n\r\n")

    def _kind(self, usual: str) -> str:
        content_type = self._asked.dialect.content_type
        return content_type(self._asked.request, self._asked.path) if content_type else usual

    async def _openings(self) -> None:
        """What comes before the content, then nothing."""
        asked = self._asked
        await self._event(asked.dialect.idle(self._script, asked.request, asked.path))
        for event in asked.dialect.events(self._script, asked.request, asked.path):
            if event.kind is not Kind.OPENING:
                break
            await self._event(event)
        await _forever()

    async def _strike(self, event: Event) -> bool:
        """Misbehave as the script says before this event. True when the stream ends with it."""
        script, asked = self._script, self._asked
        await self._strike_for_ever()
        match script.mode:
            case "oversize":
                await self._event(asked.dialect.padded(script, asked.request, asked.path, _OVERSIZE_BYTES))
                return False
            case "bad_chunk":
                await self._write(b"zz\r\n")
            case "garbage":
                await self._event(Event(b"\x00\xff not json", name=event.name))
            case "half_json":
                half = self._framed(event).rstrip()
                await self._write(chunk(half[: len(half) // 2 + 1]))
            case "error":
                await self._event(asked.dialect.broke(script))
            case "noterm" if script.fail_at is not None:
                pass
            case _:
                return False
        await self._write(b"0\r\n\r\n")
        return True

    async def _strike_for_ever(self) -> None:
        """The modes after which nothing else comes: they end when the client leaves."""
        script, asked = self._script, self._asked
        match script.mode:
            case "hang":
                await _forever()
            case "rst":
                await self._write(b"40\r\ndata: {")
                await self._reset()
            case "cut":
                await self._write(b"40\r\ndata: {")
                await self._close()
            case "clean_cut":
                await self._close()
            case "endless":
                await self._endless(b"data: ", b"x" * 65536)
            case "keepalive":
                await self._endless(b"", b": ping\n\n", gap_ms=script.gap_ms or _IDLE_MS)
            case "idle":
                idle = asked.dialect.idle(script, asked.request, asked.path)
                await self._endless(b"", self._framed(idle), gap_ms=script.gap_ms or _IDLE_MS)

    async def _event(self, event: Event) -> None:
        mode = self._script.mode
        if event.kind is Kind.TERMINAL and mode == "noterm" and self._script.fail_at is None:
            return
        # Dialects whose last piece says why it ends have nothing that closes before the terminal event.
        is_end = event.kind is Kind.CLOSING or (event.kind is Kind.TERMINAL and not self._has_closed)
        self._has_closed = self._has_closed or is_end
        for _ in range(2 if is_end and mode == "finish_twice" else 1):
            await self._split(self._framed(event), is_chunked=True)
            self._record.pieces += 1

    def _framed(self, event: Event) -> bytes:
        if self._asked.dialect.sends_bytes(self._asked.request, self._asked.path):
            return event.data
        return frame(event.data, event.name, self._script, is_first=not self._record.pieces)

    async def _split(self, data: bytes, *, is_chunked: bool = False) -> None:
        size = self._script.split or len(data)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            await self._write(chunk(piece) if is_chunked else piece)
            if self._script.split:
                await asyncio.sleep(self._script.drip_ms / 1000)

    # --- the wire ----------------------------------------------------------------------------

    async def _write(self, data: bytes) -> None:
        if self._record.first_byte_s is None:
            self._record.first_byte_s = monotonic()
        self._transport.write(data)
        if not self._writable.is_set():
            await self._writable.wait()

    async def _drip_head(self) -> None:
        for byte in STREAM_HEAD[:-4]:
            await self._write(bytes([byte]))
            await _pause(self._script.gap_ms or 100)
        await _forever()

    async def _endless(self, start: bytes, more: bytes, gap_ms: float = 0) -> None:
        """Send until the client leaves."""
        if self._record.first_byte_s is None:
            await self._write(stream_head("application/json"))
        if start:
            await self._write(chunk(start))
        while True:
            await self._write(chunk(more))
            self._record.pieces += 1
            await _pause(gap_ms)
            await asyncio.sleep(0)

    async def _close(self) -> None:
        """Close with FIN, after what was written."""
        self._record.done_s = monotonic()
        self._transport.close()
        await _forever()

    async def _reset(self) -> None:
        """Close with RST instead of FIN, after what was written had time to arrive."""
        await _pause(20)
        sock: socket.socket = self._transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._record.done_s = monotonic()
        self._transport.abort()
        await _forever()


async def _pause(duration_ms: float) -> None:
    if duration_ms:
        await asyncio.sleep(duration_ms / 1000)


async def _forever() -> None:
    await asyncio.Event().wait()
