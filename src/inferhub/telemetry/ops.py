"""The operations port: `/metrics`, `/livez` and `/readyz` from a thread of their own.

It answers while the event loop is blocked or busy, which is exactly when someone asks.
"""

from __future__ import annotations

import errno
import json
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from inferhub.core.errors import PortTaken

_PORTS_TRIED = 32


class Exposition(Protocol):
    """The metrics of one process, or of several as one."""

    def exposition(self) -> bytes:
        """Prometheus' text format; called from any thread."""
        ...


class OpsServer:
    """Serves until `stop`. A taken port is not fatal: the next free one is used and reported."""

    def __init__(
        self, host: str, port: int, metrics: Exposition, readiness: Callable[[], Mapping[str, object]]
    ) -> None:
        self._server = _bind(host, port, _handler(metrics, readiness))
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="ops", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _bind(host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    for candidate in [port] if port == 0 else range(port, port + _PORTS_TRIED):
        try:
            return _Server((host, candidate), handler)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise PortTaken(f"Cannot listen on {host}:{candidate}: {error.strerror}.") from error
    raise PortTaken(f"No free port for metrics between {port} and {port + _PORTS_TRIED - 1}.")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # With address reuse two processes could both believe that they own the port.
    allow_reuse_address = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Who hangs up before the answer, such as a probe that ran out of time, is no news.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


def _handler(
    metrics: Exposition, readiness: Callable[[], Mapping[str, object]]
) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                self._answer(200, metrics.exposition(), "text/plain; version=0.0.4; charset=utf-8")
            elif path == "/livez":
                self._answer(200, b'{"status":"ok"}')
            elif path == "/readyz":
                state = readiness()
                self._answer(200 if state["ready"] else 503, json.dumps(state).encode())
            else:
                self._answer(404, b'{"error":"this port serves /metrics, /livez and /readyz"}')

        def _answer(self, status: int, body: bytes, content_type: str = "application/json") -> None:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it
            """Scrapes are not news."""

    return Handler
