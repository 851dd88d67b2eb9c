"""The way of a WebSocket: its endpoint, who calls, whether there is room; then it is open until it ends.

`door` hands connections over, `server` asks for `drain` before it stops. What was refused before the upgrade
is an HTTP answer, what goes wrong after it an event and a code.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from inferhub.core.errors import (
    Draining,
    Forbidden,
    InferHubError,
    InternalError,
    Invalid,
    NotFound,
    Overloaded,
)
from inferhub.core.tenancy import Principal
from inferhub.gateway.access import rule_of
from inferhub.gateway.answer import CancelOnDisconnect
from inferhub.gateway.door import request_id_of
from inferhub.gateway.identity import Identity
from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.payload import ClientGone
from inferhub.gateway.problems import OPENAI, error_headers
from inferhub.gateway.sockets.socket import INTERNAL, POLICY, RESTART, TRY_LATER, Socket, SocketEnded

_log = logging.getLogger(__name__)
_KEY_PROTOCOLS = ("openai-insecure-api-key.", "inferhub-key.")
"""For browsers, which cannot set a header: the rest of the name is the key."""
_RECHECK_S = 15.0
_TRACEPARENT = re.compile(rb"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$")


@dataclass(frozen=True, slots=True)
class Caller:
    """Who opened a connection, and how."""

    principal: Principal
    connection_id: str
    query: Mapping[str, str]
    traceparent: str | None = None
    session: Any = None
    """What an ephemeral key was made for, as the endpoint that made it knows it."""


class Recogniser(Protocol):
    """Who recognises callers: by a key of the platform, or by one that an endpoint has made."""

    async def caller(self, headers: dict[bytes, bytes]) -> tuple[Principal, Any]:
        """Who it is, and the session that an ephemeral key was made for."""

    async def check(self, headers: dict[bytes, bytes], principal: Principal) -> None:
        """Raises `Unauthenticated` where who was recognised once would not be any more."""


class SocketEndpoint(Protocol):
    """What lives at a path."""

    @property
    def subprotocol(self) -> str:
        """The one that is agreed to where a client offers it."""

    def identity(self, plain: Identity) -> Recogniser:
        """Who recognises its callers."""

    def error_event(self, error: InferHubError) -> bytes: ...

    async def serve(self, socket: Socket, caller: Caller) -> None:
        """Until the client goes: raises `ClientGone`, or `SocketEnded`."""


class OpenSockets:
    """Those of one process."""

    def __init__(self) -> None:
        self._open: set[Socket] = set()
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self.is_draining = False

    def __len__(self) -> int:
        return len(self._open)

    @contextlib.contextmanager
    def holding(self, socket: Socket) -> Iterator[None]:
        self._open.add(socket)
        self._is_empty.clear()
        try:
            yield
        finally:
            self._open.discard(socket)
            if not self._open:
                self._is_empty.set()

    async def drain(self, grace_s: float) -> None:
        """Tell each that the server leaves, and give it time to finish what is under way."""
        self.is_draining = True
        for socket in self._open:
            socket.end(_leaving())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._is_empty.wait()


class Switchboard:
    """An ASGI application for the scope `websocket`."""

    def __init__(
        self,
        endpoints: Mapping[str, SocketEndpoint],
        identity: Identity,
        limits: GatewayLimits,
        opened: OpenSockets,
    ) -> None:
        self._endpoints = endpoints
        self._identity = identity
        self._limits = limits
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        connection_id = request_id_of(headers)
        try:
            endpoint, door, headers, caller = await self._admit(scope, headers, connection_id)
        except InferHubError as error:
            return await _refuse(error, connection_id, send)
        offered = scope["subprotocols"]
        await receive()
        accept: dict[str, Any] = {
            "type": "websocket.accept",
            "headers": [(b"x-request-id", connection_id.encode())],
        }
        if endpoint.subprotocol in offered:
            accept["subprotocol"] = endpoint.subprotocol
        await send(accept)
        connection = scope["extensions"]["inferhub.connection"]
        socket = Socket(receive, send, self._limits, connection)
        with self._opened.holding(socket), contextlib.suppress(ClientGone):
            async with CancelOnDisconnect(connection), self._guarded(socket, door, headers, caller):
                await self._serve(endpoint, socket, caller)
        return None

    async def _admit(
        self, scope: Scope, headers: dict[bytes, bytes], connection_id: str
    ) -> tuple[SocketEndpoint, Recogniser, dict[bytes, bytes], Caller]:
        """Everything that may be refused before the upgrade. Raises `InferHubError`."""
        path = scope["path"].rstrip("/")
        if f"/v1{path}" in self._endpoints:
            # A base URL that forgot `/v1`, as over HTTP.
            path = f"/v1{path}"
        endpoint = self._endpoints.get(path)
        if endpoint is None:
            raise NotFound(f"No WebSocket is served at {path[:200]}. See docs/reference/websockets.md.")
        if self._opened.is_draining:
            raise Draining("The server is shutting down.", retry_after_s=1.0)
        if len(self._opened) >= self._limits.max_sockets:
            raise Overloaded(
                f"{len(self._opened)} WebSockets are open, the most allowed.",
                retry_after_s=5.0,
                reason="connection_full",
            )
        headers = _with_key(headers, scope["subprotocols"])
        door = endpoint.identity(self._identity)
        principal, session = await door.caller(headers)
        rule = rule_of("WS", path)
        if rule.scope is not None and not principal.may(rule.scope):
            raise Forbidden(f"This address needs a key with the scope {rule.scope!r}.")
        trace = headers.get(b"traceparent", b"")
        return endpoint, door, headers, Caller(
            principal,
            connection_id,
            _query(scope["query_string"]),
            trace.decode() if _TRACEPARENT.match(trace) else None,
            session,
        )  # fmt: skip

    async def _serve(self, endpoint: SocketEndpoint, socket: Socket, caller: Caller) -> None:
        """Whatever ends it, the client is told, in an event and a code."""
        try:
            await endpoint.serve(socket, caller)
            return await socket.close(1000)
        except SocketEnded as ended:
            ending = ended
        except InferHubError as error:
            ending = SocketEnded(TRY_LATER if isinstance(error, Overloaded) else INTERNAL, error)
        except asyncio.CancelledError:
            # Either the client is gone, then nothing of this is read, or the server has no time left.
            await socket.close(RESTART)
            raise
        except Exception:
            _log.exception("a socket failed unexpectedly", extra={"request_id": caller.connection_id})
            ending = SocketEnded(INTERNAL, InternalError())
        await socket.send(endpoint.error_event(ending.error))
        return await socket.close(ending.code, ending.error.message)

    @asynccontextmanager
    async def _guarded(
        self, socket: Socket, door: Recogniser, headers: dict[bytes, bytes], caller: Caller
    ) -> AsyncIterator[None]:
        """A key that was revoked opens nothing any more, and no session lasts for ever."""
        guard = asyncio.ensure_future(self._guard(socket, door, headers, caller.principal))
        try:
            yield
        finally:
            guard.cancel()
            await asyncio.wait([guard])

    async def _guard(
        self, socket: Socket, door: Recogniser, headers: dict[bytes, bytes], principal: Principal
    ) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time() + self._limits.session_timeout_s
        while loop.time() < end_s:
            await asyncio.sleep(min(_RECHECK_S, max(0.0, end_s - loop.time())))
            try:
                await door.check(headers, principal)
            except InferHubError as error:
                return socket.end(SocketEnded(POLICY, error))
        limit_s = self._limits.session_timeout_s
        over = Invalid(f"The session lasted for {limit_s:g} s, the longest allowed.", code="session_expired")
        return socket.end(SocketEnded(POLICY, over, is_gentle=True))


class PlainDoor:
    """Callers by the keys of the platform."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    async def caller(self, headers: dict[bytes, bytes]) -> tuple[Principal, Any]:
        return await self._identity.principal(headers), None

    async def check(self, headers: dict[bytes, bytes], principal: Principal) -> None:
        await self._identity.principal(headers)


def _leaving() -> SocketEnded:
    return SocketEnded(RESTART, Draining("The server is shutting down.", retry_after_s=1.0), is_gentle=True)


def _with_key(headers: dict[bytes, bytes], subprotocols: list[str]) -> dict[bytes, bytes]:
    """With the key of a subprotocol as the header that a browser could not set."""
    if b"authorization" in headers or b"x-api-key" in headers:
        return headers
    for name in subprotocols:
        for prefix in _KEY_PROTOCOLS:
            if name.startswith(prefix):
                return {**headers, b"authorization": f"Bearer {name[len(prefix) :]}".encode()}
    return headers


def _query(raw: bytes) -> Mapping[str, str]:
    try:
        return dict(parse_qsl(raw.decode("ascii"), max_num_fields=20))
    except ValueError:
        return {}


async def _refuse(error: InferHubError, connection_id: str, send: Send) -> None:
    headers = [
        (b"content-type", b"application/json"),
        (b"x-request-id", connection_id.encode()),
        *error_headers(error),
    ]
    body = OPENAI.body(error, connection_id)
    await send({"type": "websocket.http.response.start", "status": error.http, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})
