"""Writes the answer of one call: the only code that touches ASGI `send` on the inference routes.

A disconnect becomes `Task.cancel()`; an error before the first byte becomes a status, after it an event.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from inferhub.core.call import Call, Chunk, Delta, Finished, Handler, Started
from inferhub.core.errors import Draining, InferHubError, InternalError
from inferhub.gateway.dialects.base import Dialect
from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.payload import ClientGone, Receive
from inferhub.gateway.problems import OPENAI, Form, Headers, error_headers, problem_of, trail_headers
from inferhub.gateway.ratelimit import ratelimit_headers
from inferhub.modalities.base import EVENT_STREAM, JSON, Envelope

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_STREAM: Headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]

_LINGER_S = 2.0
_MAX_HELD_BYTES = 16 * 1024


class Connection(Protocol):
    """The socket below a request: what `protocol` adds to a scope as the extension `inferhub.connection`.

    ASGI would say the same through `receive`, at the price of a task for every request.
    """

    on_lost: Callable[[], None] | None
    """Called once, when the client has hung up."""

    @property
    def is_write_paused(self) -> bool:
        """True when the client reads slower than we write, so that the next write waits for it."""

    def abort(self) -> None:
        """Drop the connection, with whatever the client has not read."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """One HTTP request and the way back to its client."""

    receive: Receive
    send: Send
    limits: GatewayLimits
    common_headers: Callable[[], Headers]
    """Request id and timing; computed when the headers leave."""
    connection: Connection
    request_id: str = ""
    form: Form = OPENAI

    async def write(self, message: dict[str, Any]) -> None:
        """Bounded: a client that stops reading loses the connection, not our memory."""
        if not self.connection.is_write_paused:
            # Nearly always: nothing waits, so there is nothing to bound.
            return await self.send(message)
        try:
            async with asyncio.timeout(self.limits.write_timeout_s):
                return await self.send(message)
        except TimeoutError as error:
            self.connection.abort()
            raise ClientGone from error

    async def json(self, status: int, body: bytes, headers: Headers, *, is_last: bool = True) -> None:
        await self.whole(status, JSON, body, headers, is_last=is_last)

    async def whole(
        self, status: int, content_type: str, body: bytes, headers: Headers, *, is_last: bool = True
    ) -> None:
        fields = [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
        fields += self.common_headers()
        fields += headers
        await self.write({"type": "http.response.start", "status": status, "headers": fields})
        await self.write({"type": "http.response.body", "body": body, "more_body": not is_last})

    async def problem(self, error: InferHubError) -> None:
        headers = error_headers(error)
        status, body = self.form.status(error), self.form.body(error, self.request_id)
        if error.http not in (408, 413):
            return await self.json(status, body, headers)
        # The rest of the body is not wanted; keeping the connection would mean reading it.
        headers.append((b"connection", b"close"))
        await self.json(status, body, headers, is_last=False)
        await self._linger()
        return await self.write({"type": "http.response.body", "body": b""})

    async def _linger(self) -> None:
        """Let the client hear the answer: closing on unread bytes would reset the connection under it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while (await self.receive()).get("more_body", False):
                    pass


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the client asked for, and how it wants to read it."""

    dialect: Dialect
    request: Any
    """The dialect's own request struct."""
    seen_as: Envelope


async def answer(call: Call, wanted: Wanted, handler: Handler, exchange: Exchange) -> None:
    """Run the call and write its answer. Raises `ClientGone`; every other failure is answered."""
    if call.stream and wanted.dialect.writer is not None:
        await _Stream(call, wanted, handler, exchange).run()
    else:
        await _unary(call, wanted, handler, exchange)


async def _unary(call: Call, wanted: Wanted, handler: Handler, exchange: Exchange) -> None:
    payloads: list[Any] = []
    started: Started | None = None
    finished: Finished | None = None

    async def emit(chunk: Chunk) -> None:
        nonlocal started, finished
        if isinstance(chunk, Delta):
            payloads.append(chunk.payload)
        elif isinstance(chunk, Started):
            started = chunk
        else:
            finished = chunk

    try:
        async with CancelOnDisconnect(exchange.connection):
            await handler(call, emit)
        if started is None or finished is None:
            raise InternalError("The pipeline ended without an answer.")
        body = finished.raw
        if body is None:
            body = wanted.dialect.fold(wanted.request, wanted.seen_as, payloads, finished.usage)
    except InferHubError as error:
        return await exchange.problem(error)
    except asyncio.CancelledError:
        return await exchange.problem(_stopping())
    headers = _started_headers(started)
    if finished.cost_usd is not None:
        headers.append((b"x-inferhub-cost-usd", f"{finished.cost_usd:f}".encode()))
    content_type = wanted.dialect.content_type(wanted.request, is_stream=False)
    await exchange.whole(200, content_type, body, headers)
    return None


class _Stream:
    """Server-sent events, or sound. The head is held until the first chunk, or for `head_hold_s`."""

    def __init__(self, call: Call, wanted: Wanted, handler: Handler, exchange: Exchange) -> None:
        assert wanted.dialect.writer is not None  # noqa: S101 - `answer` checked it
        self._call = call
        self._handler = handler
        self._exchange = exchange
        self._writer = wanted.dialect.writer(wanted.request, wanted.seen_as)
        self._content_type = wanted.dialect.content_type(wanted.request, is_stream=True)
        self._started: Started | None = None
        self._finished: Finished | None = None
        self._is_open = False
        self._held = b""
        """Events that wait for a piece that is on its way."""
        self._timer: asyncio.TimerHandle | None = None
        self._pinging: asyncio.Task[None] | None = None
        self._written_at = 0.0

    async def run(self) -> None:
        limits = self._exchange.limits
        try:
            # Neither a comment nor an early head can be told from the bytes of a sound.
            if self._content_type == EVENT_STREAM:
                self._arm(limits.head_hold_s)
            async with CancelOnDisconnect(self._exchange.connection):
                await self._handler(self._call, self._emit)
            end = self._finished
            if end is None:
                raise InternalError("The pipeline ended without an answer.")
            closing = self._writer.end(end.usage) if end.raw is None else end.raw
            await self._event(closing, is_last=True)
        except InferHubError as error:
            await self._fail(error)
        except asyncio.CancelledError:
            await self._fail(_stopping())
        finally:
            if self._timer is not None:
                self._timer.cancel()

    async def _emit(self, chunk: Chunk) -> None:
        if isinstance(chunk, Delta):
            event = chunk.raw
            if event is None:
                event = self._writer.delta(chunk.payload)
            else:
                self._writer.passed(event)
            if chunk.more and len(self._held) < _MAX_HELD_BYTES:
                self._held += event
            elif event or self._held:
                await self._event(event)
        elif isinstance(chunk, Started):
            self._started = chunk
        elif isinstance(chunk, Finished):
            self._finished = chunk

    async def _event(self, event: bytes, *, is_last: bool = False) -> None:
        if not self._is_open:
            await self._open()
        if self._held:
            event, self._held = self._held + event, b""
        self._written_at = asyncio.get_running_loop().time()
        await self._exchange.write({"type": "http.response.body", "body": event, "more_body": not is_last})

    async def _open(self) -> None:
        self._is_open = True
        kind = (b"content-type", self._content_type.encode())
        headers = [kind, *_STREAM, *self._exchange.common_headers()]
        if self._started is not None:
            headers += _started_headers(self._started)
        await self._exchange.write({"type": "http.response.start", "status": 200, "headers": headers})

    async def _fail(self, error: InferHubError) -> None:
        if not self._is_open:
            return await self._exchange.problem(error)
        event = self._writer.fail(problem_of(error))
        if event is not None:
            return await self._event(event, is_last=True)
        # There are no words for it in this kind of stream: its end must not look like one.
        self._exchange.connection.abort()
        raise ClientGone

    def _arm(self, after_s: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(after_s, self._tick)

    def _tick(self) -> None:
        """Headers and `: ping` comments leave even while the model is silent."""
        interval_s = self._exchange.limits.ping_interval_s
        silent_s = asyncio.get_running_loop().time() - self._written_at
        if self._is_open and silent_s < interval_s:
            return self._arm(interval_s - silent_s)
        self._pinging = asyncio.create_task(self._ping())
        return self._arm(interval_s)

    async def _ping(self) -> None:
        try:
            await self._event(b": ping\n\n")
        except ClientGone:
            # The call itself meets the same fate at its next write.
            return


def _stopping() -> Draining:
    """What a cancellation means that is not the client's: this server stops, and says so before it goes.

    It ends here: the task belongs to the server and has nothing left to do but this answer.
    """
    return Draining("The server is shutting down.")


def _started_headers(started: Started) -> Headers:
    headers = [
        (b"x-inferhub-model", started.model.encode("latin-1", "replace")),
        (b"x-inferhub-attempts", str(started.attempt).encode()),
    ]
    if started.endpoint:
        headers.append((b"x-inferhub-upstream", started.endpoint.encode("latin-1", "replace")))
    if started.cache:
        headers.append((b"x-inferhub-cache", started.cache.encode()))
    if started.ignored_params:
        headers.append((b"x-inferhub-ignored-params", _listed(started.ignored_params)))
    if started.described_by:
        headers.append((b"x-inferhub-described-by", started.described_by.encode("latin-1", "replace")))
    headers += trail_headers(started.trail)
    headers += ratelimit_headers(started.readings)
    return headers


def _listed(names: tuple[str, ...]) -> bytes:
    """Client-made names in a header: only plain ones, and not many."""
    plain = [name for name in names if name.isascii() and name.isidentifier() and len(name) <= 64]
    return ",".join(plain[:20]).encode() or b"(unprintable)"


class CancelOnDisconnect:
    """Cancels the current task when the client hangs up, and turns that into `ClientGone`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._is_gone = False

    async def __aenter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - coroutines run in tasks
        self._task = task
        self._connection.on_lost = self._cancel
        return self

    def _cancel(self) -> None:
        self._is_gone = True
        self._task.cancel()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.on_lost = None
        if not self._is_gone:
            return
        if kind is not asyncio.CancelledError:
            # The hang-up came while the call was already ending: take the cancellation that is due.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
        self._task.uncancel()
        raise ClientGone from error
