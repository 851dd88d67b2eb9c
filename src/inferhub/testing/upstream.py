"""The scripted upstream: an OpenAI-shaped server, in its own process, that misbehaves on request.

`python -m inferhub.testing.upstream --port 0` prints `{"url": …}` as its first line; tests start it with
`testing.upstream_process.Upstream`. It logs on `time.monotonic()`, which processes of one machine share.
It speaks to the socket itself, because its faults are wire-level. Never for production.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import struct
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import cast

import msgspec

from inferhub.testing.upstream_script import (
    STREAM_HEAD,
    Script,
    UpstreamRequest,
    bomb,
    chat_answer,
    chat_events,
    chunk,
    completion_answer,
    completion_events,
    embedding_answer,
    envelope,
    frame,
    is_plain,
    parse_head,
    problem,
    problem_of,
    read_script,
    response,
)

_LOG_LIMIT = 2000
_BURST = 64
_LOGGED_BODY_BYTES = 64 * 1024
_MAX_REQUEST_BYTES = 32 * 1024 * 1024
_CHAT, _COMPLETION, _EMBEDDING = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
_PLAIN = Script()

_ANSWERS: dict[str, Callable[[Script, UpstreamRequest], bytes]] = {
    _CHAT: chat_answer,
    _COMPLETION: completion_answer,
    _EMBEDDING: embedding_answer,
}
_EVENTS: dict[str, Callable[[Script, UpstreamRequest], Iterator[bytes]]] = {
    _CHAT: chat_events,
    _COMPLETION: completion_events,
}


class Record(msgspec.Struct):
    """What happened to one request; times are `time.monotonic()` seconds."""

    id: str
    """The request's Idempotency-Key, x-request-id or `user`, whichever comes first."""
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


class _Server:
    """What all connections share."""

    def __init__(self) -> None:
        self.log: deque[Record] = deque(maxlen=_LOG_LIMIT)
        self.connections = 0
        self.open: set[_Connection] = set()
        # Made once: without a script and without `stream` the answer is always the same bytes.
        request = UpstreamRequest()
        self.ready_made = {
            path: response(200, _ANSWERS[path](_PLAIN, request)) for path in (_CHAT, _COMPLETION)
        }


class _Connection(asyncio.Protocol):
    """One client connection: parses requests, answers one at a time, notices when the client leaves."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._buffer = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._record: Record | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._accepted_s = monotonic()
        self._server.connections += 1
        self._number = self._server.connections
        self._server.open.add(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._serve_buffered()

    def eof_received(self) -> None:
        self._client_left()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open.discard(self)
        self._client_left()

    def abort(self) -> None:
        self._transport.abort()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _client_left(self) -> None:
        if self._lost:
            return
        self._lost = True
        if self._record is not None and self._record.done_s is None:
            self._record.abort_s = monotonic()
        if self._task is not None:
            self._task.cancel()

    # --- requests ----------------------------------------------------------------------------

    def _serve_buffered(self) -> None:
        """Answer every complete request in the buffer, one after the other."""
        while self._task is None and not self._lost:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            method, path, headers = parse_head(bytes(self._buffer[:end]))
            length = int(headers.get("content-length", "0"))
            if length > _MAX_REQUEST_BYTES or "transfer-encoding" in headers:
                self._transport.abort()
                return
            start = end + 4
            if len(self._buffer) < start + length:
                return
            body = bytes(self._buffer[start : start + length])
            del self._buffer[: start + length]
            self._serve(method, path, headers, body)

    def _serve(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        if method != "POST":
            self._transport.write(self._get(method, path))
            return
        if path not in _ANSWERS:
            self._transport.write(problem(404, f"No such address: {path}."))
            return
        read_s = monotonic()
        try:
            request = msgspec.json.decode(body, type=UpstreamRequest)
            script = read_script(headers.get("x-script", ""), request.user)
        except msgspec.DecodeError as error:
            self._transport.write(problem(400, f"Bad request or script: {error}"))
            return
        name = headers.get("idempotency-key") or headers.get("x-request-id") or request.user or ""
        logged = body[:_LOGGED_BODY_BYTES].decode(errors="replace")
        record = Record(name, path, self._number, self._accepted_s, read_s, headers, logged)
        self._server.log.append(record)
        if script is None and path in self._server.ready_made and is_plain(request):
            self._transport.write(self._server.ready_made[path])
            record.first_byte_s = record.done_s = monotonic()
            return
        self._record = record
        player = _Player(self._transport, self._writable, record, script or _PLAIN)
        self._task = asyncio.get_running_loop().create_task(player.play(request))
        self._task.add_done_callback(self._played)

    def _played(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            self._transport.abort()
            return
        task.result()
        self._serve_buffered()

    def _get(self, method: str, path: str) -> bytes:
        if path == "/log" and method == "DELETE":
            self._server.log.clear()
            return response(200, b"{}")
        if path == "/log":
            return response(200, msgspec.json.encode(list(self._server.log)))
        if path == "/v1/models":
            model = {"id": "scripted", "object": "model", "created": 1_700_000_000, "owned_by": "inferhub"}
            return response(200, msgspec.json.encode({"object": "list", "data": [model]}))
        return problem(404, f"No such address: {path}.")


class _Player:
    """Plays one script on one connection."""

    def __init__(
        self, transport: asyncio.Transport, writable: asyncio.Event, record: Record, script: Script
    ) -> None:
        self._transport = transport
        self._writable = writable
        self._record = record
        self._script = script

    async def play(self, request: UpstreamRequest) -> None:
        script, mode = self._script, self._script.mode
        await _pause(script.hdr_ms)
        if mode.isdigit():
            await self._write(problem_of(script, self._record.headers))
        elif mode == "html":
            await self._write(response(200, b"<html><body>Welcome</body></html>", "text/html"))
        elif mode == "slowhdr":
            await self._drip_head()
        elif mode == "bomb":
            await self._write(bomb())
        elif request.stream and self._record.path in _EVENTS:
            await self._stream(_EVENTS[self._record.path](script, request))
        else:
            await self._whole(_ANSWERS[self._record.path](script, request))
        self._record.done_s = monotonic()

    async def _whole(self, answer: bytes) -> None:
        script = self._script
        await _pause(script.ttft_ms + script.gap_ms * script.n)
        match script.mode:
            case "hang":
                await _forever()
            case "rst":
                await self._write(response(200, answer)[:-5])
                await self._reset()
            case "garbage":
                answer = b"\x00\xff not json"
            case "half_json":
                answer = answer[: len(answer) // 2]
            case "error":
                answer = envelope("It broke.", "server_error", None, None)
            case "endless":
                await self._endless(b"[", b" " * 65536)
            case "gzip":
                packed = zlib.compress(answer, wbits=31)
                await self._write(response(200, packed, headers="content-encoding: gzip\r\n"))
                return
        await self._write(response(200, answer))

    async def _stream(self, payloads: Iterator[bytes]) -> None:
        script = self._script
        await self._write(STREAM_HEAD)
        if script.mode == "keepalive":
            await self._endless(b"", b": ping\n\n", gap_ms=script.gap_ms or 50)
        await _pause(script.ttft_ms)
        for position, payload in enumerate(payloads):
            if position:
                await _pause(script.gap_ms)
            if position == (script.fail_at or 0) and await self._strike(payload):
                return
            await self._event(frame(payload, script, is_first=position == 0))
            if position % _BURST == 0:
                # Let other connections, the log among them, have their turn in an endless burst.
                await asyncio.sleep(0)
        await self._write(b"0\r\n\r\n")

    async def _strike(self, payload: bytes) -> bool:
        """Misbehave as the script says before this event. True when the stream ends with it."""
        match self._script.mode:
            case "hang":
                await _forever()
            case "rst":
                await self._write(b"40\r\ndata: {")
                await self._reset()
            case "endless":
                await self._endless(b"data: ", b"x" * 65536)
            case "bad_chunk":
                await self._write(b"zz\r\n")
            case "garbage":
                await self._event(b"data: \x00\xff not json\n\n")
            case "half_json":
                await self._event(b"data: " + payload[: len(payload) // 2] + b"\n\n")
            case "error":
                await self._event(b"data: " + envelope("It broke.", "server_error", None, None) + b"\n\n")
            case "noterm" if self._script.fail_at is not None:
                pass
            case _:
                return False
        await self._write(b"0\r\n\r\n")
        return True

    async def _event(self, event: bytes) -> None:
        size = self._script.split or len(event)
        for start in range(0, len(event), size):
            await self._write(chunk(event[start : start + size]))
            if size < len(event):
                await asyncio.sleep(0)
        self._record.pieces += 1

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
            await self._write(STREAM_HEAD.replace(b"text/event-stream", b"application/json"))
        if start:
            await self._write(chunk(start))
        while True:
            await self._write(chunk(more))
            self._record.pieces += 1
            await _pause(gap_ms)
            await asyncio.sleep(0)

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


# --- the process -------------------------------------------------------------------------------


async def serve(host: str, port: int, *, until_eof: bool) -> None:
    """Serve until SIGTERM or SIGINT, or until standard input ends when `until_eof`."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if until_eof:
        # The parent holds our standard input: when it dies, so do we.
        loop.add_reader(sys.stdin.fileno(), stop.set)
    shared = _Server()
    server = await loop.create_server(lambda: _Connection(shared), host, port, backlog=1024)
    bound = server.sockets[0].getsockname()
    sys.stdout.write(f'{{"url":"http://{bound[0]}:{bound[1]}"}}\n')
    sys.stdout.flush()
    await stop.wait()
    server.close()
    for connection in tuple(shared.open):
        connection.abort()
    await asyncio.sleep(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m inferhub.testing.upstream", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--until-eof", action="store_true", help="stop when standard input ends")
    options = parser.parse_args()
    import uvloop

    uvloop.run(serve(options.host, options.port, until_eof=options.until_eof))


if __name__ == "__main__":
    main()
