"""The scripted upstream: a process that speaks vendors' dialects and misbehaves on request.

`python -m inferhub.testing.upstream --port 0` prints `{"url": …}` as its first line; tests start it with
`testing.upstream_process.Upstream`. It logs on `time.monotonic()`, which processes of one machine share.
Scripts are read by `upstream_script` and played by `upstream_player`. Never for production.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections import Counter, deque
from time import monotonic
from typing import Any, cast

import msgspec

from inferhub.testing.upstream_dialects.base import BadRequest, UpstreamDialect, load_dialects
from inferhub.testing.upstream_forms import FORM, BadForm, described, read_form
from inferhub.testing.upstream_player import MODES, Asked, Player, Record
from inferhub.testing.upstream_script import (
    SCRIPT_MARK,
    Script,
    named,
    parse_head,
    read_script,
    refusal,
    response,
)
from inferhub.testing.upstream_sounds import picture

_LOG_LIMIT = 2000
_LOGGED_BODY_BYTES = 64 * 1024
_MAX_REQUEST_BYTES = 32 * 1024 * 1024
_READY_MADE = ("/v1/chat/completions", "/v1/completions")
_PLAIN = Script()


class _Peek(msgspec.Struct):
    """What decides whether the one answer that was made beforehand fits."""

    stream: bool | None = None
    n: int | None = None
    prompt: str | list[Any] = ""
    logprobs: bool | int | None = None
    user: str | None = None

    @property
    def is_plain(self) -> bool:
        is_one = isinstance(self.prompt, str) or len(self.prompt) == 1
        return is_one and not self.stream and self.n in {None, 1} and not self.logprobs


class _Server:
    """What all connections share."""

    def __init__(self, *, strict: bool, script: str) -> None:
        self.log: deque[Record] = deque(maxlen=_LOG_LIMIT)
        self.connections = 0
        self.open: set[_Connection] = set()
        self.strict = strict
        self.script = script
        """Of requests without one of their own."""
        self.dialects = load_dialects()
        self.struck: Counter[str] = Counter()
        """How often a request was met by a script with `times`."""
        # Made once: without a script and without `stream` the answer is always the same bytes.
        self.ready_made = {path: self._ready_made(path) for path in _READY_MADE}

    def _ready_made(self, path: str) -> bytes:
        dialect = self.dialect(path)
        assert dialect is not None
        return response(200, dialect.answer(_PLAIN, {}, path))

    def dialect(self, path: str) -> UpstreamDialect | None:
        return next((dialect for dialect in self.dialects if dialect.answers(path)), None)

    def script_of(self, headers: dict[str, str], request: dict[str, Any], record: Record) -> Script:
        """The request's script or the server's. Raises ValidationError."""
        script = read_script(headers.get("x-script") or "", named(request))
        script = script or read_script(self.script, None) or _PLAIN
        if script.mode not in MODES and not script.mode.isdigit():
            raise msgspec.ValidationError(f"no mode is called {script.mode!r}")
        if script.times:
            # Attempts of one request share their trace, or else the name they came with.
            name = headers.get("traceparent", "").partition("-")[2][:32] or record.id
            self.struck[name] += 1
            if self.struck[name] > script.times:
                return msgspec.structs.replace(script, mode="")
        return script


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
            method, path, query, headers = parse_head(bytes(self._buffer[:end]))
            length = int(headers.get("content-length", "0"))
            if length > _MAX_REQUEST_BYTES or "transfer-encoding" in headers:
                self._transport.abort()
                return
            start = end + 4
            if len(self._buffer) < start + length:
                return
            body = bytes(self._buffer[start : start + length])
            del self._buffer[: start + length]
            if method == "POST":
                self._serve(path, query, headers, body)
            else:
                self._transport.write(self._control(method, path, body))

    def _serve(self, path: str, query: str, headers: dict[str, str], body: bytes) -> None:
        dialect = self._server.dialect(path)
        if dialect is None:
            self._transport.write(refusal(404, f"No such address: {path}."))
            return
        read_s = monotonic()
        name = headers.get("idempotency-key") or headers.get("x-request-id") or ""
        logged = body[:_LOGGED_BODY_BYTES].decode(errors="replace")
        record = Record(name, path, self._number, self._accepted_s, read_s, headers, logged)
        record.query, record.dialect = query, dialect.name
        try:
            if self._is_ready_made(record, body):
                self._server.log.append(record)
                self._transport.write(self._server.ready_made[path])
                record.first_byte_s = record.done_s = monotonic()
                return
            request = _decoded(headers, body)
            if headers.get("content-type", "").startswith(FORM):
                record.body = msgspec.json.encode(described(request)).decode()
            record.id = record.id or named(request) or ""
            script = self._server.script_of(headers, request, record)
        except (msgspec.DecodeError, UnicodeDecodeError, BadForm) as error:
            self._transport.write(refusal(400, f"Bad request or script: {error}"))
            return
        if self._server.strict:
            record.violations = dialect.violations(path, headers, body)
        self._server.log.append(record)
        self._record = record
        asked = Asked(dialect, request, path, headers, record)
        player = Player(self._transport, self._writable, script, asked)
        self._task = asyncio.get_running_loop().create_task(player.play())
        self._task.add_done_callback(self._played)

    def _is_ready_made(self, record: Record, body: bytes) -> bool:
        """A look that is cheap: what benchmarks ask must cost next to nothing here."""
        if record.path not in self._server.ready_made or self._server.strict or self._server.script:
            return False
        if "x-script" in record.headers or SCRIPT_MARK.encode() in body:
            return False
        peek = msgspec.json.decode(body, type=_Peek)
        record.id = record.id or peek.user or ""
        return peek.is_plain

    def _played(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            self._transport.abort()
            return
        error = task.exception()
        if isinstance(error, BadRequest):
            self._transport.write(refusal(400, str(error)))
        elif error is not None:
            # A fault of this program: whoever waits for the answer should not wait for its time limit.
            self._transport.abort()
            raise error
        self._serve_buffered()

    def _control(self, method: str, path: str, body: bytes) -> bytes:
        server = self._server
        match method, path:
            case "DELETE", "/log":
                server.log.clear()
                server.struck.clear()
                return response(200, b"{}")
            case "GET", "/log":
                return response(200, msgspec.json.encode(list(server.log)))
            case "PUT", "/script":
                server.script = body.decode()
                return response(200, b"{}")
            case "GET", "/v1/models":
                model = {
                    "id": "scripted",
                    "object": "model",
                    "created": 1_700_000_000,
                    "owned_by": "inferhub",
                }
                return response(200, msgspec.json.encode({"object": "list", "data": [model]}))
        if method == "GET" and path.startswith("/pictures/"):
            return _picture(path)
        return refusal(404, f"No such address: {path}.")


def _decoded(headers: dict[str, str], body: bytes) -> dict[str, Any]:
    kind = headers.get("content-type", "")
    if kind.startswith(FORM):
        return read_form(kind, body)
    return msgspec.json.decode(body, type=dict[str, Any])


def _picture(path: str) -> bytes:
    """`/pictures/64x48.png`."""
    width, _, height = path.rpartition("/")[2].partition(".")[0].partition("x")
    return response(200, picture(int(width), int(height)), "image/png")


# --- the process -------------------------------------------------------------------------------


async def serve(host: str, port: int, *, strict: bool, script: str, until_eof: bool) -> None:
    """Serve until SIGTERM or SIGINT, or until standard input ends when `until_eof`."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if until_eof:
        # The parent holds our standard input: when it dies, so do we.
        loop.add_reader(sys.stdin.fileno(), stop.set)
    shared = _Server(strict=strict, script=script)
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
    parser.add_argument("--strict", action="store_true", help="check requests by the vendors' own rules")
    parser.add_argument("--script", default="", help="what requests without a script of their own meet")
    parser.add_argument("--until-eof", action="store_true", help="stop when standard input ends")
    given = parser.parse_args()
    import uvloop

    uvloop.run(
        serve(given.host, given.port, strict=given.strict, script=given.script, until_eof=given.until_eof)
    )


if __name__ == "__main__":
    main()
