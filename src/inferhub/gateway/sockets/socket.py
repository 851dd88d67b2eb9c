"""One open WebSocket: messages in, events out, each bounded in size and time.

Endpoints read and write it; `switchboard` ends it. It knows no event but those it is handed.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

from inferhub.core.errors import InferHubError, Invalid
from inferhub.gateway.answer import Connection
from inferhub.gateway.limits import GatewayLimits
from inferhub.gateway.payload import ClientGone

POLICY = 1008
"""The key is no longer valid, nobody spoke for too long, or the session lasted for too long."""
TOO_BIG = 1009
INTERNAL = 1011
RESTART = 1012
TRY_LATER = 1013

Message = MutableMapping[str, Any]


class SocketEnded(Exception):
    """The connection is to end: with an event that says why, and a code."""

    def __init__(self, code: int, error: InferHubError, *, is_gentle: bool = False) -> None:
        super().__init__(error.message)
        self.code = code
        self.error = error
        self.is_gentle = is_gentle
        """What is under way may be finished first."""


class Socket:
    """Made by `switchboard` for an accepted connection."""

    def __init__(
        self,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
        limits: GatewayLimits,
        connection: Connection,
    ) -> None:
        self._receive = receive
        self._send = send
        self._limits = limits
        self._connection = connection
        self._ending: SocketEnded | None = None
        self._reading: asyncio.Timeout | None = None
        self.is_waited_for = False
        """Set while the client is silent because it waits for us: that is no idleness."""

    async def receive(self) -> str | bytes:
        """The next message. Raises `SocketEnded` and `ClientGone`."""
        while True:
            if self._ending is not None:
                raise self._ending
            try:
                async with asyncio.timeout(self._limits.socket_idle_timeout_s) as self._reading:
                    message = await self._receive()
            except TimeoutError:
                if self._ending is None and not self.is_waited_for:
                    limit_s = self._limits.socket_idle_timeout_s
                    raise SocketEnded(
                        POLICY, Invalid(f"Nothing was said for {limit_s:g} s.", code="idle_timeout"),
                        is_gentle=True,
                    ) from None  # fmt: skip
                continue
            finally:
                self._reading = None
            if message["type"] == "websocket.disconnect":
                raise ClientGone
            text: str | None = message.get("text")
            data: bytes = message.get("bytes") or b""
            return data if text is None else text

    def end(self, ending: SocketEnded) -> None:
        """From another task: the next `receive`, or the one that waits, raises it."""
        self._ending = self._ending or ending
        if self._reading is not None:
            self._reading.reschedule(asyncio.get_running_loop().time())

    async def send(self, event: bytes) -> None:
        """One event, as text. A client that does not read loses the connection, not our memory."""
        message = {"type": "websocket.send", "text": event.decode()}
        try:
            if not self._connection.is_write_paused:
                return await self._send(message)
            async with asyncio.timeout(self._limits.write_timeout_s):
                return await self._send(message)
        except TimeoutError as error:
            self._connection.abort()
            raise ClientGone from error
        except OSError as error:  # uvicorn's, for a client that is gone
            raise ClientGone from error

    async def close(self, code: int, reason: str = "") -> None:
        """Nothing can be said afterwards, and what still comes is ignored."""
        # A reason is at most 123 bytes, by the protocol.
        short = reason.encode()[:120].decode(errors="ignore")
        with contextlib.suppress(OSError, RuntimeError):
            await self._send({"type": "websocket.close", "code": code, "reason": short})


class Session(Protocol):
    """What is said on one connection."""

    async def take(self, message: str | bytes) -> None:
        """One message; whatever is wrong with it is answered, not raised."""

    async def finish(self) -> None:
        """Returns when what is under way is over."""

    async def stop(self) -> None:
        """Ends what is under way, at once."""


async def attend(socket: Socket, session: Session) -> None:
    """Hand over each message until the connection ends. Raises `SocketEnded` or `ClientGone`."""
    try:
        while True:
            await session.take(await socket.receive())
    except SocketEnded as ended:
        if ended.is_gentle:
            await session.finish()
        raise
    finally:
        await session.stop()
