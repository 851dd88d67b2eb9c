"""A gRPC server as workers and orchestrators open it: port, credentials, limits, health, refusals.

`grpc_server` and `control_server` put their service on one. It knows neither service.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from inferhub.core.errors import InferHubError, InternalError, PortTaken, SetupError
from inferhub.telemetry.ports import holder
from inferhub.transport._pb import worker_pb2 as pb
from inferhub.transport.channel import Limits, Option, shared_options
from inferhub.transport.codec import encode_error
from inferhub.transport.security import Credentials, server_credentials

_log = logging.getLogger(__name__)
_Reply = TypeVar("_Reply")

REFUSALS_LOGGED_EVERY_S = 10.0


@dataclass(frozen=True, slots=True)
class Listening:
    """A server that answers."""

    server: grpc.aio.Server
    health: Any
    port: int | None
    """None on a unix socket."""

    async def stop(self, grace_s: float) -> None:
        await self.health.enter_graceful_shutdown()
        await self.server.stop(grace_s)


async def open_server(
    listen: str,
    service: str,
    add_to: Callable[[grpc.aio.Server, Any], None],
    *,
    credentials: Credentials,
    limits: Limits,
    options: tuple[Option, ...] = (),
) -> Listening:
    """Listen at `HOST:PORT` (port 0 picks one) or `unix:PATH`. Raises `PortTaken`, `SetupError`.

    `add_to` puts the service on the server; it is handed the health servicer too. Health needs no token.
    """
    await _check_free(listen)
    credentials.check_exposed(listen)
    # A dict, because gRPC takes the first of two values of one option.
    chosen = {
        **dict(shared_options(limits)),
        "grpc.http2.min_recv_ping_interval_without_data_ms": 10_000,
        # By default two servers share one port and each gets half of the calls.
        "grpc.so_reuseport": 0,
        **dict(options),
    }
    server = grpc.aio.server(
        interceptors=[_JoinToken(credentials.token, service)] if credentials.token else [],
        options=list(chosen.items()),
        maximum_concurrent_rpcs=limits.max_calls,
    )
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    add_to(server, status)
    try:
        if credentials.tls is None or listen.startswith("unix:"):
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, server_credentials(credentials.tls))
    except RuntimeError as error:
        raise PortTaken(f"Cannot listen on {listen}: {error}") from error
    await server.start()
    for name in ("", service):
        await status.set(name, health_pb2.HealthCheckResponse.SERVING)
    return Listening(server, status, None if listen.startswith("unix:") else port)


async def replied(act: Callable[[], Awaitable[_Reply]], reply: Callable[..., _Reply]) -> _Reply:
    """What `act` answers, or its failure as a message."""
    try:
        return await act()
    except Exception as error:
        return reply(error=failure(error, act.__name__))


def failure(error: Exception, what: str) -> pb.Error:
    """No traceback and no foreign text reaches the peer."""
    if not isinstance(error, InferHubError):
        _log.error("Unexpected failure in %s", what, exc_info=error)
        error = InternalError()
    return encode_error(error)


class _JoinToken(grpc.aio.ServerInterceptor):
    """Refuses every call to the service that does not carry the token."""

    def __init__(self, token: str, service: str) -> None:
        self._expected = f"Bearer {token}".encode()
        self._prefix = f"/{service}/"
        self._refused = 0
        self._next_log_s = 0.0

        async def refuse(request: Any, context: Any) -> None:
            self._log_refusal(context.peer())
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "join token missing or wrong")

        self._refusal: Any = grpc.unary_unary_rpc_method_handler(refuse)

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        if self._is_allowed(details.invocation_metadata) or not details.method.startswith(self._prefix):
            return await continuation(details)
        return self._refusal

    def _is_allowed(self, metadata: Any) -> bool:
        given = next((value for key, value in metadata or () if key == "authorization"), "")
        return hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._expected)

    def _log_refusal(self, peer: str) -> None:
        self._refused += 1
        now_s = time.monotonic()
        if now_s >= self._next_log_s:
            self._next_log_s = now_s + REFUSALS_LOGGED_EVERY_S
            _log.warning("Refused %s: join token missing or wrong (%d refused so far)", peer, self._refused)


async def _check_free(listen: str) -> None:
    """gRPC binds what it can of a name's addresses and takes over a socket file: look first."""
    if listen.startswith("unix:"):
        await _check_free_path(listen.removeprefix("unix:"))
        return
    host, _, port = listen.rpartition(":")
    if not host or not port.isdecimal():
        raise SetupError(f"{listen!r} is not HOST:PORT or unix:PATH.", param="listen")
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        for family, _, _, _, address in found:
            socket.create_server(cast("Any", address), family=family).close()
    except OSError as error:
        if isinstance(error, socket.gaierror) or "in use" not in str(error):
            raise SetupError(f"Cannot listen on {listen}: {error}", param="listen") from error
        raise PortTaken(f"{listen} is taken by {holder(int(port))}; choose another port.") from error


async def _check_free_path(path: str) -> None:
    if not Path(path).parent.is_dir() or len(path.encode()) > 107:
        raise SetupError(
            f"{path!r} is not a possible socket: no such folder, or over 107 bytes.", param="listen"
        )
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return  # Nobody answers there: a new path, or the remains of a process that is gone.
    writer.close()
    raise PortTaken(f"Another process already listens on {path}.")
