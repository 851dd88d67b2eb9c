"""uvicorn's HTTP/1.1 protocol with bounds on the request head, and refusals in OpenAI's envelope.

The parser below it bounds nothing: without this, one endless header fills the memory before any key is asked.
"""

from __future__ import annotations

import asyncio
import http
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from inferhub.core.errors import Invalid
from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.problems import envelope


class _HeadRefusedError(Exception):
    """Raised inside parser callbacks; the parser turns it into its own error."""


def bounded_protocol(limits: GatewayLimits) -> type[HttpToolsProtocol]:
    """The protocol class with `limits` built in, as uvicorn's `http` option wants it."""

    class BoundedProtocol(_BoundedProtocol):
        _limits = limits

    return BoundedProtocol


class _BoundedProtocol(HttpToolsProtocol):
    _limits: GatewayLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._is_in_head = True
        self._refusal: tuple[int, str] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.on_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def data_received(self, data: bytes) -> None:
        if self._is_in_head:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._is_in_head and self._head_bytes > self._limits.max_header_bytes and self._refusal is None:
            self._refuse(431, f"The request's head is longer than {self._limits.max_header_bytes} bytes.")
            self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._arm()
        self.scope["extensions"] = {"inferhub.connection": self}  # type: ignore[dict-item]

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self._limits.max_target_bytes:
            self._refuse(414, f"The request's path is longer than {self._limits.max_target_bytes} bytes.")
            raise _HeadRefusedError

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > self._limits.max_headers:
            self._refuse(431, f"The request has more than {self._limits.max_headers} headers.")
            raise _HeadRefusedError

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._head_bytes = 0
        size = sum(len(name) + len(value) for name, value in self.headers)
        if size > self._limits.max_header_bytes:
            self._refuse(
                431, f"The headers have {size} bytes; at most {self._limits.max_header_bytes} are accepted."
            )
            raise _HeadRefusedError
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._disarm()
        super().on_message_complete()
        if not self.pipeline:
            # Paused where the last piece of a body is large; nobody reads on, and nobody would see a hang-up.
            self.flow.resume_reading()

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this for every request that it could not parse."""
        status, message = self._refusal or (400, "The request is not valid HTTP/1.1.")
        body = envelope(Invalid(message, code="invalid_http"))
        head = (
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        if not self.transport.is_closing():
            self.transport.write(head.encode() + body)
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        self._refusal = (status, message)

    def _arm(self) -> None:
        """A request that drips in is cut off; `keepalive_timeout_s` covers silence between requests."""
        self._disarm()
        self._timer = self.loop.call_later(self._limits.body_timeout_s, self._is_late)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _is_late(self) -> None:
        if self.cycle is not None and self.cycle.response_started:
            # It was refused without its body, and the client still sends it.
            return self.transport.abort()
        self._refuse(408, f"The request did not arrive within {self._limits.body_timeout_s:g} s.")
        return self.send_400_response("")

    # --- what `answer.Connection` offers ---

    @property
    def is_write_paused(self) -> bool:
        return self.flow.write_paused

    def abort(self) -> None:
        self.transport.abort()
