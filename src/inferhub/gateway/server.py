"""Runs the ASGI application on uvicorn, and stops it in order: no new calls, finish, then cut.

Called by assembly, which owns the signals.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.protocol import bounded_protocol
from inferhub.gateway.sockets.protocol import SocketProtocol
from inferhub.gateway.sockets.switchboard import OpenSockets
from inferhub.gateway.turns import Acceptor, Turns


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, turns: Turns | None, opened: OpenSockets | None) -> None:
        super().__init__(config)
        self._turns = turns
        self._opened = opened
        self._acceptors: list[Acceptor] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn does it, but for a socket that other processes accept from as well."""
        await super().startup([] if self._turns else sockets)
        if self._turns:
            connections = self.server_state.connections
            self._acceptors = [
                Acceptor(listener, self._protocol, self._turns, connections) for listener in sockets or ()
            ]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stop_accepting()
        begin_s = time.monotonic()
        grace_s = self.config.timeout_graceful_shutdown or 1
        if self._opened is not None:
            # uvicorn would close them at once, in the middle of a sentence.
            await self._opened.drain(grace_s)
        left_s = grace_s - (time.monotonic() - begin_s)
        self.config.timeout_graceful_shutdown = max(1, round(left_s))
        await super().shutdown(sockets)

    def stop_accepting(self) -> None:
        """At once; may be repeated."""
        while self._acceptors:
            self._acceptors.pop().close()
        for server in getattr(self, "servers", ()):
            server.close()

    def _protocol(self) -> asyncio.Protocol:
        make: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return make(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Assembly handles signals: several services share this process."""
        yield


class HttpServer:
    """Serves what comes in on `listener`: its own socket, or its copy of one that processes share."""

    def __init__(self, listener: socket.socket, turns: Turns | None = None) -> None:
        self._socket = listener
        self._turns = turns
        self.port: int = self._socket.getsockname()[1]
        self._server: _Server | None = None

    async def serve(
        self,
        app: ASGIApp,
        limits: GatewayLimits,
        *,
        keepalive_timeout_s: float,
        drain_grace_s: float,
        opened: OpenSockets | None = None,
    ) -> None:
        """Returns after `stop`, when the calls in flight ended or `drain_grace_s` was over. Sockets in
        `opened` are told of it first."""
        config = uvicorn.Config(
            app,
            http=bounded_protocol(limits),
            ws=SocketProtocol,
            ws_max_size=limits.max_socket_message_bytes,
            ws_ping_interval=limits.socket_ping_interval_s,
            # While a client has to wait for the model, its answers to pings wait behind its sound.
            ws_ping_timeout=limits.write_timeout_s,
            # Sound does not get smaller, and what unpacks to more than it was is one thing less to bound.
            ws_per_message_deflate=False,
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            server_header=False,
            # Nothing here looks at the client's address, so nobody's word for it is needed.
            proxy_headers=False,
            timeout_keep_alive=round(keepalive_timeout_s),
            timeout_graceful_shutdown=max(1, round(drain_grace_s)),
            backlog=2048,
        )
        self._server = _Server(config, self._turns, opened)
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            # Also when this task is cancelled, which uvicorn does not clean up after.
            self._server.stop_accepting()
            self._socket.close()

    def stop(self) -> None:
        if self._server is None:
            self._socket.close()
        else:
            self._server.should_exit = True
