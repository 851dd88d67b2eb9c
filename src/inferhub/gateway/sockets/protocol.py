"""uvicorn's WebSocket protocol, with what `answer.Connection` offers, and no word of a client's in the log.

The HTTP protocol hands a connection over once it has held its head to the limits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from inferhub.core.errors import Invalid
from inferhub.gateway.problems import envelope

_log = logging.getLogger(__name__)
# uvicorn's own line for each connection holds the query, where somebody may have put a key.
_log.setLevel(logging.WARNING)


class SocketProtocol(WebSocketsSansIOProtocol):
    """One upgraded connection."""

    on_lost: Callable[[], None] | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self._refuse_head()

    def handle_connect(self, event: Request) -> None:
        self.logger = _log
        super().handle_connect(event)
        if self.handshake_initiated and not self.close_sent:
            self.scope["extensions"]["inferhub.connection"] = self  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def _refuse_head(self) -> None:
        """Its parser takes shorter lines than the one of HTTP, and uvicorn waits for what it refused."""
        body = envelope(Invalid("No header of a WebSocket's request may be this long.", code="invalid_http"))
        head = (
            "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        if not self.transport.is_closing():
            self.transport.write(head.encode() + body)
            self.transport.close()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            # A refusal completes a handshake as well; uvicorn would log it as a failure of ours.
            self.handshake_complete = True

    # --- what `answer.Connection` offers ---

    @property
    def is_write_paused(self) -> bool:
        return not self.writable.is_set()

    def abort(self) -> None:
        self.transport.abort()
