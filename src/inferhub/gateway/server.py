"""Runs the ASGI application on uvicorn, and stops it in order: no new calls, finish, then cut.

Called by assembly, which owns the signals.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.protocol import bounded_protocol
from inferhub.telemetry.ports import listen


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Assembly handles signals: several services share this process."""
        yield


class HttpServer:
    """Binds at once, so that a taken port is known before any model is loaded."""

    def __init__(self, host: str, port: int) -> None:
        self._socket: socket.socket = listen(host, port)
        self.port: int = self._socket.getsockname()[1]
        self._server: _Server | None = None

    async def serve(
        self, app: ASGIApp, limits: GatewayLimits, *, keepalive_timeout_s: float, drain_grace_s: float
    ) -> None:
        """Returns after `stop`, when the calls in flight ended or `drain_grace_s` was over."""
        config = uvicorn.Config(
            app,
            http=bounded_protocol(limits),
            ws="none",
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
        self._server = _Server(config)
        try:
            await self._server.serve(sockets=[self._socket])
        finally:
            # Also when this task is cancelled, which uvicorn does not clean up after.
            for server in getattr(self._server, "servers", ()):
                server.close()
            self._socket.close()

    def stop(self) -> None:
        if self._server is None:
            self._socket.close()
        else:
            self._server.should_exit = True
